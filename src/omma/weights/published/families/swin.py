"""Swin; heads and windows follow from its tables of relative positions."""

import math

from omma.weights.published.families import common
from omma.weights.published.families.common import NetworkSpec, Settings
from omma.weights.published.names import Names

EPS = 1e-5
MASK = "layers.0.blocks.1.attn_mask"


def swin(t: Names, settings: Settings) -> NetworkSpec:
    """Convert to the parameters of omma.backbones.swin."""
    dim, patch = common.patch_of(t)
    stages = t.count("layers")
    if t.has(
        r"^layers\.0\.downsample\."
    ):  # the paper's code downsamples at the end of a stage, timm at the start of the next
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
    if not math.isclose(settings.get("eps", EPS), EPS):
        raise ValueError(f"{t.source}: layer norms with eps {settings['eps']}; omma's Swin has {EPS}")
    required = {
        "dim": dim,
        "depths": tuple(depths),
        "heads": tuple(heads),
        "window": windows[0] if len(set(windows)) == 1 else tuple(windows),
        "token_patch": patch,
        "ratio": t.matrix("layers.0.blocks.0.mlp.fc1.weight")[0] / dim,
        "qkv_bias": "layers.0.blocks.0.attn.qkv.bias" in t,
    }
    candidates = [common.closest_model(("swin",), suffix, required) for suffix in ("", f"/w{windows[0]}")]
    name, options = min(candidates, key=lambda candidate: len(candidate[1]))
    size = windows[-1] * patch * 2 ** (stages - 1)  # the last stage is one window: 7, 12, 6 -> 224, 384, 192
    if MASK in t and t.tensors[MASK].ndim == 3:
        size = math.isqrt(len(t.tensors[MASK])) * windows[0] * patch
    return NetworkSpec(name, options, int(settings.get("image_size", size)))
