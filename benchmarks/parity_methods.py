"""Losses, gradients and state updates of omma's methods against the published code, on the same tensors.

    python benchmarks/parity_methods.py --references DIR [--rows dino koleo ...] [--write]

DIR holds a clone of each repository in SOURCES, named `owner+name` or `name`; for missing ones the script
prints how to clone them. The published code is imported from there, on a CPU: `.cuda()` is the identity,
one gloo process stands for all, and libraries that only its training scripts need are replaced by empty
ones. omma computes in fp32, the published code in fp64; if both have weights, each trains its own for three
steps of gradient descent. --write puts the tables into docs/parity.md, between the markers; it needs all
rows.
"""

import argparse
import random
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from published import contrasted, distilled, hidden, parts, prompted
from published.comparing import STEPS, Differences, Row
from published.masks import DRAWS, MASKS, Masks
from published.references import SOURCES, References, on_this_machine
from tables import write_between

DOCUMENT = Path(__file__).parent.parent / "docs" / "parity.md"
BEGIN, END = (f"<!-- benchmarks/parity_methods.py {word} -->" for word in ("begin", "end"))
BOUND = 1e-5  # on every difference
ROWS = [*distilled.ROWS, *hidden.ROWS, *contrasted.ROWS, *parts.ROWS, *prompted.ROWS]


def missing(references: References, sources: set[str]) -> list[str]:
    """How to clone the repositories that are missing."""
    messages = []
    for source in sorted(sources & set(SOURCES)):
        if references.path(source) is None:
            into = f"DIR/{source.replace('/', '+')}"
            messages.append(f"{source} is missing: git clone --depth 1 {SOURCES[source]} {into}")
    return messages


def source_name(references: References, source: str, part: str) -> str:
    if source in SOURCES:
        return f"{source} `{references.commit(source)}`, `{part}`"
    return f"{source} {version(source)}, `{part}`"


def compare_rows(references: References, rows: list[Row]) -> tuple[list[str], float]:
    lines = ["| what | source | loss, outputs | gradients | state | |", "|---|---|---|---|---|---|"]
    worst = 0.0
    for row in rows:
        differences = Differences()
        row.compare(references, differences)
        worst = max([worst, *differences.worst.values()])
        numbers = [
            f"{differences.worst[k]:.1e}" if k in differences.worst else "-"
            for k in ("loss", "gradient", "state")
        ]
        source = source_name(references, row.source, row.part)
        lines.append(f"| {row.what} | {source} | {' | '.join(numbers)} | {row.remark} |")
        print(lines[-1], flush=True)
    print(f"largest of all: {worst:.1e}")
    return lines, worst


def compare_masks(references: References, rows: list[Masks]) -> list[str]:
    lines = [
        "| masks | source | masked: ours, theirs | its deviation | masked runs in rows |",
        "|---|---|---|---|---|",
    ]
    random.seed(0)
    np.random.seed(0)
    for row in rows:
        both = zip(*row.compare(references), strict=True)
        numbers = [f"{ours:.1f}, {theirs:.1f}" for ours, theirs in both]
        lines.append(
            f"| {row.what} | {source_name(references, row.source, row.part)} | {' | '.join(numbers)} |"
        )
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--references", type=Path, required=True, metavar="DIR")
    names = [row.name for row in (*ROWS, *MASKS)]
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.write and set(args.rows) != set(names):
        parser.error("--write wants all rows")
    references = References(args.references)
    rows = [row for row in ROWS if row.name in args.rows]
    masks = [row for row in MASKS if row.name in args.rows]
    lacking = missing(references, {row.source for row in (*rows, *masks)})
    print(*lacking, sep="\n", end="\n" if lacking else "")
    if lacking and args.write:
        sys.exit(1)
    have = [row for row in rows if row.source not in SOURCES or references.path(row.source) is not None]
    torch.set_num_threads(1)
    with on_this_machine():
        lines, worst = compare_rows(references, have)
        more = compare_masks(references, [row for row in masks if references.path(row.source) is not None])
    if args.write:
        about = (
            f"Largest absolute differences; ours in fp32, theirs in fp64 unless said, torch "
            f"{version('torch').partition('+')[0]}. Methods: {STEPS} steps of gradient descent, each side "
            f"with its own weights and states, on images of random numbers; all parameters random."
        )
        chance = f"Masks are drawn by other generators: statistics of {DRAWS} draws, in patches."
        write_between(DOCUMENT, BEGIN, END, [about, "", *lines, "", chance, "", *more])
    if not worst < BOUND:
        sys.exit(f"a difference of {worst:.1e} is above {BOUND:.0e}")


if __name__ == "__main__":
    main()
