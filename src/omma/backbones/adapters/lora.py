"""LoRA: a trained update of low rank beside frozen weights [Hu 2021, arXiv 2106.09685].

h = W x + (alpha / r) B A x, with A Kaiming-uniform and B zero, so that training starts from the frozen
network. A convolution of k x k gets A of k x k and B of 1 x 1, as in peft. Layers keep their parameters'
names and get `lora_A.weight` and `lora_B.weight`, peft's names. With W frozen, neither its gradient nor the
input that it would need is kept.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma.core.backbone import Backbone
from omma.ops.linear import Linear, linear_low_rank
from omma.ops.norm import DeferredNorm, norm

# names of the same layer in omma's backbones and in timm's: separate projections, gated MLPs
KIN = {
    "qkv": ("qkv", "q", "k", "v", "kv", "q_proj", "k_proj", "v_proj"),
    "proj": ("proj", "out_proj", "o_proj"),
    "fc1": ("fc1", "fc1_g", "fc1_x", "w1", "w12"),
    "fc2": ("fc2", "w2", "w3"),
}
NUMBERED = re.compile(r"(^|\.)\w*\d+\.")  # within one of several blocks: "blocks.3.attn.qkv"


@dataclass(frozen=True, kw_only=True)
class Config:
    """r 2 d parameters for a layer d x d.

    targets: names of layers in the network's blocks, whole ("blocks.0.attn.qkv") or their ends. "qkv" also
    means separate projections, "fc1" and "fc2" a gated MLP's layers. None given: those of attention and MLP
    (qkv, proj, fc1, fc2: 16 r d parameters a block), or all convolutions but grouped ones in a network
    without. Raises ValueError for values out of range.
    """

    rank: int = 8
    alpha: float = 16.0  # the update is scaled by alpha / rank
    dropout: float = 0.0  # of the update's input
    targets: str = ""  # "qkv,proj"; in Python a sequence of names too

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ValueError(f"--adapt.rank {self.rank}: must be whole and at least 1")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"--adapt.alpha {self.alpha}: must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--adapt.dropout {self.dropout}: must be in [0, 1)")
        given: Any = self.targets
        if not isinstance(given, str):
            object.__setattr__(self, "targets", ",".join(given))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the layers to adapt; empty: the usual ones."""
        return tuple(name.strip() for name in self.targets.split(",") if name.strip())


class _Lora:
    """What a layer's class is mixed with: the layer's own product plus the update."""

    of_adapter = True  # dropout follows the network's training mode
    lora_A: Any
    lora_B: Any
    rate: float  # of dropout
    factor: float  # alpha / rank
    training: bool


class _LoraLinear(_Lora):
    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Float[Tensor, "*b d"] | DeferredNorm) -> Float[Tensor, "*b o"]:
        x = norm(*input) if isinstance(input, DeferredNorm) else input
        rows = x.flatten(0, -2)  # the sum is written in place, which a view of it would make slow
        frozen = not self.weight.requires_grad and (self.bias is None or not self.bias.requires_grad)
        a, b, drops = self.lora_A.weight, self.lora_B.weight, self.training and self.rate > 0
        if frozen and not drops and not torch.compiler.is_compiling():
            return linear_low_rank(rows, self.weight, self.bias, a, b, self.factor).unflatten(0, x.shape[:-1])
        y: Tensor = super().forward(rows)  # pyright: ignore[reportAttributeAccessIssue]
        low = F.linear(F.dropout(rows, self.rate, self.training), a)
        return y.addmm_(low, b.t(), alpha=self.factor).unflatten(0, x.shape[:-1])

    def update(self) -> Float[Tensor, "o d"]:
        """(alpha / r) B A."""
        return self.factor * (self.lora_B.weight @ self.lora_A.weight)


class _LoraConv(_Lora):
    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o i j"]:
        y: Tensor = super().forward(input)  # pyright: ignore[reportAttributeAccessIssue]
        low = self.lora_A(F.dropout(input, self.rate, self.training))
        return y.add_(self.lora_B(low), alpha=self.factor)

    def update(self) -> Float[Tensor, "o c h w"]:
        """(alpha / r) B A."""
        return self.factor * torch.einsum("or,rchw->ochw", self.lora_B.weight[:, :, 0, 0], self.lora_A.weight)


@functools.cache
def _adapted(kind: type[nn.Module]) -> Any:
    mixin = _LoraLinear if issubclass(kind, nn.Linear) else _LoraConv
    return type(f"Lora{kind.__name__}", (mixin, kind), {})


def layers(network: nn.Module) -> dict[str, Any]:
    """The network's LoRA layers by name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, _Lora)}


def insert(network: Backbone, config: Config) -> None:
    """Adapt the target layers in place; ValueError if there are none, or if the network bypasses one."""
    chosen = _targets(network, config.names)
    if foreign := {name: layer for name, layer in chosen.items() if type(layer) is nn.Linear}:
        _check_called(network, foreign)
    for layer in chosen.values():
        layer.lora_A, layer.lora_B = _factors(layer, config.rank)
        layer.rate, layer.factor = config.dropout, config.alpha / config.rank
        layer.__class__ = _adapted(type(layer))


def _factors(layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    """A, with torch's own initial values (Kaiming-uniform), and B = 0."""
    like: Any = {"bias": False, "device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        a, b = nn.Linear(layer.in_features, rank, **like), nn.Linear(rank, layer.out_features, **like)
    else:
        shape: Any = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        a = type(layer)(layer.in_channels, rank, *shape, **like)
        b = nn.Conv2d(rank, layer.out_channels, 1, **like)
    nn.init.zeros_(b.weight)
    return a, b


@torch.no_grad()
def merge(network: Backbone) -> None:
    """W + (alpha / r) B A becomes the weight, in place; layers are plain again."""
    for layer in layers(network).values():
        layer.weight += layer.update()
        del layer.lora_A, layer.lora_B, layer.rate, layer.factor
        layer.__class__ = type(layer).__bases__[1]


def _targets(network: Backbone, names: tuple[str, ...]) -> dict[str, Any]:
    """The layers to adapt by name; ValueError if there are none of a name."""
    linear = {n: m for n, m in _in_blocks(network) if type(m) in (Linear, nn.Linear)}
    convolutions = {n: m for n, m in _in_blocks(network) if isinstance(m, nn.Conv2d) and m.groups == 1}
    every = linear | convolutions
    if not names:
        wanted = {name for kin in KIN.values() for name in kin}
        chosen = {n: m for n, m in linear.items() if _leaf(n) in wanted}
        if not (chosen or convolutions):
            raise ValueError(f"{network.name} has no layers that LoRA can adapt: choose another --adapt")
        return chosen or convolutions
    leaves = {_leaf(n) for n in every}
    for name in names:
        if name not in every and leaves.isdisjoint(KIN.get(name, (name,))):
            has = ", ".join(sorted(leaves)) or "none"
            raise ValueError(
                f"--adapt.targets {name}: {network.name} has no such layer in its blocks; it has {has}"
            )
    wanted = {kin for name in names for kin in KIN.get(name, (name,))}
    return {n: m for n, m in every.items() if _leaf(n) in wanted or n in wanted}


def _in_blocks(network: Backbone) -> Iterator[tuple[str, nn.Module]]:
    """The modules within blocks: another library's network does not list them, but numbers them."""
    known = {id(m) for block in network.repeated() for m in block.modules()}
    for name, module in network.named_modules():
        if id(module) in known if known else NUMBERED.search(name):
            yield name, module


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


@torch.no_grad()
def _check_called(network: Backbone, chosen: dict[str, Any]) -> None:
    """Have another library's network call these layers; ValueError for one whose weight it reads itself."""
    for name in chosen:
        parent: Any = network.get_submodule(name.rpartition(".")[0])
        if hasattr(parent, "qkv_bias_separate"):  # timm's BEiT and EVA: then they call `qkv`
            parent.qkv_bias_separate = True
    called: set[str] = set()
    handles = [m.register_forward_hook(lambda *_, n=name: called.add(n)) for name, m in chosen.items()]
    training, size = network.training, getattr(network, "image_size", 224)
    weight = next(network.parameters())
    try:
        network.eval()(weight.new_zeros(1, network.channels, size, size))
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    if missed := sorted(chosen.keys() - called):
        raise ValueError(
            f"{network.name} never calls {missed[0]} as a layer, so LoRA cannot adapt it: name others with "
            "--adapt.targets"
        )
