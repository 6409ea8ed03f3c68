"""What families share: the model of a shape, heads, tokens, fused queries, and the grid of positions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omma import backbones
from omma.weights.published.names import Names

# What the shapes do not say but config.json or the dialect does: heads, eps, mlp, pool, image_size, ...
Settings = Mapping[str, Any]
# Number of heads usual for a width, where neither the file nor a model of this shape says it.
WIDTHS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16}
SHAPE = ("depth", "dim", "heads", "hidden", "depths", "ratio", "class_layers")
TOKENS = ("cls_token", "dist_token", "reg_token")  # in their order before the patches


@dataclass(frozen=True)
class NetworkSpec:
    """Arguments for backbones.build, and the grid of the file's positions."""

    name: str
    options: dict[str, Any]
    image_size: int
    grid: tuple[int, int] | None = None
    prefix_rows: int = 0  # rows of pos_embed before the patches'
    notes: tuple[str, ...] = ()


def closest_model(
    forms: tuple[str, ...], suffix: str, required: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The model of the given families that needs the fewest extra options, and these options.

    suffix: "/16", for example. A model with a size in its name is not used for another shape, unless the
    family has no name without size.
    """
    stems = dict.fromkeys(n.split("/")[0] for n in backbones.names() if n.split("-")[0] in forms)
    candidates: list[tuple[int, str, dict[str, Any]]] = []
    for name in [stem + suffix for stem in stems] + [form + suffix for form in forms]:
        try:
            own = backbones.options(name)
        except ValueError:
            continue  # a family without a name of no size
        differing = {k: v for k, v in required.items() if not _same_option(k, own.get(k), v)}
        other_shape = any(k in differing and isinstance(own[k], int | float | tuple) for k in SHAPE)
        candidates.append((len(differing) + 100 * other_shape, name, differing))
    _, name, differing = min(candidates, key=lambda candidate: candidate[0])
    return name, differing


def _same_option(option: str, own: Any, required: Any) -> bool:
    if option == "layer_scale":  # its initial value does not matter once weights are loaded
        return (own is None) == (required is None)
    return own == required


def heads_of(t: Names, settings: Settings, forms: tuple[str, ...], shape: Mapping[str, Any]) -> int:
    """Number of heads: from the settings, else of the named model of this shape, else usual for the width."""
    if "heads" in settings:
        return int(settings["heads"])
    for name in backbones.names():
        own = backbones.options(name) if name.split("-")[0] in forms else {}
        if own and all(own.get(k) == v for k, v in shape.items()):
            return int(own["heads"])
    if shape["dim"] in WIDTHS:
        return WIDTHS[shape["dim"]]
    raise ValueError(
        f"{t.source}: the number of heads of a transformer {shape['dim']} wide is unknown; "
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
    """The side of a square of `count` entries. Raises ValueError if it is no square number."""
    side = math.isqrt(max(count, 0))
    if side < 1 or side**2 != count:
        raise ValueError(f"{t.source}: {name} has {count} entries, which do not form a square")
    return side


def hidden_of(t: Names) -> tuple[int, bool]:
    """Hidden width of the MLPs, and whether their first layer computes gate and value, twice that width."""
    hidden = t.matrix("blocks.0.mlp.fc2.weight")[1]
    gated = "blocks.0.mlp.fc1.weight" in t and t.matrix("blocks.0.mlp.fc1.weight")[0] == 2 * hidden
    return hidden, gated


def fuse_qkv(t: Names, block: str) -> None:
    """Fuse separate queries, keys and values into attn.qkv; without a key bias, name q_bias and v_bias."""
    names = [f"{block}.attn.{p}" for p in "qkv"]
    if all(f"{p}.weight" in t for p in names):
        biased = [f"{p}.bias" for p in names if f"{p}.bias" in t]
        if len(biased) == 3:
            t.fuse(biased, f"{block}.attn.qkv.bias")
        elif biased == [f"{names[0]}.bias", f"{names[2]}.bias"]:
            t.move(biased[0], f"{block}.attn.q_bias")
            t.move(biased[1], f"{block}.attn.v_bias")
        t.fuse([f"{p}.weight" for p in names], f"{block}.attn.qkv.weight")


def name_mlp(t: Names, block: str, fused: bool) -> None:
    """Name a plain MLP's first layer fc1; fused: concatenate a gated MLP's gate and value into fc1."""
    for p in ("weight", "bias"):
        gate, value, fused_name = (f"{block}.mlp.{x}.{p}" for x in ("fc1_g", "fc1_x", "fc1"))
        if value in t and gate not in t:
            t.move(value, fused_name)
        elif value in t and fused:
            t.fuse([gate, value], fused_name)


def shape_tokens(t: Names) -> None:
    """Reshape tokens and positions to [1, n, d]; files may omit the leading dimensions."""
    dim = t.shape("patch_embed.proj.weight")[0]
    for name in (*TOKENS, "pos_embed"):
        shape = t.shape(name) if name in t else (1, 1, dim)
        if not shape or shape[-1] != dim:
            raise ValueError(f"{t.source} is damaged: {name} has shape {list(shape)}, the width is {dim}")
        if len(shape) != 3:
            t.change(name, t.tensors[name].reshape(1, -1, dim), "reshaped")


def prefix_of(t: Names) -> int:
    """Number of tokens before the patches."""
    return sum(t.shape(name)[1] for name in TOKENS if name in t)


def grid_of_positions(t: Names, settings: Settings) -> tuple[tuple[int, int], int]:
    """The grid of pos_embed, and its number of rows before those of the patches: one per token, or none.

    If only the class token of several tokens has one (DINOv2 with registers), it is added to the token and
    removed from pos_embed.
    """
    n, prefix = t.shape("pos_embed")[1], prefix_of(t)
    for prefix_rows in dict.fromkeys((prefix, 0, min(prefix, 1))):
        grid = settings.get("grid")
        if grid is None or grid[0] * grid[1] != n - prefix_rows:
            side = math.isqrt(max(n - prefix_rows, 0))
            grid = (side, side) if side and side**2 == n - prefix_rows else None
        if grid is None:
            continue
        if prefix_rows == 1 < prefix and "cls_token" in t:
            positions = t.tensors["pos_embed"]
            t.change("cls_token", t.tensors["cls_token"] + positions[:, :1], "its position added")
            t.change("pos_embed", positions[:, 1:], "the class token's row removed")
            prefix_rows = 0
        return grid, prefix_rows
    raise ValueError(
        f"{t.source}: pos_embed has {n} rows ({prefix} before the patches), which do not form a square"
    )


def pool_of(t: Names) -> str:
    """The pooling, as the position of the last norm and the class token imply it."""
    if "fc_norm.weight" in t and "norm.weight" not in t:
        return "mean_fc_norm"
    return "token" if "cls_token" in t else "mean"
