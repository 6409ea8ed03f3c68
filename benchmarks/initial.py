"""Initial weights of omma's networks beside those of the published codes.

    python benchmarks/initial.py --references DIR [--seeds 3] [--write]

DIR holds clones (benchmarks/published/references.py). Each published network is drawn by its own code, of its
real width and of few layers, and omma's of the same shape with the option `init` that belongs to it. The
table has the mean, deviation and excess kurtosis of each kind of parameter, of all seeds together. --write
puts it into docs/parity.md. The command fails if one of them differs by more than 5 standard errors.
"""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

from published.initial import NETWORKS, Network, compare
from published.references import References, on_this_machine
from tables import write_between

DOCUMENT = Path(__file__).parent.parent / "docs" / "parity.md"
BEGIN, END = "<!-- benchmarks/initial.py begin -->", "<!-- benchmarks/initial.py end -->"
BOUND = 5.0  # standard errors


def rows_of(network: Network, references: References, seeds: int) -> tuple[list[str], float]:
    lines, worst = [], 0.0
    commit = references.commit(network.source)
    zeros: list[str] = []
    for kind, ours, theirs in compare(network, references, seeds):
        apart = ours.apart(theirs)
        worst = max(worst, apart)
        if ours.deviation == theirs.deviation == 0:
            zeros.append(kind)
            continue
        pairs = [
            f"{a:.2g}, {b:.2g}"
            for a, b in (
                (ours.mean, theirs.mean),
                (ours.deviation, theirs.deviation),
                (ours.kurtosis, theirs.kurtosis),
            )
        ]
        lines.append(f"| {network.name} | {kind} | {' | '.join(pairs)} | {apart:.1f} |")
    print(f"{network.name} (`init={network.init}`, {network.source} {commit}): {worst:.1f}", flush=True)
    if zeros:
        lines.append(f"| {network.name} | {', '.join(zeros)} | 0, 0 | 0, 0 | - | 0 |")
    return lines, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--references", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    references, torch_version = References(args.references), version("torch").partition("+")[0]
    missing = sorted({n.source for n in NETWORKS if references.path(n.source) is None})
    if missing:
        sys.exit(f"clone into {args.references}: {', '.join(missing)}")
    lines = [
        f"{args.seeds} seeds together, torch {torch_version}; ours first. The last column is the largest of "
        f"the three differences in standard errors (below {BOUND:g}).",
        "",
        "| network | parameters | mean | deviation | excess kurtosis | |",
        "|---|---|---|---|---|---|",
    ]
    worst = 0.0
    with on_this_machine():
        for network in NETWORKS:
            more, apart = rows_of(network, references, args.seeds)
            lines, worst = lines + more, max(worst, apart)
    print(f"largest of all: {worst:.1f} standard errors")
    if not worst < BOUND:
        sys.exit(f"a difference of {worst:.1f} standard errors is above {BOUND:g}")
    if args.write:
        write_between(DOCUMENT, BEGIN, END, lines)


if __name__ == "__main__":
    main()
