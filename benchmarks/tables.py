"""The tables of docs/ that benchmarks write."""

from collections.abc import Sequence
from pathlib import Path


def write_between(document: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    """Replace what stands between two markers of a document; both must be there."""
    before, found, rest = document.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{document}: no {begin} and {end} in it")
    document.write_text("\n".join([before + begin, *lines, end + after]))
