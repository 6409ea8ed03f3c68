"""skipped.csv: what was left out of a collection, and why."""

import csv
from collections.abc import Iterable
from pathlib import Path

from omma.core.files import atomic_write


def write_skipped(file: str | Path, skipped: Iterable[tuple[str, str]]) -> None:
    """Write a .csv with the columns path and reason.

    Control characters are written as escapes, and a cell that a spreadsheet would compute begins with '.
    """
    with atomic_write(Path(file)) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "reason"))
        writer.writerows([_harmless(cell) for cell in row] for row in skipped)


def _harmless(cell: str) -> str:
    cell = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cell)
    return "'" + cell if cell.startswith(("=", "+", "-", "@")) else cell
