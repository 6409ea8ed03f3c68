"""BEiT, EVA, EVA-02, DINOv3: transformers with relative or rotary positions, whose keys have no bias."""

from omma.weights.published.families import common
from omma.weights.published.families.common import Built, Said
from omma.weights.published.names import Names

TABLES = {
    "layer": "blocks.0.attn.relative_position_bias_table",
    "shared": "rel_pos_bias.relative_position_bias_table",
}


def eva(t: Names, said: Said) -> Built:
    """Parameters of omma.backbones.eva."""
    dim, patch = common.patch_of(t)
    depth = t.count("blocks")
    common.shape_tokens(t)
    absolute, gate = "pos_embed" in t, "blocks.0.mlp.fc1_g.weight" in t
    apart = absolute and gate and "blocks.0.attn.q.weight" in t  # EVA-02 B and L
    for i in range(depth):
        block = f"blocks.{i}"
        common.name_mlp(t, block, fused=False)
        for j in (1, 2):
            if f"{block}.ls{j}.gamma" in t:
                t.move(f"{block}.ls{j}.gamma", f"{block}.gamma_{j}")
        if apart:
            _keep_apart(t, block)
        else:
            common.fuse_qkv(t, block)
            _without_key_bias(t, block, rotary=not absolute)
    hidden, double = common.hidden_of(t)
    mlp = "split_swiglu" if gate else "swiglu" if double else said.get("mlp", "gelu")

    bias = next((kind for kind, table in TABLES.items() if table in t), "none")
    grid, front = common.place_tokens(t, said) if absolute else (None, 0)
    if bias != "none":
        entries, heads = t.matrix(TABLES[bias])
        side = (common.root(t, TABLES[bias], entries - 3) + 1) // 2
        said, grid = {**said, "heads": heads}, grid or (side, side)
    rope = "indexed" if absolute and mlp != "gelu" else "none"
    if not absolute and bias == "none":
        if "cls_token" not in t or "blocks.0.gamma_1" not in t:
            raise ValueError(
                f"{t.source}: has no positions of its own and is no DINOv3; omma does not know it"
            )
        rope, said = "centred", _frequencies(t, dim, said)

    shape = {"depth": depth, "dim": dim, "hidden": hidden}
    forms = ("dinov3",) if rope == "centred" else ("beit", "eva", "eva02")
    wanted = shape | {
        "heads": common.heads_of(t, said, forms, shape),
        "positions": "learned" if absolute else "none",
        "bias": bias,
        "rope": rope,
        "registers": t.shape("reg_token")[1] if "reg_token" in t else 0,
        "layer_scale": 1e-5 if "blocks.0.gamma_1" in t else None,
        "mlp": mlp,
        "qkv_bias": "blocks.0.attn.q_bias" in t or "blocks.0.attn.q_proj.bias" in t,
        "fused": not apart,
        "sub_norm": "blocks.0.mlp.norm.weight" in t,
        "attn_norm": "blocks.0.attn.norm.weight" in t,
        "eps": said.get("eps", 1e-5 if rope == "centred" else 1e-6),
    }
    if "pool" in said or common.pool_of(t) == "mean_fc_norm":  # else the form's own
        wanted["pool"] = said.get("pool", "mean_fc_norm")
    name, options = common.named(forms, f"/{patch}", wanted)
    size = int(said.get("image_size", 224)) if grid is None else max(grid) * patch
    return Built(name, options, size, grid, front)


def _keep_apart(t: Names, block: str) -> None:
    """q_proj, k_proj and v_proj; the paper's code keeps their biases beside them."""
    for p in "qkv":
        for old, new in ((f"{p}.weight", "weight"), (f"{p}.bias", "bias"), (f"{p}_bias", "bias")):
            if f"{block}.attn.{old}" in t:
                t.move(f"{block}.attn.{old}", f"{block}.attn.{p}_proj.{new}")


def _without_key_bias(t: Names, block: str, rotary: bool) -> None:
    """A bias of queries and one of values; DINOv3's files mask the keys', elsewhere softmax ignores it."""
    fused = f"{block}.attn.qkv.bias"
    if fused not in t:
        return
    q, k, v = t.tensors[fused].chunk(3)
    if rotary and f"{fused}_mask" not in t and k.any():
        raise ValueError(
            f"{t.source}: keys have a bias and turn with their positions, which omma does not have"
        )
    t.split(fused, {f"{block}.attn.q_bias": q, f"{block}.attn.v_bias": v})


def _frequencies(t: Names, dim: int, said: Said) -> Said:
    """DINOv3's are powers of 100, a quarter of a head's width; ValueError where others are told."""
    base = float(said.get("rope_base", 100.0))
    if "rope_embed.periods" in t:
        periods = t.tensors["rope_embed.periods"].float().flatten()
        base = float(periods[-1]) ** (len(periods) / max(len(periods) - 1, 1))
        said = {"heads": dim // (4 * max(len(periods), 1)), **said}
    if not 95 < base < 105:  # bf16 in the published files
        raise ValueError(f"{t.source}: rotary positions of base {base:.0f}; omma's have base 100")
    return said
