"""Convert a network to transformers: its configuration, and its tensors under the names of published files.

Every version of transformers reads the names and layouts of published files, whatever its modules are called.
What only transformers' network has is written as values without effect (layer scale of ones, biases and
mask tokens of zeros); what only omma's has is folded into a neighbour where that is exact (positions of
registers).
"""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from omma import backbones
from omma.backbones.cait import CaiT
from omma.backbones.eva import Eva
from omma.backbones.swin import Swin
from omma.backbones.vit import ViT
from omma.core.protocols import Backbone
from omma.weights.export.check import Sizes

State = dict[str, Tensor]
INTERPOLATED = "transformers reads other image sizes with interpolate_pos_encoding=True"
DIFFERENTLY = "for other image sizes transformers interpolates positions differently from this network"


class HfNetwork(NamedTuple):
    """A network in transformers' form."""

    kind: str  # prefix of its classes: "ViT" for ViTConfig and ViTModel
    config: dict[str, Any]
    state: State
    prefix: int  # number of tokens before the patches
    sizes: Sizes
    notes: tuple[str, ...] = ()


def hf_network(encoder: Backbone) -> HfNetwork:
    """The network in transformers' form. Raises ValueError if none there computes the same."""
    if encoder.adapter is not None:
        _refuse(encoder, f"no {encoder.adapter} adapter in its networks", "onnx or torch")
    o: Any = SimpleNamespace(**(backbones.options(encoder.name) | encoder.spec()))
    state = {name: x.detach() for name, x in encoder.state_dict().items()}
    if isinstance(encoder, ViT):
        return _vit(encoder, o, state)
    if isinstance(encoder, Eva):
        return _dinov3(encoder, o, state) if o.rope == "centred" else _beit(encoder, o, state)
    if isinstance(encoder, Swin):
        return _swin(encoder, o, state)
    if isinstance(encoder, CaiT) or encoder.name.startswith("timm:"):
        _refuse(encoder, "no such network")
    _refuse(encoder, "no such network", "onnx or torch")


def _refuse(encoder: Backbone, why: str, instead: str = "timm, onnx or torch") -> NoReturn:
    raise ValueError(f"transformers has {why}: export {encoder.name} as {instead} instead")


# ---------------------------------------------------------------- shared
BERT_NAMES = {
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}  # fmt: skip


def _config(o: Any) -> dict[str, Any]:
    """The settings that all plain transformers have."""
    config = {"hidden_size": o.dim, "num_hidden_layers": o.depth, "num_attention_heads": o.heads}
    config |= {"intermediate_size": o.hidden, "layer_norm_eps": o.eps, "image_size": o.image_size}
    return config | {"patch_size": o.patch, "num_channels": o.channels}


def _renamed(state: State, prefix: str, new: str, names: dict[str, str]) -> State:
    """Weights and biases of those modules that exist, under their new names."""
    out = {}
    for old, new_name in names.items():
        for p in ("weight", "bias"):
            if f"{prefix}{old}.{p}" in state:
                out[f"{new}{new_name}.{p}"] = state[f"{prefix}{old}.{p}"]
    return out


def _qkv(state: State, prefix: str, new: Iterable[str], biases: Iterable[bool]) -> State:
    """Separate queries, keys and values, named `new`; biases: whether transformers' module has one each."""
    out = {}
    fused = state.get(f"{prefix}qkv.weight")
    for i, (name, module, biased) in enumerate(zip("qkv", new, biases, strict=True)):
        weight = state[f"{prefix}{name}_proj.weight"] if fused is None else fused.chunk(3)[i]
        out[f"{module}.weight"] = weight
        if not biased:
            continue
        own = state.get(f"{prefix}{name}_bias", state.get(f"{prefix}{name}_proj.bias"))
        if f"{prefix}qkv.bias" in state:
            own = state[f"{prefix}qkv.bias"].chunk(3)[i]
        out[f"{module}.bias"] = weight.new_zeros(len(weight)) if own is None else own
    return out


def _scales(state: State, old: str, new: str, dim: int) -> State:
    """The layer scale under its new name; ones if the network has none."""
    return {new: state.get(old, torch.ones(dim))}


def _front(encoder: Any, o: Any, state: State) -> tuple[Tensor, Tensor | None, Tensor]:
    """Positions of class (and distillation) token and patches; registers with theirs; class token."""
    tokens = 2 if o.distilled else 1
    rows, columns = encoder.home
    own = encoder.prefix if o.prefix_positions else 0
    positions = state.get("pos_embed", torch.zeros(1, own + rows * columns, o.dim))
    registers = state.get("reg_token")
    if own and registers is not None:
        registers = registers + positions[:, tokens:own]
    front = positions[:, :tokens] if own else torch.zeros(1, tokens, o.dim)
    return torch.cat([front, positions[:, own:]], 1), registers, state["cls_token"]


# ---------------------------------------------------------------- ViT, DeiT, DINOv2, CLIP
def _vit(encoder: ViT, o: Any, state: State) -> HfNetwork:
    if o.positions == "rope":
        _refuse(encoder, "no rotary positions beside biased keys", "onnx or torch")
    if o.mixer != "softmax":
        _refuse(encoder, f"no mixer like {o.mixer!r}", "onnx or torch")
    if not o.class_token:
        _refuse(encoder, "no such network without class token")
    if o.pool == "mean_fc_norm":
        _refuse(encoder, "no norm after pooling in this network")
    positions, registers, token = _front(encoder, o, state)
    config = _config(o) | {"qkv_bias": o.qkv_bias}
    config["hidden_act"] = "quick_gelu" if o.mlp == "quickgelu" else "gelu"
    plain = registers is None and o.layer_scale is None and o.mlp != "swiglu"
    if o.norm_pre:
        if not plain or o.distilled:
            _refuse(encoder, "a norm before the first block in plain ViTs only")
        return _clip(config, state, positions, token, o)
    if o.distilled and not plain:
        _refuse(encoder, "a distillation token in plain ViTs only")
    out = {"embeddings.cls_token": token, "embeddings.position_embeddings": positions}
    out |= _renamed(state, "", "", {"patch_embed.proj": "embeddings.patch_embeddings.projection"})
    out |= _renamed(state, "", "", {"norm": "layernorm"})
    if not plain:
        return _dinov2(encoder, o, state, config, out, registers)
    if o.distilled:
        out["embeddings.distillation_token"] = state["dist_token"]
    for i in range(o.depth):
        old, new = f"blocks.{i}.", f"encoder.layer.{i}."
        out |= _renamed(state, old, new, BERT_NAMES)
        out |= _qkv(state, f"{old}attn.", _bert(f"{new}attention.attention."), (o.qkv_bias,) * 3)
    # transformers adds a linear pooler; as the identity it returns the class token
    out |= {"pooler.dense.weight": torch.eye(o.dim), "pooler.dense.bias": torch.zeros(o.dim)}
    return HfNetwork(
        "DeiT" if o.distilled else "ViT",
        config | {"pooler_act": "linear"},
        out,
        2 if o.distilled else 1,
        "fixed",
        _interpolated(o),
    )


def _interpolated(o: Any) -> tuple[str, ...]:
    """Notes on the positions of other sizes; transformers' are bicubic without antialiasing."""
    same = getattr(o, "interpolation", "antialias") == "plain" or o.positions == "none"
    return (INTERPOLATED,) if same else (INTERPOLATED, DIFFERENTLY)


def _bert(prefix: str) -> list[str]:
    return [f"{prefix}{name}" for name in ("query", "key", "value")]


def _dinov2(
    encoder: ViT, o: Any, state: State, config: dict[str, Any], out: State, registers: Tensor | None
) -> HfNetwork:
    config.pop("intermediate_size")
    swiglu = o.mlp == "swiglu"
    widths: dict[int, int] = {}  # transformers derives the hidden width from an integer ratio
    for ratio in range(1, 33):
        widths.setdefault((ratio * o.dim * 2 // 3 + 7) // 8 * 8 if swiglu else ratio * o.dim, ratio)
    if o.hidden not in widths:
        _refuse(encoder, f"no such network whose MLP is {o.hidden} wide")
    config |= {"mlp_ratio": widths[o.hidden], "use_swiglu_ffn": swiglu}
    out["embeddings.mask_token"] = torch.zeros(1, o.dim)
    names = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.output.dense"}
    names |= {"mlp.fc1": "mlp.weights_in" if swiglu else "mlp.fc1"}
    names |= {"mlp.fc2": "mlp.weights_out" if swiglu else "mlp.fc2"}
    for i in range(o.depth):
        old, new = f"blocks.{i}.", f"encoder.layer.{i}."
        out |= _renamed(state, old, new, names)
        out |= _qkv(state, f"{old}attn.", _bert(f"{new}attention.attention."), (o.qkv_bias,) * 3)
        for n in (1, 2):
            out |= _scales(state, f"{old}ls{n}.gamma", f"{new}layer_scale{n}.lambda1", o.dim)
    theirs = "plain" if registers is None else "antialias"
    same = o.interpolation == theirs or o.positions == "none"
    sizes, notes = ("multiples", ()) if same else ("fixed", (DIFFERENTLY,))
    if registers is None:
        return HfNetwork("Dinov2", config, out, 1, sizes, notes)
    out["embeddings.register_tokens"] = registers
    config["num_register_tokens"] = o.registers
    return HfNetwork("Dinov2WithRegisters", config, out, encoder.prefix, sizes, notes)


def _clip(config: dict[str, Any], state: State, positions: Tensor, token: Tensor, o: Any) -> HfNetwork:
    config.pop("qkv_bias")
    v = "vision_model."
    out = {f"{v}embeddings.class_embedding": token[0, 0]}
    out |= {f"{v}embeddings.position_embedding.weight": positions[0]}
    names = {"patch_embed.proj": "embeddings.patch_embedding", "norm": "post_layernorm"}
    out |= _renamed(state, "", v, names | {"norm_pre": "pre_layrnorm"})  # spelled so in transformers
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for i in range(o.depth):
        old, new = f"blocks.{i}.", f"{v}encoder.layers.{i}."
        out |= _renamed(state, old, new, names)
        out |= _qkv(state, f"{old}attn.", [f"{new}self_attn.{n}_proj" for n in "qkv"], (True,) * 3)
    note = "omma's patch features are post_layernorm(last_hidden_state)[:, 1:]"
    return HfNetwork("CLIPVision", config, out, 1, "fixed", (*_interpolated(o), note))


# ---------------------------------------------------------------- BEiT, DINOv3, Swin
def _beit(encoder: Eva, o: Any, state: State) -> HfNetwork:
    if o.rope != "none" or o.mlp != "gelu" or o.attn_norm or o.registers:
        _refuse(encoder, "no EVA-02, and no BEiT with these options")
    config = _config(o) | {"hidden_act": "gelu"}
    config |= {"use_relative_position_bias": o.bias == "layer", "drop_path_rate": 0.0}
    config |= {"use_shared_relative_position_bias": o.bias == "shared"}
    config |= {"use_absolute_position_embeddings": o.positions == "learned"}
    config |= {"use_mean_pooling": o.pool == "mean_fc_norm", "layer_scale_init_value": o.layer_scale or 1.0}
    out = {"embeddings.cls_token": state["cls_token"]}
    if o.positions == "learned":
        out["embeddings.position_embeddings"] = state["pos_embed"]
    if o.bias == "shared":
        table = "relative_position_bias_table"
        out[f"encoder.relative_position_bias.{table}"] = state[f"rel_pos_bias.{table}"]
    names = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    out |= _renamed(state, "", "", names | {"fc_norm": "pooler.layernorm"})

    for i in range(o.depth):
        old, new = f"blocks.{i}.", f"encoder.layer.{i}."
        out |= _renamed(state, old, new, BERT_NAMES)
        out |= _qkv(state, f"{old}attn.", _bert(f"{new}attention.attention."), (True, False, True))
        if o.bias == "layer":
            table = "relative_position_bias_table"
            new_name = f"{new}attention.attention.relative_position_bias.{table}"
            out[new_name] = state[f"{old}attn.{table}"]
        for n in (1, 2):
            out |= _scales(state, f"{old}gamma_{n}", f"{new}lambda_{n}", o.dim)
    return HfNetwork("Beit", config, out, 1, "fixed", _interpolated(o))


def _dinov3(encoder: Eva, o: Any, state: State) -> HfNetwork:
    if o.positions != "none" or o.bias != "none" or o.attn_norm or o.sub_norm or o.pool == "mean_fc_norm":
        _refuse(encoder, "no DINOv3 with these options")
    config = _config(o) | {"num_register_tokens": o.registers}
    config |= {"query_bias": o.qkv_bias, "key_bias": False, "value_bias": o.qkv_bias, "hidden_act": "gelu"}
    config |= {"use_gated_mlp": o.mlp != "gelu", "rope_theta": 100.0}
    if o.mlp != "gelu":
        config["hidden_act"] = "silu"
    out = {"embeddings.cls_token": state["cls_token"], "embeddings.mask_token": torch.zeros(1, 1, o.dim)}
    out["embeddings.register_tokens"] = state.get("reg_token", torch.zeros(1, 0, o.dim))
    out |= _renamed(state, "", "", {"patch_embed.proj": "embeddings.patch_embeddings", "norm": "norm"})
    names = {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.o_proj"}
    names |= {"mlp.fc2": "mlp.down_proj", "mlp.fc1_g": "mlp.gate_proj", "mlp.fc1_x": "mlp.up_proj"}
    names |= {"mlp.fc1": "mlp.up_proj"} if o.mlp == "gelu" else {}
    for i in range(o.depth):
        old, new = f"blocks.{i}.", f"layer.{i}."
        out |= _renamed(state, old, new, names)
        biases = (o.qkv_bias, False, o.qkv_bias)
        out |= _qkv(state, f"{old}attn.", [f"{new}attention.{n}_proj" for n in "qkv"], biases)
        if o.mlp == "swiglu":
            for p in ("weight", "bias"):
                gate, value = state[f"{old}mlp.fc1.{p}"].chunk(2)
                out |= {f"{new}mlp.gate_proj.{p}": gate, f"{new}mlp.up_proj.{p}": value}
        for n in (1, 2):
            out |= _scales(state, f"{old}gamma_{n}", f"{new}layer_scale{n}.lambda1", o.dim)
    return HfNetwork("DINOv3ViT", config, out, encoder.prefix, "multiples")


def _swin(encoder: Swin, o: Any, state: State) -> HfNetwork:
    sides = [encoder.grid(o.image_size, o.image_size)[0] * 2**i for i in reversed(range(len(o.depths)))]
    window = o.window if isinstance(o.window, int) else max(o.window)
    if not isinstance(o.window, int) and len(set(o.window)) > 1:
        _refuse(encoder, "one window for all stages only")
    if min(sides) < window:
        why = f"no smaller windows in small stages, which {o.image_size} px needs"
        _refuse(encoder, why, "onnx or torch")
    config = {"image_size": o.image_size, "patch_size": o.token_patch, "num_channels": o.channels}
    config |= {"embed_dim": o.dim, "depths": list(o.depths), "num_heads": list(o.heads), "hidden_act": "gelu"}
    config |= {"window_size": window, "mlp_ratio": o.ratio, "qkv_bias": o.qkv_bias, "layer_norm_eps": 1e-5}
    config["drop_path_rate"] = 0.0
    names = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
    out = _renamed(state, "", "", names | {"patch_embed.norm": "embeddings.norm"})

    table = "relative_position_bias_table"
    for i, depth in enumerate(o.depths):
        if i:  # transformers merges patches at the end of a stage, timm at the start of the next
            merging = {"downsample.norm": "downsample.norm", "downsample.reduction": "downsample.reduction"}
            out |= _renamed(state, f"layers.{i}.", f"encoder.layers.{i - 1}.", merging)
        for j in range(depth):
            old, new = f"layers.{i}.blocks.{j}.", f"encoder.layers.{i}.blocks.{j}."
            out |= _renamed(state, old, new, BERT_NAMES)
            out |= _qkv(state, f"{old}attn.", _bert(f"{new}attention.self."), (o.qkv_bias,) * 3)
            out[f"{new}attention.self.{table}"] = state[f"{old}attn.{table}"]
    return HfNetwork("Swin", config, out, 0, "fixed")
