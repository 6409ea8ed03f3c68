"""Report what became of a file's tensors and of an encoder's parameters."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from omma.core.errors import printable
from omma.weights.published.names import DERIVED


@dataclass(frozen=True, kw_only=True)
class Report:
    """Names are the encoder's, except those in `unused`, which are the file's.

    Each of the encoder's tensors is matched (as in the file), converted (renamed, fused, split, transposed),
    missing (keeps its initial value), or interpolated, inflated or both (the file has other positions,
    another patch size or other channels). details: the conversions, in words.
    """

    name: str
    source: str
    dialect: str
    matched: tuple[str, ...]
    converted: tuple[str, ...]
    interpolated: tuple[str, ...]
    inflated: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    parameters: int  # number in the encoder
    filled: int  # number of these that got values from the file
    details: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the encoder's parameters that got values."""
        return self.filled / max(self.parameters, 1)

    def lines(self) -> list[str]:
        """A few short lines; the first says how much of the encoder was filled."""
        share = f"{_millions(self.filled)} of {_millions(self.parameters)} parameters"
        first = f"{self.name} from {self.source} ({self.dialect}): {share} ({percent(self.share)})"
        lines = [first, "; ".join((f"{len(self.matched)} tensors unchanged", *self.details))]
        if self.missing:
            lines.append(f"not in the file, initial values kept: {grouped(self.missing)}")
        if self.unused:
            lines.append(f"in the file, not used: {grouped(self.unused)}")
        return lines + list(self.notes)


def grouped(names: Iterable[str], most: int = 8) -> str:
    """Names grouped by their prefix: "decoder_* (104), mask_token"."""
    names = list(names)
    prefixes = [_prefix(name) for name in names]
    counts, only = Counter(prefixes), dict(zip(prefixes, names, strict=True))
    groups = [only[prefix] if n == 1 else f"{prefix}* ({n})" for prefix, n in counts.items()]
    shown = [printable(" ".join(group.split()))[:100] for group in groups[:most]]
    return ", ".join(shown) + (f" and {len(groups) - most} more groups" if len(groups) > most else "")


def _prefix(name: str) -> str:
    if DERIVED.search(name):
        return name.split(".")[-1]
    return re.split(r"[./_]", re.sub(r"^(module|model)\.", "", name))[0]


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.1f}k"


def percent(share: float) -> str:
    """A share in percent; never "100 %" for less than 1."""
    return "100 %" if share == 1 else f"{min(100 * share, 99.99):.2f} %"
