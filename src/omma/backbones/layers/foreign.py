"""Adapters for other libraries' networks: their parameter names, synchronised batch norms, measured sizes."""

import copy
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import dropwhile, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from omma.backbones.layers.nonlocal_block import NonLocal
from omma.core.errors import line
from omma.ops.batch_norm import BatchNorm

# entries of feature_info before the first stage
STEM = re.compile(r"(?i)(.*\.)?(stem|conv|bn1$|act1$|norm0$|layer0$)")


MOST_ARGUMENT = 65_536  # of an integer: no network's width or number of blocks comes near
MOST_DEPTH = 1000  # blocks
# arguments of timm.create_model that read files, or that omma sets itself
OWN_ARGUMENTS = ("checkpoint_path", "cache_dir", "num_classes", "in_chans", "img_size", "features_only")


def json_arguments(text: str) -> dict[str, Any]:
    """The arguments in a JSON object; "" has none. Raises ValueError for anything else."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"arguments={text[:80]!r}: no JSON ({line(error)})") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"arguments={text[:80]!r}: a JSON object is expected")
    return arguments


def checked_arguments(text: str) -> dict[str, Any]:
    """Further arguments of timm.create_model from JSON; ValueError for any that timm should not get."""
    arguments = json_arguments(text)
    for name, value in arguments.items():
        if name in OWN_ARGUMENTS or name.startswith("pretrained"):
            raise ValueError(f"the argument {name} of timm's networks cannot be set")
        values = value if isinstance(value, list) else [value]
        plain = all(isinstance(v, bool | str) or v is None or _small(v) for v in values)
        deep = any(word in name for word in ("depth", "layers", "blocks"))
        if not plain or (deep and sum(v for v in values if isinstance(v, int | float)) > MOST_DEPTH):
            raise ValueError(f"the argument {name} of timm's networks cannot be {str(value)[:40]}")
    return arguments


def _small(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= MOST_ARGUMENT


# ---------------------------------------------------------------- modules under their own names
def adopt(module: nn.Module, other: nn.Module) -> nn.Module:
    """`module` shares the parameters, buffers and children of `other`, under the same names, from now on."""
    for registry in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        setattr(module, registry, getattr(other, registry))
    return module


class Followed(nn.Module):
    """A stage and the block that follows it, with the stage's parameter names."""

    def __init__(self, stage: nn.Module, block: NonLocal) -> None:
        super().__init__()
        self._stage, self._block = (stage,), (block,)  # the block is registered with the network
        adopt(self, stage)

    def train(self, mode: bool = True) -> "Followed":
        super().train(mode)
        self._stage[0].training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self._block[0](self._stage[0](x))


class _BatchNormAct(BatchNorm):
    """timm's batch norm with an activation."""

    def forward(self, input: Tensor) -> Tensor:
        drop, act = self._modules["drop"], self._modules["act"]
        assert drop is not None
        assert act is not None
        return act(drop(super().forward(input)))


def share_statistics(network: nn.Module) -> None:
    """Replace batch norms by omma's, with statistics over all processes, which accept a batch of one."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            kind = {"BatchNorm2d": BatchNorm, "BatchNormAct2d": _BatchNormAct}.get(type(child).__name__)
            if kind is not None:
                assert isinstance(child, nn.BatchNorm2d)
                c = child
                ours = kind(c.num_features, c.eps, c.momentum, c.affine, c.track_running_stats)
                setattr(module, name, adopt(ours, child))


def drop_nothing(network: nn.Module) -> None:
    """Turn off the stochastic depth of timm's and torchvision's modules, in training too."""
    for module in network.modules():
        for kind, rate in (("DropPath", "drop_prob"), ("StochasticDepth", "p")):
            if type(module).__name__ == kind:
                setattr(module, rate, 0.0)


class Trunk(nn.Module):
    """Children of a network, and those of its lists, applied one after the other."""

    def __init__(self, children: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.order = tuple(
            step
            for name, child in children.items()
            for step in (
                [f"{name}.{i}" for i in range(len(child))] if isinstance(child, nn.ModuleList) else [name]
            )
        )

    def forward_features(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.get_submodule(name)(x)
        return x


class NoMap(ValueError):
    """A network that ends in no single map of features."""


# ---------------------------------------------------------------- measured without computing
def without_values(network: nn.Module) -> Any:
    """A copy on the meta device, in evaluation mode; no memory is allocated."""
    memo: dict[int, Any] = {}
    for p in network.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(network, memo).eval()


@torch.no_grad()
def probe(twin: Any, name: str, channels: int, size: tuple[int, int]) -> Tensor:
    """The feature map of one image, on the meta device (twin: see `without_values`).

    Raises ValueError for a size that the network cannot read, and NoMap for a network with several maps.
    """
    x = _run(twin, twin.forward_features, name, channels, size)
    if not isinstance(x, Tensor) or x.ndim not in (3, 4):
        raise NoMap(f"{name} has no single map of features")
    return x


@torch.no_grad()
def vector(twin: Any, name: str, channels: int, size: tuple[int, int]) -> Tensor:
    """The network's output [1, d] for one image. Raises ValueError as `probe`, and if it gives several."""
    x = _run(twin, twin, name, channels, size)
    if not isinstance(x, Tensor) or x.ndim != 2:
        raise ValueError(f"{name} gives neither a map of features nor one vector; choose another network")
    return x


def _run(twin: Any, call: Any, name: str, channels: int, size: tuple[int, int]) -> Any:
    """What a function of the network returns for an image without values; ValueError if it cannot read it."""
    weight = next(p for p in twin.parameters() if p.ndim > 1)
    try:
        return call(torch.empty(1, channels, *size, dtype=weight.dtype, device="meta"))
    except (AssertionError, RuntimeError, ValueError) as error:
        own = (getattr(twin, "pretrained_cfg", None) or {}).get("input_size")
        remedy = f" (its own size is {own[1]}x{own[2]})" if own else ""
        why = f": {line(error)}" if str(error) else ""
        raise ValueError(f"{name} cannot read images of {size[0]}x{size[1]} px{remedy}{why}") from error


def shapes(
    twin: Any, name: str, channels: int, size: tuple[int, int], modules: Sequence[str]
) -> list[tuple[int, ...]]:
    """Shapes of the named modules' outputs for one image."""
    outputs: dict[str, tuple[int, ...]] = {}
    handles = [
        twin.get_submodule(module).register_forward_hook(
            lambda _, __, output, module=module: outputs.update({module: tuple(output.shape)})
        )
        for module in modules
    ]
    probe(twin, name, channels, size)
    for handle in handles:
        handle.remove()
    return [outputs[module] for module in modules]


def arrange(network: Any, name: str, n: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of n tokens: the patch embedding's, else the grid nearest to the image's shape."""
    embed: Any = getattr(network, "patch_embed", None)
    if hasattr(embed, "dynamic_feat_size"):
        rows, columns = embed.dynamic_feat_size(size)
        if rows * columns == n:
            return rows, columns
    grids = [(rows, n // rows) for rows in range(1, n + 1) if n % rows == 0]
    error, nearest = min((abs(math.log(r * size[1] / (c * size[0]))), (r, c)) for r, c in grids)
    if error > math.log(2):
        raise NoMap(f"{name}: {n} tokens of {size[0]}x{size[1]} px form no grid; choose another network")
    return nearest


def stride(twin: Any, name: str, channels: int) -> int:
    """Pixels per feature of the map, along a side: from timm's feature_info, else measured."""
    if hasattr(twin, "feature_info"):
        return twin.feature_info[-1]["reduction"]
    # the difference of two sizes cancels what borders take away
    with suppress(ValueError):
        small, large = (probe(twin, name, channels, (size, size)).shape[2] for size in (256, 512))
        return 256 // (large - small)
    return 224 // probe(twin, name, channels, (224, 224)).shape[2]  # windows of 7 cells fit this size only


def stages(network: Any) -> dict[int, str]:
    """The last module of each stage, by number; 1 is the first after the stem.

    Stages are those of timm's feature_info; VGG's and AlexNet's end before each max-pooling, GoogLeNet's have
    the numbers of its paper.
    """
    if hasattr(network, "feature_info"):
        modules = dict(network.named_modules())
        listed = [entry["module"] for entry in network.feature_info]
        return {i: name for i, name in enumerate(dropwhile(STEM.match, listed), 1) if name in modules}
    if hasattr(network, "inception3b"):
        return {3: "inception3b", 4: "inception4e", 5: "inception5b"}
    if hasattr(network, "layer4"):
        return {i: f"layer{i}" for i in range(1, 5)}
    features = dict(network.features.named_children()) if hasattr(network, "features") else {}
    before = [f"features.{a}" for a, b in pairwise(features) if isinstance(features[b], nn.MaxPool2d)]
    return dict(enumerate(before, 1)) if len(before) > 1 else {}
