"""Sixteen whole optimizer steps of omma's `paper` recipes against the published training code.

    python benchmarks/parity_steps.py --references DIR [--rows dino mae ...] [--write]

DIR holds a clone of each repository, as for parity_methods.py. Both sides train the same narrow network, from
the same weights, on the same views, in fp64: omma by its own loop under its `paper` recipe for the batch, the
published code by its own networks, losses, parameter groups, schedules, clipping, optimizer and averages.
--write puts the published code's numbers into tests/methods/whole_steps.json, which tests compare with ours,
and the table of all rows that are in there into docs/parity.md, between the markers.
"""

import argparse
import importlib
import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from published import whole
from published.references import SOURCES, References, on_this_machine
from tables import write_between

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "parity.md"
NUMBERS = ROOT / "tests" / "methods" / "whole_steps.json"
BEGIN, END = (f"<!-- benchmarks/parity_steps.py {word} -->" for word in ("begin", "end"))
FILES = [f"published.{name}" for name in whole.FILES if find_spec(f"published.{name}") is not None]
ROWS: list[whole.Whole] = [row for name in FILES for row in importlib.import_module(name).ROWS]


def compare(references: References, row: whole.Whole) -> dict[str, Any]:
    """The difference as a share of the way, and what tests need of the published code's result."""
    before, after = whole.ours(row.setup)
    published = row.theirs(references, row.setup, dict(before))
    return {
        "source": row.source,
        "commit": references.commit(row.source),
        "torch": version("torch").partition("+")[0],
        "difference": f"{whole.difference(before, after, published):.1e}",
        "way": whole.way(before, published),
        "numbers": whole.numbers(before, published),
    }


def line(row: whole.Whole, golden: dict[str, Any]) -> str:
    first = row.setup.first
    source = f"{row.source} `{golden['commit']}`, `{row.part}`"
    place = f"{first} to {first + whole.STEPS - 1} of {row.setup.total}"
    return f"| {row.what} | {source} | {place} | {golden['difference']} | {row.remark} |"


def write(golden: dict[str, Any]) -> None:
    everything = json.loads(NUMBERS.read_text()) | golden
    everything = {row.setup.name: everything[row.setup.name] for row in ROWS if row.setup.name in everything}
    NUMBERS.write_text(json.dumps(everything, indent=1) + "\n")
    lines = ["| method | source | steps | difference | |", "|---|---|---|---|---|"]
    lines += [line(row, everything[row.setup.name]) for row in ROWS if row.setup.name in everything]
    versions = sorted({entry["torch"] for entry in everything.values()})
    about = f"Both sides in fp64, torch {', '.join(versions)}."
    write_between(DOCUMENT, BEGIN, END, [about, "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--references", type=Path, required=True, metavar="DIR")
    names = [row.setup.name for row in ROWS]
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    references = References(args.references)
    rows = [row for row in ROWS if row.setup.name in args.rows]
    lacking = sorted({row.source for row in rows if references.path(row.source) is None})
    if lacking:
        clones = [f"git clone {SOURCES[s]} {args.references / s.replace('/', '+')}" for s in lacking]
        sys.exit("\n".join(["clones are missing:", *clones]))
    torch.set_num_threads(1)
    golden: dict[str, Any] = {}
    for row in rows:
        with on_this_machine():
            golden[row.setup.name] = compare(references, row)
        print(line(row, golden[row.setup.name]), flush=True)
    worst = max(float(entry["difference"]) for entry in golden.values())
    if args.write:
        write(golden)
    if not worst < whole.BOUND:
        sys.exit(f"a difference of {worst:.1e} of the way is above {whole.BOUND:.0e}")


if __name__ == "__main__":
    main()
