"""The parts of TensorFlow and absl that SimCLR's code calls, in PyTorch: its head, loss, schedule and LARS.

Layers name their variables as Keras does, for the published LARS chooses by name what decays.
"""

import contextlib
import math
import re
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def stand_in(name: str, **members: Any) -> types.ModuleType:
    """A module with these members."""
    made = types.ModuleType(name)
    made.__dict__.update(members)
    return made


def flags() -> types.ModuleType:
    """absl.flags: FLAGS holds what is defined, with its default value."""
    values = types.SimpleNamespace()

    def define(name: str, default: Any, *_: Any, **__: Any) -> None:
        setattr(values, name, default)

    kinds = ("float", "integer", "string", "bool", "boolean", "enum", "list")
    return stand_in("absl.flags", FLAGS=values, **{f"DEFINE_{kind}": define for kind in kinds})


class Variable:
    """A tensor with a name that is assigned to."""

    def __init__(self, value: Tensor, name: str) -> None:
        self.value, self.name, self.device = value, name, value.device
        self.dtype = types.SimpleNamespace(base_dtype=value.dtype)

    def __rmul__(self, other: Any) -> Tensor:
        return other * self.value

    def __sub__(self, other: Any) -> Tensor:
        return self.value - other

    @torch.no_grad()
    def assign(self, value: Tensor, use_locking: bool = False) -> None:
        self.value.copy_(value)


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Variable) else x


class Shape(tuple[int, ...]):
    """A shape that knows its rank."""

    @property
    def ndims(self) -> int:
        return len(self)


class Inputs(torch.Tensor):
    """A tensor with such a shape."""

    @property
    def shape(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Shape(self.size())


class Layer:
    """tf.keras.layers.Layer: built at its first call, with the names of the layers that contain it."""

    def __init__(self, name: str = "", **_: Any) -> None:
        snake = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        self._name, self.built = name or snake, False
        self.inside = ""
        self.variables: list[Variable] = []

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        raise NotImplementedError

    def add(self, value: Tensor, name: str) -> Variable:
        self.variables.append(Variable(value.requires_grad_(), f"{self.inside}{self._name}/{name}:0"))
        return self.variables[-1]

    def parts(self) -> "list[Layer]":
        """Layers among the attributes, in lists, too."""
        held = [x for v in vars(self).values() for x in (v if isinstance(v, list) else [v])]
        return [x for x in held if isinstance(x, Layer)]

    def __call__(self, inputs: Tensor, *args: Any, **options: Any) -> Any:
        if not self.built:
            self.build(inputs.shape)
            self.built = True
        for part in self.parts():
            part.inside = f"{self.inside}{self._name}/"
        return self.call(inputs, *args, **options)

    def trainable(self) -> list[Variable]:
        """Own variables and those of all parts."""
        return self.variables + [v for part in self.parts() for v in part.trainable()]


class Dense(Layer):
    """tf.keras.layers.Dense."""

    def __init__(self, units: int, kernel_initializer: Any = None, use_bias: bool = True, **_: Any) -> None:
        super().__init__()
        self.units, self.use_bias = units, use_bias

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add(torch.zeros(input_shape[-1], self.units, dtype=torch.float64), "kernel")
        if self.use_bias:
            self.bias = self.add(torch.zeros(self.units, dtype=torch.float64), "bias")

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        out = inputs @ self.kernel.value
        return out + self.bias.value if self.use_bias else out


class SyncBatchNormalization(Layer):
    """tf.keras.layers.experimental.SyncBatchNormalization in training, in one process."""

    def __init__(self, epsilon: float, center: bool, scale: bool, **_: Any) -> None:
        super().__init__()
        self.epsilon, self.center, self.scale = epsilon, center, scale

    def build(self, input_shape: Any) -> None:
        if self.scale:
            self.gamma = self.add(torch.ones(input_shape[-1], dtype=torch.float64), "gamma")
        if self.center:
            self.beta = self.add(torch.zeros(input_shape[-1], dtype=torch.float64), "beta")

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        assert training
        mean, variance = inputs.mean(0), inputs.var(0, correction=0)
        out = (inputs - mean) * (variance + self.epsilon).rsqrt()
        out = out * self.gamma.value if self.scale else out
        return out + self.beta.value if self.center else out


class Optimizer:
    """tf.keras.optimizers.legacy.Optimizer, with a schedule for the learning rate."""

    def __init__(self, name: str) -> None:
        self.hyper: dict[str, Any] = {}
        self.slots: dict[int, Variable] = {}
        self.iterations = 0

    def _set_hyper(self, name: str, value: Any) -> None:
        self.hyper[name] = value

    def add_slot(self, variable: Variable, name: str) -> None:
        self.slots.setdefault(id(variable), Variable(torch.zeros_like(variable.value), name))

    def get_slot(self, variable: Variable, name: str) -> Variable:
        return self.slots[id(variable)]

    def _fallback_apply_state(self, device: Any, dtype: Any) -> dict[str, Any]:
        return {"lr_t": self.hyper["learning_rate"](torch.tensor(float(self.iterations), dtype=dtype))}

    @torch.no_grad()
    def apply_gradients(self, pairs: Iterable[tuple[Tensor, Variable]]) -> None:
        pairs = list(pairs)
        self._create_slots([variable for _, variable in pairs])
        for gradient, variable in pairs:
            self._resource_apply_dense(gradient, variable)
        self.iterations += 1

    _create_slots: Callable[[list[Variable]], None]
    _resource_apply_dense: Callable[[Tensor, Variable], Any]


class CosineDecay:
    """tf.keras.experimental.CosineDecay down to 0."""

    def __init__(self, initial: float, decay_steps: int) -> None:
        self.initial, self.decay_steps = initial, decay_steps

    def __call__(self, step: Tensor) -> Tensor:
        share = step.clamp(max=self.decay_steps) / self.decay_steps
        return self.initial * 0.5 * (1 + torch.cos(math.pi * share))


def _keras() -> Any:
    space = types.SimpleNamespace
    return space(
        layers=space(
            Layer=Layer, Dense=Dense, BatchNormalization=None,
            experimental=space(SyncBatchNormalization=SyncBatchNormalization),
        ),
        models=space(Model=object),
        metrics=space(Metric=object),
        initializers=space(RandomNormal=lambda stddev: stddev),
        experimental=space(CosineDecay=CosineDecay),
        optimizers=space(
            legacy=space(Optimizer=Optimizer), schedules=space(LearningRateSchedule=object)
        ),
    )  # fmt: skip


def tensorflow() -> types.ModuleType:
    """tensorflow.compat.v2."""

    def l2_normalize(x: Tensor, axis: int) -> Tensor:
        return x * x.square().sum(axis, keepdim=True).clamp(min=1e-12).rsqrt()

    def matmul(a: Tensor, b: Tensor, transpose_b: bool) -> Tensor:
        return a @ (b.T if transpose_b else b)

    def softmax_cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
        return -(labels * logits.log_softmax(-1)).sum(-1)

    return stand_in(
        "tensorflow.compat.v2",
        keras=_keras(),
        Module=object,
        function=lambda f: f,
        float32=torch.float32,
        zeros_initializer=lambda: None,
        ones_initializer=lambda: None,
        math=types.SimpleNamespace(l2_normalize=l2_normalize),
        nn=types.SimpleNamespace(softmax_cross_entropy_with_logits=softmax_cross_entropy, relu=torch.relu),
        name_scope=lambda name: contextlib.nullcontext(),
        identity=lambda x, name="": x,
        norm=lambda x, ord: _value(x).norm(),
        greater=lambda a, b: a > b,
        where=torch.where,
        multiply=lambda a, b: a * _value(b),
        group=lambda *done: None,
        split=lambda x, parts, axis: x.chunk(parts, axis),
        shape=lambda x: x.shape,
        range=torch.arange,
        one_hot=lambda index, depth: F.one_hot(index, depth).double(),
        matmul=matmul,
        concat=torch.cat,
        reduce_mean=torch.mean,
    )
