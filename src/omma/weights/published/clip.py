"""The text tower of published CLIP weights in omma's form: OpenAI's, open_clip's and transformers'."""

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
from omma.weights.published.names import Names

FILES = ("merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")  # beside the weights
HEAD = 64  # a head's width where nothing tells it [Radford 2021, table 19]

# from a file's names, without what stands before them, to the tower's
OPENAI = (
    (r"^token_embedding\.", "token_embed."),
    (r"^positional_embedding$", "pos_embed"),
    (r"^ln_final\.", "norm."),
    (r"^text_projection(\.weight)?$", "projection.weight"),
    (r"^transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
TRANSFORMERS = (
    (r"^text_model\.embeddings\.token_embedding\.", "token_embed."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^text_model\.final_layer_norm\.", "norm."),
    (r"^text_projection\.weight$", "projection.weight"),
    (r"^text_model\.encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
)
# the first name of a tower; names of the images' projection, before which stands what is before the tower
ANCHORS = (
    ("text_model.embeddings.token_embedding.weight", TRANSFORMERS, ("visual_projection.weight",)),
    ("text.token_embedding.weight", OPENAI, ("visual.proj",)),  # open_clip keeps some towers apart
    ("token_embedding.weight", OPENAI, ("visual.proj",)),
)
TOWER = re.compile(r"(token_embed\.weight|pos_embed|projection\.weight|norm\.(weight|bias)|blocks\.\d+\..*)$")


def beside(
    tensors: Mapping[str, Tensor],
    encoder: Backbone,
    source: str,
    config: Mapping[str, Any] | None = None,
) -> tuple[Extras, set[str], list[str]]:
    """What a file holds beside CLIP's image tower: extras, the file's names that they are made of, and lines.

    encoder: what was made of its image tower, whose activation the text tower shares where nothing else is
    said. Nothing is kept of a tower that omma's form does not compute (without a causal mask, say), and a
    line tells so. Raises ValueError for a damaged one.
    """
    for anchor, rules, projections in ANCHORS:
        found = next((name for name in tensors if _ends(name, anchor)), None)
        if found is None:
            continue
        before = found.removesuffix(anchor)
        image = next((before + p for p in projections if before + p in tensors), None)
        if image is None:
            return NO_EXTRAS, set(), []
        with readable(source):
            return _read(tensors, before, anchor, rules, image, encoder, source, dict(config or {}))
    return NO_EXTRAS, set(), []


def _ends(name: str, anchor: str) -> bool:
    before = name.removesuffix(anchor)
    return before != name and before[-1:] in ("", ".")


def _read(
    tensors: Mapping[str, Tensor],
    before: str,
    anchor: str,
    rules: tuple[tuple[str, str], ...],
    image: str,
    encoder: Backbone,
    source: str,
    config: Mapping[str, Any],
) -> tuple[Extras, set[str], list[str]]:
    within = before + ("text." if anchor.startswith("text.") else "")
    inner = {name.removeprefix(within): name for name in tensors if name.startswith(within)}
    t = Names({new: tensors[old] for new, old in inner.items()}, source, inner)
    t.rename(rules)
    for i in range(t.count("blocks")):
        block = f"blocks.{i}"
        if f"{block}.attn.q.weight" in t:
            for p in ("weight", "bias"):
                t.fuse([f"{block}.attn.{x}.{p}" for x in "qkv"], f"{block}.attn.qkv.{p}")
    tower = {name: x for name, x in t.tensors.items() if TOWER.match(name)}
    wanted = ("projection.weight", "pos_embed", "norm.weight", "blocks.0.norm1.weight")
    lacking = [name for name in wanted if name not in t]
    foreign = _foreign(config)
    if lacking or foreign:
        why = foreign or f"without {', '.join(lacking)}"
        return NO_EXTRAS, set(), [f"its text tower is of another kind ({why}) and is not used"]
    projection = tensors[image]
    if rules is OPENAI:  # there products of rows: features @ projection
        projection = projection.T
        if "text_projection.weight" not in inner:
            tower["projection.weight"] = tower["projection.weight"].T
    if projection.ndim != 2 or projection.shape[1] != encoder.dim:
        raise ValueError(f"{source} is damaged: {image} has shape {list(tensors[image].shape)}")
    facts = _facts(tower, encoder, config)
    built = text.tower_of(tower, facts, source)
    scalars = {"logit_scale": before + "logit_scale", "logit_bias": before + "logit_bias"}
    others = {name: tensors[raw].reshape(()).float() for name, raw in scalars.items() if raw in tensors}
    used = {raw for name in tower for raw in t.origin[name]} | {image}
    used |= {raw for raw in scalars.values() if raw in tensors}
    said = (
        f"its text tower ({len(built.blocks)} x {built.pos_embed.shape[1]}, {facts['heads']} heads, "
        f"{facts['mlp']}) and projections to {built.out} are kept beside the encoder"
    )
    return text.kept(built, projection.float().contiguous(), None, others), used, [said]


def _foreign(config: Mapping[str, Any]) -> str:
    """What open_clip's settings say of a tower that omma's is not; "" where nothing is."""
    said = dict(dict(config.get("model_cfg") or {}).get("text_cfg") or {})
    if said.get("no_causal_mask"):
        return "no_causal_mask"
    if said.get("pool_type", "argmax") not in ("argmax", "eos"):
        return f"pool_type={said['pool_type']}"
    return next((name for name in ("embed_cls", "hf_model_name", "norm_kwargs") if said.get(name)), "")


def _facts(tower: Mapping[str, Tensor], encoder: Backbone, config: Mapping[str, Any]) -> dict[str, Any]:
    """Heads, activation, eps, and the number that ends a text: as said, or as in OpenAI's."""
    vocabulary, dim = tower["token_embed.weight"].shape
    theirs = dict(config.get("text_config") or {})
    open_clip = dict(dict(config.get("model_cfg") or {}).get("text_cfg") or {})
    act = theirs.get("hidden_act", "quick_gelu" if theirs else None)
    mlp = ACTIVATIONS.get(str(act)) if act is not None else str(encoder.spec().get("mlp", "gelu"))
    if mlp is None:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"its config.json says hidden_act={act!r} of the text tower; omma has {known}")
    end = theirs.get("eos_token_id", 2)  # 2 is what OpenAI's own say, and do not mean
    return {
        "heads": int(theirs.get("num_attention_heads") or open_clip.get("heads") or max(dim // HEAD, 1)),
        "mlp": mlp,
        "eps": float(theirs.get("layer_norm_eps", 1e-5)),
        "end": vocabulary - 1 if end == 2 else int(end),
    }


def with_merges(extras: Extras, folder: Path) -> Extras:
    """The same with the tokenizer's merges, where a file of them that fits lies in the weights' folder."""
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
