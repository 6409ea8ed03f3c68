"""BEiT, EVA, EVA-02, DINOv3: transformers with relative or rotary positions and no bias on keys."""

from omma.weights.published.families import common
from omma.weights.published.families.common import NetworkSpec, Settings
from omma.weights.published.names import Names

TABLES = {
    "layer": "blocks.0.attn.relative_position_bias_table",
    "shared": "rel_pos_bias.relative_position_bias_table",
}


def eva(t: Names, settings: Settings) -> NetworkSpec:
    """Convert to the parameters of omma.backbones.eva."""
    dim, patch = common.patch_of(t)
    depth = t.count("blocks")
    common.shape_tokens(t)
    absolute, gate = "pos_embed" in t, "blocks.0.mlp.fc1_g.weight" in t
    separate = absolute and gate and "blocks.0.attn.q.weight" in t  # EVA-02 B and L
    for i in range(depth):
        block = f"blocks.{i}"
        common.name_mlp(t, block, fused=False)
        for j in (1, 2):
            if f"{block}.ls{j}.gamma" in t:
                t.move(f"{block}.ls{j}.gamma", f"{block}.gamma_{j}")
        if separate:
            _rename_separate_qkv(t, block)
        else:
            common.fuse_qkv(t, block)
            _without_key_bias(t, block, rotary=not absolute)
    hidden, double = common.hidden_of(t)
    mlp = "split_swiglu" if gate else "swiglu" if double else settings.get("mlp", "gelu")

    bias = next((kind for kind, table in TABLES.items() if table in t), "none")
    grid, prefix_rows = common.grid_of_positions(t, settings) if absolute else (None, 0)
    if bias != "none":
        entries, heads = t.matrix(TABLES[bias])
        side = (common.root(t, TABLES[bias], entries - 3) + 1) // 2
        settings, grid = {**settings, "heads": heads}, grid or (side, side)
    rope = "indexed" if absolute and mlp != "gelu" else "none"
    if not absolute and bias == "none":
        if "cls_token" not in t or "blocks.0.gamma_1" not in t:
            raise ValueError(f"{t.source}: it has no positions and is not DINOv3; omma does not support it")
        rope, settings = "centred", _frequencies(t, dim, settings)

    shape = {"depth": depth, "dim": dim, "hidden": hidden}
    forms = ("dinov3",) if rope == "centred" else ("beit", "eva", "eva02")
    required = shape | {
        "heads": common.heads_of(t, settings, forms, shape),
        "positions": "learned" if absolute else "none",
        "bias": bias,
        "rope": rope,
        "registers": t.shape("reg_token")[1] if "reg_token" in t else 0,
        "layer_scale": 1e-5 if "blocks.0.gamma_1" in t else None,
        "mlp": mlp,
        "qkv_bias": "blocks.0.attn.q_bias" in t or "blocks.0.attn.q_proj.bias" in t,
        "fused": not separate,
        "sub_norm": "blocks.0.mlp.norm.weight" in t,
        "attn_norm": "blocks.0.attn.norm.weight" in t,
        "eps": settings.get("eps", 1e-5 if rope == "centred" else 1e-6),
    }
    if "pool" in settings or common.pool_of(t) == "mean_fc_norm":  # else the model's default
        required["pool"] = settings.get("pool", "mean_fc_norm")
    name, options = common.closest_model(forms, f"/{patch}", required)
    size = int(settings.get("image_size", 224)) if grid is None else max(grid) * patch
    return NetworkSpec(name, options, size, grid, prefix_rows)


def _rename_separate_qkv(t: Names, block: str) -> None:
    """Name them q_proj, k_proj and v_proj; the paper's code has biases outside of these modules."""
    for p in "qkv":
        for old, new in ((f"{p}.weight", "weight"), (f"{p}.bias", "bias"), (f"{p}_bias", "bias")):
            if f"{block}.attn.{old}" in t:
                t.move(f"{block}.attn.{old}", f"{block}.attn.{p}_proj.{new}")


def _without_key_bias(t: Names, block: str, rotary: bool) -> None:
    """Split the bias into q_bias and v_bias. DINOv3 masks the keys'; unrotated, softmax cancels it."""
    fused = f"{block}.attn.qkv.bias"
    if fused not in t:
        return
    q, k, v = t.tensors[fused].chunk(3)
    if rotary and f"{fused}_mask" not in t and k.any():
        raise ValueError(f"{t.source}: keys have a bias beside rotary positions, which omma does not support")
    t.split(fused, {f"{block}.attn.q_bias": q, f"{block}.attn.v_bias": v})


def _frequencies(t: Names, dim: int, settings: Settings) -> Settings:
    """Check that rotary frequencies are DINOv3's, powers of 100, and derive the heads from their number."""
    base = float(settings.get("rope_base", 100.0))
    if "rope_embed.periods" in t:
        periods = t.tensors["rope_embed.periods"].float().flatten()
        base = float(periods[-1]) ** (len(periods) / max(len(periods) - 1, 1))
        settings = {"heads": dim // (4 * max(len(periods), 1)), **settings}
    if not 95 < base < 105:  # the published files store them in bf16
        raise ValueError(f"{t.source}: rotary positions have base {base:.0f}; omma supports base 100")
    return settings
