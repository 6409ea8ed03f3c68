"""Initial weights as published codes draw them: a backbone's option `init`.

Where a code sets a parameter several times, its last value counts. Norms start as the identity and
LayerScale at its option's value in all of them. The relative positions' tables are the family's: zeros in
BEiT's, a normal distribution of deviation .02 in Swin's.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from omma.core.checks import one_of

Draw = Callable[[Tensor], object]
QUERIES = ("qkv", "q_proj", "k_proj", "v_proj")  # layers' names


# ---------------------------------------------------------------- distributions
def normal(std: float) -> Draw:
    """Normal, in effect also where codes truncate at +-2."""
    return lambda x: nn.init.trunc_normal_(x, std=std)


def one_sigma(std: float) -> Draw:
    """Normal, truncated at one deviation; .54 times `std` is then the deviation [Bao 2021's code]."""
    return lambda x: nn.init.trunc_normal_(x, std=std, a=-std, b=std)


def by_width(x: Tensor) -> None:
    """Normal of deviation width^-1/2."""
    nn.init.normal_(x, std=x.shape[-1] ** -0.5)


def xavier(weight: Tensor) -> None:
    """Uniform in +-sqrt(6 / (fan in + fan out)) [Glorot 2010], of a kernel as of a linear layer."""
    nn.init.xavier_uniform_(weight.view(len(weight), -1))


def xavier_normal(weight: Tensor) -> None:
    """Normal of deviation sqrt(2 / (fan in + fan out))."""
    nn.init.xavier_normal_(weight)


def by_fan_in(weight: Tensor) -> None:
    """Uniform in +-fan_in^-1/2, PyTorch's default for linear and convolutional layers."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


def xavier_each(weight: Tensor) -> None:
    """`xavier` for queries, keys and values, each by itself."""
    for each in weight.split(weight.shape[1]):
        nn.init.xavier_uniform_(each)


# ---------------------------------------------------------------- schemes
@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Distributions of each kind of parameter."""

    patch: Draw  # the patch embedding's kernel ...
    patch_bias: bool = False  # ... and its bias: PyTorch's default, or else zeros
    qkv: Draw
    proj: Draw
    mlp: Draw  # and other linear layers
    mlp_bias: bool = False  # PyTorch's default; biases are zeros else, and in attention
    token: Draw  # class and distillation token
    register: Draw
    positions: Draw  # learned ones
    rescaled: bool = False  # divide the last matrix of each branch by sqrt(2 layer) [Bao 2021, 2.4]
    # multiply values' and the last matrices of branches with a norm within (sub-LN) by sqrt(log(2 depth))
    sub_norm: bool = False


def _scheme(matrices: Draw, tokens: Draw, **other: Any) -> Scheme:
    """One distribution for all matrices, one for tokens and positions, except what `other` says."""
    kinds: dict[str, Any] = dict.fromkeys(("patch", "qkv", "proj", "mlp"), matrices)
    kinds |= dict.fromkeys(("token", "register", "positions"), tokens)
    return Scheme(**kinds | other)


_DEIT = _scheme(normal(0.02), normal(0.02), patch=by_fan_in, patch_bias=True)
_BEIT = _scheme(one_sigma(0.02), one_sigma(0.02), rescaled=True)
SCHEMES: Mapping[str, Scheme] = MappingProxyType({
    "vit": _scheme(normal(0.02), normal(0.02), patch=xavier),
    "deit": _DEIT,  # as timm 0.3.2, its code's
    "dino": _DEIT,  # iBOT's, too
    "dinov2": replace(_DEIT, token=normal(1e-6), register=normal(1e-6)),
    "moco": _scheme(xavier, normal(0.02), qkv=xavier_each, token=normal(1e-6)),  # v3
    "mae": _scheme(xavier, normal(0.02), patch_bias=True),
    "beit": _BEIT,
    "simmim": _BEIT,
    "eva": _scheme(one_sigma(0.015), one_sigma(0.015), rescaled=True),
    "eva02": _scheme(xavier_normal, one_sigma(0.02), patch=xavier, patch_bias=True, sub_norm=True),
    # OpenAI's code leaves the layers of its vision tower as PyTorch makes them
    "clip": _scheme(by_fan_in, by_width, qkv=xavier, patch_bias=True, mlp_bias=True),
})  # fmt: skip
# BEiT's family: omma's own values are rescaled, too
EVA = MappingProxyType({**SCHEMES, "vit": replace(SCHEMES["vit"], rescaled=True)})
# Swin's: SimMIM draws a Swin as its paper's code does
SWIN = MappingProxyType({**SCHEMES, "simmim": _DEIT})


def scheme_of(network: Any) -> Scheme:
    """The distributions that a backbone's initial weights were drawn from: a head's beside it are, too."""
    return (SWIN if network.hierarchical else SCHEMES)[network.init]


@torch.no_grad()
def initialise(network: Any, name: str, schemes: Mapping[str, Scheme] = SCHEMES) -> None:
    """Draw a transformer's weights, in the order of its layers; those of `patch_embed` are "vit"'s already.

    network: one with `patch_embed.proj`, `repeated()`, and perhaps tokens and `pos_embed`; parameters that
    are not trained keep their values. Raises ValueError for an unknown name.
    """
    one_of("init", name, tuple(schemes))
    scheme = schemes[name]
    network.init = name
    if name != "vit":
        _layer(network.patch_embed.proj, scheme.patch, scheme.patch_bias)
    for path, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            kind = path.rpartition(".")[2]
            attention = dict.fromkeys(QUERIES, scheme.qkv) | {"proj": scheme.proj}
            _layer(layer, attention.get(kind, scheme.mlp), scheme.mlp_bias and kind not in attention)
    if scheme.rescaled:
        for i, block in enumerate(network.repeated(), start=1):
            for path, layer in block.named_modules():
                if path in ("attn.proj", "mlp.fc2"):
                    layer.weight.div_((2 * i) ** 0.5)
    if scheme.sub_norm:
        _scale_sub_norms(network.repeated())
    drawn = {"cls_token": scheme.token, "dist_token": scheme.token, "reg_token": scheme.register}
    for parameter, draw in {**drawn, "pos_embed": scheme.positions}.items():
        values = getattr(network, parameter, None)
        if values is not None and values.requires_grad:
            draw(values)


def _layer(layer: Any, draw: Draw, default_bias: bool) -> None:
    draw(layer.weight)
    if layer.bias is None:
        return
    if default_bias:
        bound = layer.weight[0].numel() ** -0.5
        nn.init.uniform_(layer.bias, -bound, bound)
    else:
        nn.init.zeros_(layer.bias)


def _scale_sub_norms(blocks: list[Any]) -> None:
    """EVA-02's factor of matrices before and after the norms within its branches."""
    factor = math.log(2 * len(blocks)) ** 0.5
    for block in blocks:
        if isinstance(getattr(block.mlp, "norm", None), nn.LayerNorm):
            layers = [block.attn.proj, *(m for m in block.mlp.modules() if isinstance(m, nn.Linear))]
            layers += [block.attn.v_proj] if hasattr(block.attn, "v_proj") else []
            for layer in layers:
                layer.weight.mul_(factor)
