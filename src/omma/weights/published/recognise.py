"""What a file's tensors are: found by their names and shapes, never by the file's name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from omma.weights.published.configs import said_by
from omma.weights.published.dialects import DIALECTS, KNOWN, Dialect
from omma.weights.published.families import Built, reader
from omma.weights.published.names import DERIVED, Names

# Which wrapper is meant where a file has several networks of a kind: any of the first, none of the last.
PREFERRED = ("teacher", "target_encoder", "ema.", "base_encoder", "encoder_q", "online", "visual", "vision")
AVOIDED = ("student", "momentum", "encoder_k", "predictor", "decoder", "text")
# Where a network's own tensors lie; whatever else is beside them is a head, a decoder or a mask's token.
TRUNK = re.compile(
    r"(blocks|blocks_token_only|layers|layer|stages|stem|encoder|transformer|embeddings|patch_embed|cls_token|dist_token"
    r"|reg_token|pos_embed|absolute_pos_embed|rope|rel_pos_bias|norm|fc_norm|norm_pre|cls_norm|attn_pool"
    r"|conv1|bn1|layer[1-4])(\.|$)"
)


@dataclass(frozen=True)
class Recognised:
    """A network found in a file.

    spec: for backbones.build. tensors: under its parameters' names. origin: the file's names that each was
    made of; how: what happened to it on the way, where more than a wrapper was taken off. grid, front: what
    pos_embed is made for, and its rows before the patches'. left: names in the file that are not used (heads,
    decoders, other networks, what follows from other tensors). settings: what was said beside its tensors.
    """

    source: str
    dialect: str
    spec: dict[str, Any]
    tensors: dict[str, Tensor]
    origin: dict[str, tuple[str, ...]]
    how: dict[str, str]
    grid: tuple[int, int] | None
    front: int
    left: tuple[str, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]


def recognise(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    source: str = "the file",
    timm_cfg: Mapping[str, Any] | None = None,
    beside: Sequence[str] = (),
) -> Recognised:
    """The network in a file, converted to omma's (timm's) names, and the spec that builds it.

    config: of transformers' config.json (timm's and open_clip's too). timm_cfg: timm's pretrained_cfg.
    beside: names of what else the file holds.
    Raises ValueError in one line where it holds no network that omma knows, or does not tell all of it.
    """
    dialect, prefix = _find(tensors, beside, source)
    t = _without(tensors, prefix, dialect, source)
    said = dict(dialect.settings)
    if dialect.prepare is not None:
        said |= dialect.prepare(t)
    t.rename(dialect.rules)
    said |= said_by(config, timm_cfg, source)
    built = reader(t)(t, said)
    return _made(tensors, t, built, said, dialect)


def _find(tensors: Mapping[str, Tensor], beside: Sequence[str], source: str) -> tuple[Dialect, str]:
    """The first dialect that fits, and the wrapper before its names."""
    names = tensors.keys()
    for dialect in DIALECTS:
        found: list[str] = []
        for name in names:
            prefix = name.removesuffix(dialect.anchor)
            if name.endswith(dialect.anchor) and prefix[-1:] in ("", ".", "/"):
                inner = {n[len(prefix) :] for n in names if n.startswith(prefix)}
                if dialect.fits(names | {*beside}, inner):
                    found.append(prefix)
        if found:
            return dialect, min(found, key=_rank)
    few = " ".join(", ".join(list(names)[:4]).split()) or "nothing"
    raise ValueError(
        f"{source} holds no vision network that omma knows: it has {few}, ...; known are {KNOWN}"
    )


def _rank(prefix: str) -> tuple[bool, bool, int]:
    def among(words: Sequence[str]) -> bool:
        return any(word in prefix for word in words)

    return among(AVOIDED), not among(PREFERRED), len(prefix)


def _without(tensors: Mapping[str, Tensor], prefix: str, dialect: Dialect, source: str) -> Names:
    """The network's own tensors without the wrapper; derived ones are kept, for what they tell."""
    inner = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    for name in dialect.outside:
        if name in tensors and name not in inner:
            inner[name] = name
    return Names({new: tensors[old] for new, old in inner.items()}, source, inner)


def _made(
    tensors: Mapping[str, Tensor], t: Names, built: Built, said: Mapping[str, Any], dialect: Dialect
) -> Recognised:
    kept = {n: x for n, x in t.tensors.items() if TRUNK.match(n) and not DERIVED.search(n)}
    used = {raw for name in kept for raw in t.origin[name]}
    first = "conv1.weight" if "patch_embed.proj.weight" not in t else "patch_embed.proj.weight"
    size, channels = built.image_size, t.shape(first)[1]
    return Recognised(
        source=t.source,
        dialect=dialect.name,
        spec={"name": built.name, "image_size": size, "channels": channels, **built.options},
        tensors=kept,
        origin={name: t.origin[name] for name in kept},
        how={name: how for name, how in t.how.items() if name in kept},
        grid=built.grid,
        front=built.front,
        left=tuple(name for name in tensors if name not in used),
        settings=said,
        notes=built.notes,
    )
