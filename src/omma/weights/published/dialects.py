"""What networks are called in the files that people publish: for each dialect, the way to timm's names.

A file is known by an anchor, the name of its first layer's weight; whatever stands before it (`module.`,
`teacher.backbone.`, `visual.`) is a wrapper. To add a dialect, add an entry to DIALECTS: the first that fits
is taken. What names alone do not settle (queries, keys and values apart, say), families/ does.
"""

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from omma.weights.published.dalle import from_dalle
from omma.weights.published.jax import from_jax
from omma.weights.published.names import Names

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One way to name a network's tensors.

    name: as reports say it. anchor: the first layer's weight. shows: names that are there too, under the same
    wrapper. marks: what some name of the whole file matches. rules: regular expressions that lead to timm's
    names, applied one after the other; queries, keys and values of their own become attn.q, attn.k, attn.v.
    outside: beyond the wrapper, what belongs to the network all the same. settings: what the file does not
    say. prepare: done before the rules; returns what it learned.
    """

    name: str
    anchor: str
    shows: tuple[str, ...] = ()
    marks: str = ""
    rules: Rules = ()
    outside: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Names], Mapping[str, Any]] | None = None

    def fits(self, names: Set[str], inner: Set[str]) -> bool:
        """names: of the whole file; inner: those under the wrapper, without it."""
        marked = not self.marks or any(re.search(self.marks, name) for name in names)
        return marked and inner >= set(self.shows)


# ---------------------------------------------------------------- official code in timm's names, or nearly so
TIMM = "patch_embed.proj.weight"
OFFICIAL: Rules = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 trains its layers in chunks
    (r"^(register_tokens|storage_tokens)$", "reg_token"),  # DINOv2, DINOv3
    (r"^(blocks\.\d+\.attn)\.([qkv])_proj\.", r"\1.\2."),  # EVA-02, as all below
    (r"\.attn\.inner_attn_ln\.", ".attn.norm."),
    (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),  # DINOv2's, too
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)

# ---------------------------------------------------------------- CLIP's own code, and open_clip
OPEN_CLIP_SHOWS = ("class_embedding", "positional_embedding", "ln_pre.weight", "ln_post.weight")
OPEN_CLIP: Rules = (
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.ls_([12])\.", r".ls\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)

# ---------------------------------------------------------------- transformers
# Its files keep the names of its version 4; networks of version 5 have newer ones in memory. Both are here.
HF = "embeddings.patch_embeddings.projection.weight"
HF_RULES: Rules = (
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^(encoder\.relative_position_bias|shared_position_bias)\.", "rel_pos_bias."),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
    (r"^(?:encoder\.)?layers\.(\d+)\.(?=blocks|downsample)", r"layers.\1."),  # Swin's stages
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.(?!blocks|downsample)", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.|self\.)?q(?:uery|_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.|self\.)?k(?:ey|_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.|self\.)?v(?:alue|_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (
        r"(\d)\.(?:attention\.|self\.|relative_position_bias\.)*relative_position_",
        r"\1.attn.relative_position_",
    ),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
    (r"\.mlp\.(?:down_proj|weights_out)\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.lambda_([12])$", r".gamma_\1"),
)
HF_CLIP: Rules = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
)

# ---------------------------------------------------------------- ResNet
RESNET_SHOWS = ("bn1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight")
SEQUENTIAL: Rules = (  # lightly's and others' nn.Sequential of torchvision's children
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    *((rf"^{i + 3}\.", f"layer{i}.") for i in range(1, 5)),
)

DIALECTS = (
    Dialect(
        name="BEiT v2's names",
        anchor=TIMM,
        marks=r"(^|\.)cls_pt_layers\.",
        rules=OFFICIAL,
        settings={"normalised": "ImageNet's"},
    ),
    Dialect(  # of BEiT's form, whose other files want .5
        name="SimMIM's names",
        anchor=TIMM,
        shows=("mask_token", "rel_pos_bias.relative_position_bias_table"),
        marks=r"(^|\.)decoder\.0\.weight$",
        rules=OFFICIAL,
        settings={"normalised": "ImageNet's"},
    ),
    Dialect(name="timm's names", anchor=TIMM, rules=OFFICIAL),
    Dialect(
        name="CLIP's names (OpenAI's file)",
        anchor="conv1.weight",
        shows=OPEN_CLIP_SHOWS,
        marks=r"(^|\.)input_resolution$",
        rules=OPEN_CLIP,
        settings={"mlp": "quickgelu"},
    ),
    Dialect(name="open_clip's names", anchor="conv1.weight", shows=OPEN_CLIP_SHOWS, rules=OPEN_CLIP),
    Dialect(
        name="transformers' names (CLIP)",
        anchor="embeddings.patch_embedding.weight",
        shows=("embeddings.class_embedding", "pre_layrnorm.weight", "post_layernorm.weight"),
        rules=HF_CLIP,
        settings={"likely_mlp": "quickgelu"},
    ),
    Dialect(name="transformers' names (Swin)", anchor=HF, shows=("embeddings.norm.weight",), rules=HF_RULES),
    Dialect(name="transformers' names (DINOv2)", anchor=HF, marks=r"layer_scale1\.lambda1$", rules=HF_RULES),
    Dialect(
        name="transformers' names (DINOv3)",
        anchor="embeddings.patch_embeddings.weight",
        marks=r"layer_scale1\.lambda1$",
        rules=HF_RULES,
    ),
    Dialect(
        name="transformers' names",  # ViT, DeiT, BEiT, ViTMAE
        anchor=HF,
        rules=HF_RULES,
        outside=("layernorm.weight", "layernorm.bias"),  # of BEiT with a head for masked patches
        settings={"eps": 1e-12},
    ),
    Dialect(
        name="Google's JAX names",
        anchor="embedding/kernel",
        shows=("cls", "Transformer/encoder_norm/scale"),
        prepare=from_jax,
        settings={"normalised": "0.5"},
    ),
    Dialect(
        name="DALL-E's names",
        anchor="blocks.input.w",
        shows=("blocks.group_1.block_1.res_path.conv_1.w",),
        prepare=from_dalle,
        settings={"normalised": "DALL-E's"},
    ),
    Dialect(name="torchvision's names", anchor="conv1.weight", shows=RESNET_SHOWS),
    Dialect(
        name="torchvision's order",
        anchor="0.weight",
        shows=("1.running_mean", "4.0.conv1.weight", "7.0.conv1.weight"),
        rules=SEQUENTIAL,
    ),
)
KNOWN = (
    "ViT, DeiT, CaiT, Swin, BEiT, EVA, EVA-02, DINO, iBOT, DINOv2, DINOv3, MAE, MoCo v3, SimMIM, CLIP, "
    "ResNet, DALL-E's tokenizer"
)
