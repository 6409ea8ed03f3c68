"""What families share: the name of a shape, heads, tokens, and the grid that positions are made for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omma import backbones
from omma.weights.published.names import Names

# What shapes do not say and config.json or the dialect does: heads, eps, mlp, pool, image_size, ...
Said = Mapping[str, Any]
# Heads of the usual widths, where neither the file nor a model's name tells them.
WIDTHS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16}
SHAPE = ("depth", "dim", "heads", "hidden", "depths", "ratio", "class_layers")
TOKENS = ("cls_token", "dist_token", "reg_token")  # in the order in which they stand before the patches


@dataclass(frozen=True)
class Built:
    """A name for backbones.build, its options, and the grid that positions in the file are made for."""

    name: str
    options: dict[str, Any]
    image_size: int
    grid: tuple[int, int] | None = None
    front: int = 0  # rows of pos_embed before the patches'
    notes: tuple[str, ...] = ()


def named(forms: tuple[str, ...], ending: str, wanted: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The model among `forms` that leaves least to be said, and that.

    ending: "/16". A sized model of another shape is taken only where there is no unsized one.
    """
    stems = dict.fromkeys(n.split("/")[0] for n in backbones.names() if n.split("-")[0] in forms)
    found: list[tuple[int, str, dict[str, Any]]] = []
    for name in [stem + ending for stem in stems] + [form + ending for form in forms]:
        try:
            known = backbones.options(name)
        except ValueError:
            continue  # a form that has no unsized name
        differing = {k: v for k, v in wanted.items() if not _alike(k, known.get(k), v)}
        other = any(k in differing and isinstance(known[k], int | float | tuple) for k in SHAPE)
        found.append((len(differing) + 100 * other, name, differing))
    _, name, differing = min(found, key=lambda each: each[0])
    return name, differing


def _alike(option: str, known: Any, wanted: Any) -> bool:
    if option == "layer_scale":  # what it starts from is nothing to weights
        return (known is None) == (wanted is None)
    return known == wanted


def heads_of(t: Names, said: Said, forms: tuple[str, ...], shape: Mapping[str, Any]) -> int:
    """As said, or as in the model of this shape that has a name, or as usual for the width."""
    if "heads" in said:
        return int(said["heads"])
    for name in backbones.names():
        known = backbones.options(name) if name.split("-")[0] in forms else {}
        if known and all(known.get(k) == v for k, v in shape.items()):
            return int(known["heads"])
    if shape["dim"] in WIDTHS:
        return WIDTHS[shape["dim"]]
    raise ValueError(
        f"{t.source}: a transformer {shape['dim']} wide does not tell its number of heads; "
        "put the network's config.json beside it"
    )


def patch_of(t: Names) -> tuple[int, int]:
    """Width and patch size of the patch embedding."""
    shape = t.shape("patch_embed.proj.weight")
    if len(shape) != 4 or shape[2] != shape[3] or 0 in shape:
        raise ValueError(
            f"{t.source}: its patch embedding has shape {list(shape)}; omma reads square patches of images"
        )
    if not 2 <= shape[2] <= 64:
        raise ValueError(f"{t.source}: patches of {shape[2]} px; omma's have 2 to 64")
    return shape[0], shape[2]


def root(t: Names, name: str, count: int) -> int:
    """The side of a square of so many places."""
    side = math.isqrt(max(count, 0))
    if side < 1 or side**2 != count:
        raise ValueError(f"{t.source}: {name} is made for {count} places, which form no square")
    return side


def hidden_of(t: Names) -> tuple[int, bool]:
    """Width within the perceptrons, and whether their first product is twice as wide: gate and value."""
    hidden = t.matrix("blocks.0.mlp.fc2.weight")[1]
    gated = "blocks.0.mlp.fc1.weight" in t and t.matrix("blocks.0.mlp.fc1.weight")[0] == 2 * hidden
    return hidden, gated


def fuse_qkv(t: Names, block: str) -> None:
    """Queries, keys and values as one product; biases as one, or q_bias and v_bias where keys have none."""
    parts = [f"{block}.attn.{p}" for p in "qkv"]
    if all(f"{p}.weight" in t for p in parts):
        biased = [f"{p}.bias" for p in parts if f"{p}.bias" in t]
        if len(biased) == 3:
            t.fuse(biased, f"{block}.attn.qkv.bias")
        elif biased == [f"{parts[0]}.bias", f"{parts[2]}.bias"]:
            t.move(biased[0], f"{block}.attn.q_bias")
            t.move(biased[1], f"{block}.attn.v_bias")
        t.fuse([f"{p}.weight" for p in parts], f"{block}.attn.qkv.weight")


def name_mlp(t: Names, block: str, fused: bool) -> None:
    """A value without a gate is a plain perceptron's; fused: a gate and its value are one product."""
    for p in ("weight", "bias"):
        gate, value, one = (f"{block}.mlp.{x}.{p}" for x in ("fc1_g", "fc1_x", "fc1"))
        if value in t and gate not in t:
            t.move(value, one)
        elif value in t and fused:
            t.fuse([gate, value], one)


def shape_tokens(t: Names) -> None:
    """Tokens and positions as [1, n, d], whatever the file leaves out of it."""
    dim = t.shape("patch_embed.proj.weight")[0]
    for name in (*TOKENS, "pos_embed"):
        shape = t.shape(name) if name in t else (1, 1, dim)
        if not shape or shape[-1] != dim:
            raise ValueError(f"{t.source} is damaged: {name} has shape {list(shape)} in a width of {dim}")
        if len(shape) != 3:
            t.change(name, t.tensors[name].reshape(1, -1, dim), "reshaped")


def prefix_of(t: Names) -> int:
    """Tokens before the patches."""
    return sum(t.shape(name)[1] for name in TOKENS if name in t)


def place_tokens(t: Names, said: Said) -> tuple[tuple[int, int], int]:
    """The grid of pos_embed, and its rows before the patches': of all tokens there, or of none.

    Where only the class token of several has one (DINOv2 with registers), it takes its own into itself.
    """
    n, prefix = t.shape("pos_embed")[1], prefix_of(t)
    for front in dict.fromkeys((prefix, 0, min(prefix, 1))):
        grid = said.get("grid")
        if grid is None or grid[0] * grid[1] != n - front:
            side = math.isqrt(max(n - front, 0))
            grid = (side, side) if side and side**2 == n - front else None
        if grid is None:
            continue
        if front == 1 < prefix and "cls_token" in t:
            places = t.tensors["pos_embed"]
            t.change("cls_token", t.tensors["cls_token"] + places[:, :1], "its position added")
            t.change("pos_embed", places[:, 1:], "the class token's taken off")
            front = 0
        return grid, front
    raise ValueError(
        f"{t.source}: pos_embed has {n} places ({prefix} before the patches), which form no square"
    )


def pool_of(t: Names) -> str:
    """Where the last norm is."""
    if "fc_norm.weight" in t and "norm.weight" not in t:
        return "mean_fc_norm"
    return "token" if "cls_token" in t else "mean"
