"""ViT, DeiT, MAE, DINO, iBOT, DINOv2, MoCo v3, CLIP's image tower: the plain transformer and its options."""

import torch
from jaxtyping import Float
from torch import Tensor

from omma.ops.positions import sincos_2d
from omma.weights.published.families import common
from omma.weights.published.families.common import Built, Said
from omma.weights.published.names import Names


def vit(t: Names, said: Said) -> Built:
    """Parameters of omma.backbones.vit."""
    dim, patch = common.patch_of(t)
    depth = t.count("blocks")
    common.shape_tokens(t)
    for i in range(depth):
        block = f"blocks.{i}"
        common.fuse_qkv(t, block)
        for j in (1, 2):  # DeiT III [Touvron 2022, arXiv 2204.07118] calls its LayerScale as CaiT does
            if f"{block}.gamma_{j}" in t:
                t.move(f"{block}.gamma_{j}", f"{block}.ls{j}.gamma")
        common.name_mlp(t, block, fused=True)
    hidden, swiglu = common.hidden_of(t)
    shape = {"depth": depth, "dim": dim, "hidden": hidden}
    forms = ("vit", "deit", "dinov2") if patch == 14 else ("vit", "deit")
    clip, notes = "norm_pre.weight" in t, []

    mlp = "swiglu" if swiglu else said.get("mlp")
    if mlp is None:
        mlp = said.get("likely_mlp", "gelu")
        if clip:
            notes.append(
                f"{mlp} assumed: the file does not say which one it is (a config.json beside it may)"
            )

    if "pos_embed" not in t:
        raise ValueError(f"{t.source} has no positions, and does not say which its network has: not read")
    grid, front = common.place_tokens(t, said)
    order = _fixed(t.tensors["pos_embed"][0, front:], grid)
    if order == "rows" and dim == 384 and "heads" not in said:
        # only MoCo v3 puts rows first; its ViT-S has narrow heads [Chen 2021, arXiv 2104.02057, table 3]
        said = {**said, "heads": 12}
        notes.append("12 heads, as in MoCo v3's ViT-S: its positions give it away")

    wanted = shape | {
        "heads": common.heads_of(t, said, forms, shape),
        "pool": common.pool_of(t),
        "positions": "learned" if order is None else "sincos",
        "prefix_positions": front > 0 or common.prefix_of(t) == 0,
        "registers": t.shape("reg_token")[1] if "reg_token" in t else 0,
        "class_token": "cls_token" in t,
        "distilled": "dist_token" in t,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in t else None,
        "mlp": mlp,
        "qkv_bias": "blocks.0.attn.qkv.bias" in t,
        "norm_pre": clip,
        "eps": said.get("eps", 1e-5 if clip else 1e-6),
    }
    name, options = common.named(forms, f"/{patch}", wanted)
    return Built(name, options, max(grid) * patch, grid, front, tuple(notes))


def _fixed(places: Float[Tensor, "n d"], grid: tuple[int, int]) -> str | None:
    """Are they sines and cosines? Of "columns" or "rows" first, or None."""
    width = places.shape[1]
    if width % 4:
        return None
    fixed, places = sincos_2d(width, grid), places.float()
    for order, wanted in (("columns", fixed), ("rows", fixed.roll(width // 2, 1))):
        if torch.allclose(places, wanted, rtol=0, atol=0.01):  # half precision
            return order
    return None
