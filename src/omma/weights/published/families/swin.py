"""Swin: depths, heads and windows follow from its tables of relative positions."""

import math

from omma.weights.published.families import common
from omma.weights.published.families.common import Built, Said
from omma.weights.published.names import Names

EPS = 1e-5
MASK = "layers.0.blocks.1.attn_mask"


def swin(t: Names, said: Said) -> Built:
    """Parameters of omma.backbones.swin."""
    dim, patch = common.patch_of(t)
    stages = t.count("layers")
    if t.has(r"^layers\.0\.downsample\."):  # the paper's code ends a stage with it, timm begins the next
        for i in reversed(range(stages - 1)):
            for part in ("norm.weight", "norm.bias", "reduction.weight"):
                if f"layers.{i}.downsample.{part}" in t:
                    t.move(f"layers.{i}.downsample.{part}", f"layers.{i + 1}.downsample.{part}")
    depths, heads, windows = [], [], []
    for i in range(stages):
        depths.append(t.count(f"layers.{i}.blocks"))
        for j in range(depths[i]):
            common.fuse_qkv(t, f"layers.{i}.blocks.{j}")
        table = f"layers.{i}.blocks.0.attn.relative_position_bias_table"
        entries, count = t.matrix(table)
        windows.append((common.root(t, table, entries) + 1) // 2)
        heads.append(count)
    if not math.isclose(said.get("eps", EPS), EPS):
        raise ValueError(f"{t.source}: layer norms with eps {said['eps']}; omma's Swin has {EPS}")
    wanted = {
        "dim": dim,
        "depths": tuple(depths),
        "heads": tuple(heads),
        "window": windows[0] if len(set(windows)) == 1 else tuple(windows),
        "token_patch": patch,
        "ratio": t.matrix("layers.0.blocks.0.mlp.fc1.weight")[0] / dim,
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in t,
    }
    found = [common.named(("swin",), ending, wanted) for ending in ("", f"/w{windows[0]}")]
    name, options = min(found, key=lambda each: len(each[1]))
    size = windows[-1] * patch * 2 ** (stages - 1)  # the last stage is one window: 7, 12, 6 -> 224, 384, 192
    if MASK in t and t.tensors[MASK].ndim == 3:
        size = math.isqrt(len(t.tensors[MASK])) * windows[0] * patch
    return Built(name, options, int(said.get("image_size", size)))
