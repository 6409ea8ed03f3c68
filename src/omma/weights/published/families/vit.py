"""ViT, DeiT, MAE, DINO, iBOT, DINOv2, MoCo v3 and CLIP's image tower: the plain transformer."""

import torch
from jaxtyping import Float
from torch import Tensor

from omma.ops.positions import sincos_2d
from omma.weights.published.families import common
from omma.weights.published.families.common import NetworkSpec, Settings
from omma.weights.published.names import Names


def vit(t: Names, settings: Settings) -> NetworkSpec:
    """Convert to the parameters of omma.backbones.vit."""
    dim, patch = common.patch_of(t)
    depth = t.count("blocks")
    common.shape_tokens(t)
    for i in range(depth):
        block = f"blocks.{i}"
        common.fuse_qkv(t, block)
        for j in (1, 2):  # DeiT III [Touvron 2022, arXiv 2204.07118] names LayerScale as CaiT does
            if f"{block}.gamma_{j}" in t:
                t.move(f"{block}.gamma_{j}", f"{block}.ls{j}.gamma")
        common.name_mlp(t, block, fused=True)
    hidden, swiglu = common.hidden_of(t)
    shape = {"depth": depth, "dim": dim, "hidden": hidden}
    forms = ("vit", "deit", "dinov2") if patch == 14 else ("vit", "deit")
    clip, notes = "norm_pre.weight" in t, []

    mlp = "swiglu" if swiglu else settings.get("mlp")
    if mlp is None:
        mlp = settings.get("likely_mlp", "gelu")
        if clip:
            notes.append(f"{mlp} assumed: the file does not say which activation; a config.json may")

    if "pos_embed" not in t:
        raise ValueError(f"{t.source} has no positions, so which ones its network uses is unknown: refused")
    grid, prefix_rows = common.grid_of_positions(t, settings)
    order = _sincos_order(t.tensors["pos_embed"][0, prefix_rows:], grid)
    if order == "rows" and dim == 384 and "heads" not in settings:
        # only MoCo v3 encodes rows first; its ViT-S has 12 heads [Chen 2021, arXiv 2104.02057, table 3]
        settings = {**settings, "heads": 12}
        notes.append("12 heads assumed, as in MoCo v3's ViT-S, which has the same positions")

    required = shape | {
        "heads": common.heads_of(t, settings, forms, shape),
        "pool": common.pool_of(t),
        "positions": "learned" if order is None else "sincos",
        "prefix_positions": prefix_rows > 0 or common.prefix_of(t) == 0,
        "registers": t.shape("reg_token")[1] if "reg_token" in t else 0,
        "class_token": "cls_token" in t,
        "distilled": "dist_token" in t,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in t else None,
        "mlp": mlp,
        "qkv_bias": "blocks.0.attn.qkv.bias" in t,
        "norm_pre": clip,
        "eps": settings.get("eps", 1e-5 if clip else 1e-6),
        "interpolation": _interpolation(t, settings, order),
    }
    if required["interpolation"] == "offset":
        notes.append("positions of other image sizes are interpolated as in DINO's code")
    name, options = common.closest_model(forms, f"/{patch}", required)
    return NetworkSpec(name, options, max(grid) * patch, grid, prefix_rows, tuple(notes))


def _interpolation(t: Names, settings: Settings, order: str | None) -> str:
    """How the network's own code resamples positions; it depends on the library, registers, and positions."""
    how = str(settings.get("interpolation", "antialias"))
    if "reg_token" in t or (how == "offset" and order is not None):  # sine-cosine: not DINO's
        return "antialias"
    return how


def _sincos_order(positions: Float[Tensor, "n d"], grid: tuple[int, int]) -> str | None:
    """For sine-cosine positions, which axis comes first: "columns" or "rows"; None for learned ones."""
    width = positions.shape[1]
    if width % 4:
        return None
    sincos, positions = sincos_2d(width, grid), positions.float()
    for order, expected in (("columns", sincos), ("rows", sincos.roll(width // 2, 1))):
        if torch.allclose(positions, expected, rtol=0, atol=0.01):  # tolerates half precision
            return order
    return None
