"""Recognise the network in a file by the names and shapes of its tensors, never by the file's name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from omma.weights.published.configs import read_settings
from omma.weights.published.dialects import DIALECTS, SUPPORTED, Dialect
from omma.weights.published.families import NetworkSpec, family_reader
from omma.weights.published.names import DERIVED, Names

# Of several networks in a file, prefer prefixes with one of the first and avoid those with one of the second.
PREFERRED = ("teacher", "target_encoder", "ema.", "base_encoder", "encoder_q", "online", "visual", "vision")
AVOIDED = ("student", "momentum", "encoder_k", "predictor", "decoder", "text")
NO_NETWORK = "holds no vision network that omma recognises"
# Names of the network's own tensors; all others are heads, decoders or mask tokens.
TRUNK = re.compile(
    r"(blocks|blocks_token_only|layers|layer|stages|stem|encoder|transformer|embeddings|patch_embed|cls_token|dist_token"
    r"|reg_token|pos_embed|absolute_pos_embed|rope|rel_pos_bias|norm|fc_norm|norm_pre|cls_norm|attn_pool"
    r"|conv1|bn1|layer[1-4])(\.|$)"
)


@dataclass(frozen=True)
class Recognised:
    """A network found in a file.

    spec: arguments of backbones.build. tensors: by omma's parameter names. origin: the file's names that each
    was made from. conversions: what happened to each ("fused", "transposed", ...), where more than a prefix
    was removed. grid: rows and columns of pos_embed; prefix_rows: its rows before those of the patches.
    unused: names in the file that are not used (heads, decoders, other networks, derived tensors). settings:
    what config.json or the naming scheme says beyond the tensors.
    """

    source: str
    dialect: str
    spec: dict[str, Any]
    tensors: dict[str, Tensor]
    origin: dict[str, tuple[str, ...]]
    conversions: dict[str, str]
    grid: tuple[int, int] | None
    prefix_rows: int
    unused: tuple[str, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...]


def recognise(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    source: str = "the file",
    timm_cfg: Mapping[str, Any] | None = None,
    other_entries: Sequence[str] = (),
) -> Recognised:
    """Find the network in a file, convert it to omma's (timm's) names, and derive the spec that builds it.

    config: contents of config.json (transformers', timm's or open_clip's). timm_cfg: timm's pretrained_cfg.
    other_entries: names of the file's other entries.
    Raises a one-line ValueError if the file holds no supported network, or does not determine it fully.
    """
    dialect, prefix = _find_dialect(tensors, other_entries, source)
    t = _unwrap(tensors, prefix, dialect, source)
    settings = dict(dialect.settings)
    if dialect.convert is not None:
        settings |= dialect.convert(t)
    t.rename(dialect.rules)
    settings |= read_settings(config, timm_cfg, source)
    network = family_reader(t)(t, settings)
    return _recognised(tensors, t, network, settings, dialect)


def _find_dialect(
    tensors: Mapping[str, Tensor], other_entries: Sequence[str], source: str
) -> tuple[Dialect, str]:
    """The first dialect that fits, and the prefix of its names in the file."""
    names = tensors.keys()
    for dialect in DIALECTS:
        prefixes: list[str] = []
        for name in names:
            prefix = name.removesuffix(dialect.anchor)
            if name.endswith(dialect.anchor) and prefix[-1:] in ("", ".", "/"):
                unwrapped = {n[len(prefix) :] for n in names if n.startswith(prefix)}
                if dialect.fits(names | {*other_entries}, unwrapped):
                    prefixes.append(prefix)
        if prefixes:
            return dialect, min(prefixes, key=_preference)
    few = " ".join(", ".join(list(names)[:4]).split()) or "nothing"
    raise ValueError(
        f"{source} {NO_NETWORK}: it has {few}, ...; recognised are {SUPPORTED}, and --as timm:NAME or "
        "torchvision:NAME says which other network it is"
    )


def _preference(prefix: str) -> tuple[bool, bool, int]:
    """Sorts the preferred network first; the shortest prefix decides among equals."""

    def has_any(words: Sequence[str]) -> bool:
        return any(word in prefix for word in words)

    return has_any(AVOIDED), not has_any(PREFERRED), len(prefix)


def _unwrap(tensors: Mapping[str, Tensor], prefix: str, dialect: Dialect, source: str) -> Names:
    """The network's tensors without the prefix, including derived ones, whose shapes may be informative."""
    unwrapped = {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)}
    for name in dialect.extra_names:
        if name in tensors and name not in unwrapped:
            unwrapped[name] = name
    return Names({new: tensors[old] for new, old in unwrapped.items()}, source, unwrapped)


def _recognised(
    tensors: Mapping[str, Tensor],
    t: Names,
    network: NetworkSpec,
    settings: Mapping[str, Any],
    dialect: Dialect,
) -> Recognised:
    trunk = {n: x for n, x in t.tensors.items() if TRUNK.match(n) and not DERIVED.search(n)}
    used = {raw for name in trunk for raw in t.origin[name]}
    first = "conv1.weight" if "patch_embed.proj.weight" not in t else "patch_embed.proj.weight"
    size, channels = network.image_size, t.shape(first)[1]
    return Recognised(
        source=t.source,
        dialect=dialect.name,
        spec={"name": network.name, "image_size": size, "channels": channels, **network.options},
        tensors=trunk,
        origin={name: t.origin[name] for name in trunk},
        conversions={name: c for name, c in t.conversions.items() if name in trunk},
        grid=network.grid,
        prefix_rows=network.prefix_rows,
        unused=tuple(name for name in tensors if name not in used),
        settings=settings,
        notes=network.notes,
    )
