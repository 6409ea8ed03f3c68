"""What became of a file's tensors and of an encoder's parameters, for people to read."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from omma.weights.published.names import DERIVED


@dataclass(frozen=True, kw_only=True)
class Report:
    """Names are the encoder's, but those in `left`, which are the file's.

    Each of the encoder's tensors is in one of: matched (as it is in the file), converted (renamed, fused,
    split, transposed), missing (keeps what it had), or in interpolated or inflated or both (the positions,
    patch or channels are others than the file's). share: of the encoder's parameters, those that got values.
    details: of the conversions, in words.
    """

    name: str
    source: str
    dialect: str
    matched: tuple[str, ...]
    converted: tuple[str, ...]
    interpolated: tuple[str, ...]
    inflated: tuple[str, ...]
    missing: tuple[str, ...]
    left: tuple[str, ...]
    parameters: int  # of the encoder
    given: int  # of them, with values from the file
    details: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        return self.given / max(self.parameters, 1)

    def lines(self) -> list[str]:
        """A few short lines; the first says how much of the encoder was filled."""
        share = f"{_millions(self.given)} of {_millions(self.parameters)} parameters"
        first = f"{self.name} from {self.source} ({self.dialect}): {share} ({percent(self.share)})"
        said = [first, "; ".join((f"{len(self.matched)} tensors as they are", *self.details))]
        if self.missing:
            said.append(f"not in the file, left as they were: {grouped(self.missing)}")
        if self.left:
            said.append(f"in the file, not used: {grouped(self.left)}")
        return said + list(self.notes)


def grouped(names: Iterable[str], most: int = 8) -> str:
    """Names by their beginning: "decoder_* (104), mask_token"."""
    names = list(names)
    heads = [_kind(name) for name in names]
    groups, whole = Counter(heads), dict(zip(heads, names, strict=True))
    said = [whole[head] if n == 1 else f"{head}* ({n})" for head, n in groups.items()]
    return ", ".join(said[:most]) + (f" and {len(said) - most} more kinds" if len(said) > most else "")


def _kind(name: str) -> str:
    if DERIVED.search(name):
        return name.split(".")[-1]
    return re.split(r"[./_]", re.sub(r"^(module|model)\.", "", name))[0]


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.1f}k"


def percent(share: float) -> str:
    """Never 100 % for less than all."""
    return "100 %" if share == 1 else f"{min(100 * share, 99.99):.2f} %"
