"""Naming schemes ("dialects") of published files, each with rules that lead to timm's names.

A dialect is identified by an anchor, the name of the first layer's weight; whatever precedes it in the
file (`module.`, `teacher.backbone.`, `visual.`) is a prefix to remove. To add a dialect, add an entry to
DIALECTS: the first that fits is used. What renaming cannot do, such as fusing queries, keys and values,
families/ does.
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

    name: for reports. anchor: the first layer's weight. requires: other names that must exist under the same
    prefix. pattern: a regular expression that some name of the whole file must match; without: one that none
    may match. rules: regular expressions and replacements that lead to timm's names, applied in order;
    separate queries, keys and values become attn.q, attn.k, attn.v. extra_names: names without the prefix
    that belong to the network too. settings: what the file does not say. convert: called before the rules;
    returns further settings.
    """

    name: str
    anchor: str
    requires: tuple[str, ...] = ()
    pattern: str = ""
    without: str = ""
    rules: Rules = ()
    extra_names: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    convert: Callable[[Names], Mapping[str, Any]] | None = None

    def fits(self, names: Set[str], unwrapped: Set[str]) -> bool:
        """names: all names of the file; unwrapped: those under the prefix, without it."""
        matched = not self.pattern or any(re.search(self.pattern, name) for name in names)
        if self.without and any(re.search(self.without, name) for name in names):
            return False
        return matched and unwrapped >= set(self.requires)


# ---------------------------------------------------------------- official code in timm's names, or nearly so
TIMM = "patch_embed.proj.weight"
OFFICIAL: Rules = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 stores its layers in chunks
    (r"^(register_tokens|storage_tokens)$", "reg_token"),  # DINOv2, DINOv3
    (r"^(blocks\.\d+\.attn)\.([qkv])_proj\.", r"\1.\2."),  # EVA-02, as the rules below
    (r"\.attn\.inner_attn_ln\.", ".attn.norm."),
    (r"\.mlp\.ffn_ln\.", ".mlp.norm."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),  # also in DINOv2
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)

# ---------------------------------------------------------------- CLIP's own code, and open_clip
OPEN_CLIP_REQUIRES = ("class_embedding", "positional_embedding", "ln_pre.weight", "ln_post.weight")
OPEN_CLIP_BLOCKS: Rules = (  # also of the text tower (clip.py)
    (r"^transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.ls_([12])\.", r".ls\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
OPEN_CLIP: Rules = (
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    *OPEN_CLIP_BLOCKS,
)

# ---------------------------------------------------------------- transformers
# Its files keep the names of version 4; networks of version 5 use newer names in memory. Both are covered.
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
HF_CLIP_BLOCKS: Rules = (
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
)
HF_CLIP: Rules = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    *HF_CLIP_BLOCKS,
)

# ---------------------------------------------------------------- ResNet
RESNET_REQUIRES = ("bn1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight")
SEQUENTIAL: Rules = (  # an nn.Sequential of torchvision's children, as lightly's
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    *((rf"^{i + 3}\.", f"layer{i}.") for i in range(1, 5)),
)

DIALECTS = (
    Dialect(
        name="BEiT v2's names",
        anchor=TIMM,
        pattern=r"(^|\.)cls_pt_layers\.",
        rules=OFFICIAL,
        settings={"normalised": "ImageNet's"},
    ),
    Dialect(  # shaped like BEiT, whose other files are normalised with .5
        name="SimMIM's names",
        anchor=TIMM,
        requires=("mask_token", "rel_pos_bias.relative_position_bias_table"),
        pattern=r"(^|\.)decoder\.0\.weight$",
        rules=OFFICIAL,
        settings={"normalised": "ImageNet's"},
    ),
    Dialect(
        name="DINOv2's names",
        anchor=TIMM,
        requires=("mask_token", "pos_embed"),
        pattern=r"(^|\.)ls1\.gamma$",
        rules=OFFICIAL,
        settings={"interpolation": "offset"},
    ),
    Dialect(  # with a projection head, or iBOT's mask token
        name="DINO's names",
        anchor=TIMM,
        pattern=r"(^|\.)(head\.last_layer\.|masked_embed$)",
        rules=OFFICIAL,
        settings={"interpolation": "offset"},
    ),
    Dialect(  # as DINO and iBOT publish their backbones
        name="timm's names",
        anchor=TIMM,
        requires=("cls_token", "pos_embed", "norm.weight"),
        without=r"(^|\.)(head|head_dist|fc|classifier|fc_norm|norm_pre|dist_token|ls1|gamma_1|\w*mask_token)(\.|$)",
        rules=OFFICIAL,
        settings={"interpolation": "offset"},
    ),
    Dialect(name="timm's names", anchor=TIMM, rules=OFFICIAL),
    Dialect(
        name="CLIP's names (OpenAI's file)",
        anchor="conv1.weight",
        requires=OPEN_CLIP_REQUIRES,
        pattern=r"(^|\.)input_resolution$",
        rules=OPEN_CLIP,
        settings={"mlp": "quickgelu"},
    ),
    Dialect(name="open_clip's names", anchor="conv1.weight", requires=OPEN_CLIP_REQUIRES, rules=OPEN_CLIP),
    Dialect(
        name="transformers' names (CLIP)",
        anchor="embeddings.patch_embedding.weight",
        requires=("embeddings.class_embedding", "pre_layrnorm.weight", "post_layernorm.weight"),
        rules=HF_CLIP,
        settings={"likely_mlp": "quickgelu", "interpolation": "plain"},
    ),
    Dialect(
        name="transformers' names (Swin)", anchor=HF, requires=("embeddings.norm.weight",), rules=HF_RULES
    ),
    Dialect(
        name="transformers' names (DINOv2)",
        anchor=HF,
        pattern=r"layer_scale1\.lambda1$",
        rules=HF_RULES,
        settings={"interpolation": "plain"},
    ),
    Dialect(
        name="transformers' names (DINOv3)",
        anchor="embeddings.patch_embeddings.weight",
        pattern=r"layer_scale1\.lambda1$",
        rules=HF_RULES,
    ),
    Dialect(
        name="transformers' names",  # ViT, DeiT, BEiT, ViTMAE
        anchor=HF,
        rules=HF_RULES,
        extra_names=("layernorm.weight", "layernorm.bias"),  # of BEiT with its masked-image-modelling head
        settings={"eps": 1e-12, "interpolation": "plain"},
    ),
    Dialect(
        name="Google's JAX names",
        anchor="embedding/kernel",
        requires=("cls", "Transformer/encoder_norm/scale"),
        convert=from_jax,
        settings={"normalised": "0.5"},
    ),
    Dialect(
        name="DALL-E's names",
        anchor="blocks.input.w",
        requires=("blocks.group_1.block_1.res_path.conv_1.w",),
        convert=from_dalle,
        settings={"normalised": "DALL-E's"},
    ),
    Dialect(name="torchvision's names", anchor="conv1.weight", requires=RESNET_REQUIRES),
    Dialect(
        name="torchvision's order",
        anchor="0.weight",
        requires=("1.running_mean", "4.0.conv1.weight", "7.0.conv1.weight"),
        rules=SEQUENTIAL,
    ),
)
SUPPORTED = (
    "ViT, DeiT, CaiT, Swin, BEiT, EVA, EVA-02, DINO, iBOT, DINOv2, DINOv3, MAE, MoCo v3, SimMIM, CLIP, "
    "ResNet, DALL-E's tokenizer"
)
