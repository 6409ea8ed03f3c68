"""DINOv2's ladder: its twelve rows on one data set, with equal steps, next to the paper's table 1.

    python benchmarks/ladder.py DATA --out DIR [--steps 1500] [--model vit-n/8] [--batch 192] [...]
    python benchmarks/ladder.py DATA --out DIR --table

Other options are passed to `omma pretrain`, with values as at the ladder's end. Finished rows are not
repeated. Equal steps are not equal images: rows before 9 have a third of the batch, as in the paper.
"""

import argparse
import json
from pathlib import Path

from league import best, call

from omma.methods.dinov2 import LADDER

TRIPLED = [switch.name for switch in LADDER].index("batch 3k")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", default="1500")
    parser.add_argument("--model", default="vit-n/8")
    parser.add_argument("--batch", type=int, default=192, help="from row 9 on")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--rows", type=int, nargs="+", default=range(len(LADDER)))
    parser.add_argument("--table", action="store_true")
    args, others = parser.parse_known_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for row in [] if args.table else args.rows:
        run, evaluation = args.out / f"row{row}", args.out / f"row{row}.json"
        if evaluation.exists():
            continue
        batch = args.batch if row >= TRIPLED else args.batch // 3
        words = ["--method", "dinov2", "--method.ladder", str(row), "--model", args.model]
        words += ["--steps", args.steps, "--batch-size", str(batch), "--recipe", "small"]
        words += ["--out", str(run), "--seed", args.seed]
        call("pretrain", args.data, *words, *others)
        call("evaluate", str(run), args.data, "--protocol", "knn", "linear", "--json", str(evaluation))
        print(f"row {row} done", flush=True)
    print("| row | switch | k-NN | linear | health | paper: k-NN | linear |\n|---|---|---|---|---|---|---|")
    for row, switch in enumerate(LADDER):
        evaluation = args.out / f"row{row}.json"
        if not evaluation.exists():
            continue
        results = {"results": json.loads(evaluation.read_text())["results"]}
        lines = (args.out / f"row{row}" / "metrics.jsonl").read_text().splitlines()
        health = [line for line in map(json.loads, lines) if line["event"] == "health"][-1]["text"]
        print(
            f"| {row} | {switch.name} | {best(results, 'trained', 'knn'):.1f} | "
            f"{best(results, 'trained', 'linear'):.1f} | {health.partition(':')[0]} | {switch.knn} | "
            f"{switch.linear} |"
        )


if __name__ == "__main__":
    main()
