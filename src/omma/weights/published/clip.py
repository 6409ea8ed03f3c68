"""Convert the text tower of published CLIP weights (OpenAI's, open_clip's, transformers') to omma's form."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omma.backbones.layers import text
from omma.core.protocols import NO_EXTRAS, Backbone, Extras
from omma.data import text_tokenizer
from omma.weights.published.configs import ACTIVATIONS, readable
from omma.weights.published.dialects import HF_CLIP_BLOCKS, OPEN_CLIP_BLOCKS
from omma.weights.published.names import Names

FILES = ("merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")  # beside the weights
HEAD = 64  # width of a head where the file does not say it [Radford 2021, table 19]

# rules from a file's names, without their prefix, to the tower's names
OPENAI = (
    (r"^token_embedding\.", "token_embed."),
    (r"^positional_embedding$", "pos_embed"),
    (r"^ln_final\.", "norm."),
    (r"^text_projection(\.weight)?$", "projection.weight"),
    *OPEN_CLIP_BLOCKS,
)
TRANSFORMERS = (
    (r"^text_model\.embeddings\.token_embedding\.", "token_embed."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^text_model\.final_layer_norm\.", "norm."),
    (r"^text_projection\.weight$", "projection.weight"),
    (r"^text_model\.encoder\.layers\.(\d+)\.", r"blocks.\1."),
    *HF_CLIP_BLOCKS,
)
# a tower's first name, its rules, and names of the image projection, which share the tower's prefix
ANCHORS = (
    ("text_model.embeddings.token_embedding.weight", TRANSFORMERS, ("visual_projection.weight",)),
    (
        "text.token_embedding.weight",
        OPENAI,
        ("visual.proj",),
    ),  # open_clip's towers with a prefix of their own
    ("token_embedding.weight", OPENAI, ("visual.proj",)),
)
TOWER = re.compile(r"(token_embed\.weight|pos_embed|projection\.weight|norm\.(weight|bias)|blocks\.\d+\..*)$")


def extras_of(
    tensors: Mapping[str, Tensor],
    encoder: Backbone,
    source: str,
    config: Mapping[str, Any] | None = None,
) -> tuple[Extras, set[str], list[str]]:
    """CLIP's text tower and projections as extras, the file's names that they use, and lines to report.

    encoder: the image tower, whose activation the text tower shares unless the settings say otherwise. A
    tower that omma cannot compute (without a causal mask, for example) is left out, and a line says so.
    Raises ValueError for a damaged one.
    """
    for anchor, rules, projections in ANCHORS:
        anchored = next((name for name in tensors if _ends_with(name, anchor)), None)
        if anchored is None:
            continue
        prefix = anchored.removesuffix(anchor)
        image = next((prefix + p for p in projections if prefix + p in tensors), None)
        if image is None:
            return NO_EXTRAS, set(), []
        with readable(source):
            return _read(tensors, prefix, anchor, rules, image, encoder, source, dict(config or {}))
    return NO_EXTRAS, set(), []


def _ends_with(name: str, anchor: str) -> bool:
    """Is the name the anchor, or the anchor after a dot?"""
    prefix = name.removesuffix(anchor)
    return prefix != name and prefix[-1:] in ("", ".")


def _read(
    tensors: Mapping[str, Tensor],
    prefix: str,
    anchor: str,
    rules: tuple[tuple[str, str], ...],
    image: str,
    encoder: Backbone,
    source: str,
    config: Mapping[str, Any],
) -> tuple[Extras, set[str], list[str]]:
    tower_prefix = prefix + ("text." if anchor.startswith("text.") else "")
    inner = {name.removeprefix(tower_prefix): name for name in tensors if name.startswith(tower_prefix)}
    t = Names({new: tensors[old] for new, old in inner.items()}, source, inner)
    t.rename(rules)
    for i in range(t.count("blocks")):
        block = f"blocks.{i}"
        if f"{block}.attn.q.weight" in t:
            for p in ("weight", "bias"):
                t.fuse([f"{block}.attn.{x}.{p}" for x in "qkv"], f"{block}.attn.qkv.{p}")
    tower = {name: x for name, x in t.tensors.items() if TOWER.match(name)}
    required = ("projection.weight", "pos_embed", "norm.weight", "blocks.0.norm1.weight")
    missing = [name for name in required if name not in t]
    unsupported = _unsupported(config)
    if missing or unsupported:
        why = unsupported or f"without {', '.join(missing)}"
        return NO_EXTRAS, set(), [f"its text tower is of an unsupported kind ({why}) and is not used"]
    projection = tensors[image]
    if rules is OPENAI:  # stored for features @ projection
        projection = projection.T
        if "text_projection.weight" not in inner:
            tower["projection.weight"] = tower["projection.weight"].T
    if projection.ndim != 2 or projection.shape[1] != encoder.dim:
        raise ValueError(f"{source} is damaged: {image} has shape {list(tensors[image].shape)}")
    facts = _facts(tower, encoder, config)
    built = text.tower_of(tower, facts, source)
    scalars = {"logit_scale": prefix + "logit_scale", "logit_bias": prefix + "logit_bias"}
    scalar_tensors = {
        name: tensors[raw].reshape(()).float() for name, raw in scalars.items() if raw in tensors
    }
    used = {raw for name in tower for raw in t.origin[name]} | {image}
    used |= {raw for raw in scalars.values() if raw in tensors}
    message = (
        f"its text tower ({len(built.blocks)} x {built.pos_embed.shape[1]}, {facts['heads']} heads, "
        f"{facts['mlp']}) and projections to {built.out} are kept beside the encoder"
    )
    extras = text.extras(built, projection.float().contiguous(), None, scalar_tensors, repaired=True)
    return extras, used, [message]


def _unsupported(config: Mapping[str, Any]) -> str:
    """The open_clip setting of the text tower that omma does not support; "" if there is none."""
    text_cfg = dict(dict(config.get("model_cfg") or {}).get("text_cfg") or {})
    if text_cfg.get("no_causal_mask"):
        return "no_causal_mask"
    if text_cfg.get("pool_type", "argmax") not in ("argmax", "eos"):
        return f"pool_type={text_cfg['pool_type']}"
    return next((name for name in ("embed_cls", "hf_model_name", "norm_kwargs") if text_cfg.get(name)), "")


def _facts(tower: Mapping[str, Tensor], encoder: Backbone, config: Mapping[str, Any]) -> dict[str, Any]:
    """Heads, activation, eps and the end-of-text token: from the settings, else as in OpenAI's CLIP."""
    vocabulary, dim = tower["token_embed.weight"].shape
    hf_text = dict(config.get("text_config") or {})
    open_clip = dict(dict(config.get("model_cfg") or {}).get("text_cfg") or {})
    act = hf_text.get("hidden_act", "quick_gelu" if hf_text else None)
    mlp = ACTIVATIONS.get(str(act)) if act is not None else str(encoder.spec().get("mlp", "gelu"))
    if mlp is None:
        supported = ", ".join(ACTIVATIONS)
        raise ValueError(f"its config.json says hidden_act={act!r} of the text tower; omma has {supported}")
    end = hf_text.get("eos_token_id", 2)  # OpenAI's configs say 2, which is wrong: it is the last token
    return {
        "heads": int(hf_text.get("num_attention_heads") or open_clip.get("heads") or max(dim // HEAD, 1)),
        "mlp": mlp,
        "eps": float(hf_text.get("layer_norm_eps", 1e-5)),
        "end": vocabulary - 1 if end == 2 else int(end),
    }


def with_merges(extras: Extras, folder: Path) -> Extras:
    """Add the tokenizer's merges from a matching merges file in the weights' folder, if there is one."""
    if text.TABLE not in extras.tensors or text.MERGES in extras.tensors:
        return extras
    vocabulary, end = len(extras.tensors[text.TABLE]), extras.facts["text"]["end"]
    for name in FILES:
        if (folder / name).is_file():
            tokenizer = text_tokenizer.Tokenizer(text_tokenizer.read_merges(folder / name))
            if (tokenizer.vocabulary, tokenizer.end) == (vocabulary, end):
                merges = torch.from_numpy(tokenizer.merges.astype("int32"))
                return extras._replace(tensors={**extras.tensors, text.MERGES: merges})
    return extras
