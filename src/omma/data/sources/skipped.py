"""skipped.csv: what was left out of a collection, and why."""

import csv
from collections.abc import Iterable
from pathlib import Path

from omma.core.files import atomic_write
from omma.core.protocols import Inaccessible


def write_skipped(file: str | Path, skipped: Iterable[tuple[str, str]]) -> None:
    """Write a .csv with the columns path and reason.

    Control characters are written as escapes, and a cell that a spreadsheet would compute begins with '.
    """
    with atomic_write(Path(file)) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "reason"))
        writer.writerows([_harmless(cell) for cell in row] for row in skipped)


def found_before(file: str | Path, skipped: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The rows of the file that `skipped` lacks: images that an earlier session could not read in training.

    Those that it could not access are left out, since that may have changed.
    """
    try:
        with open(file, newline="", encoding="utf-8", errors="replace") as stream:
            rows = [row for row in csv.reader(stream) if len(row) == 2][1:]
    except (OSError, csv.Error):  # absent or damaged: it is written anew
        return []
    known = {_harmless(path) for path, _ in skipped}
    return [(path, why) for path, why in rows if path not in known and not Inaccessible.is_reason(why)]


def _harmless(cell: str) -> str:
    cell = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cell)
    return "'" + cell if cell.startswith(("=", "+", "-", "@")) else cell
