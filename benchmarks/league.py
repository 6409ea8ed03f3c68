"""Every method on one data set with equal budgets: the league table.

    python benchmarks/league.py DATA --out DIR [--budget 10m] [--model vit-n/4] [--methods simclr dino ...]
    python benchmarks/league.py DATA --out DIR --table

Each method is trained with its small-data recipe by `omma pretrain` and evaluated by `omma evaluate`, next
to raw pixels and the same network untrained. Methods that learn from another model get one from the same
table, trained before with the same budget: BEiT the VQ-VAE (or --tokenizer dvae), EVA the --target's run,
DeiT the supervised one. Finished runs are not repeated, so the table can be made in several sessions. Run
it on an otherwise idle machine. --table prints the results so far.

If the machine cannot be idle all the time, count steps first and then train by steps:

    python benchmarks/league.py DATA --out DIR --count          # alone: how many steps the budget holds
    OMP_NUM_THREADS=1 python benchmarks/league.py DATA --out DIR --counted --methods ...   # beside whatever

Training by steps does not depend on other load. The speeds in the table are then those of --count.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from omma.core.duration import seconds

METHODS = (
    "simclr", "moco", "byol", "vicreg", "lejepa", "dino", "ibot", "dinov2", "mae", "simmim", "vqvae", "dvae",
    "beit", "eva", "supervised", "deit", "grafit",
)  # fmt: skip
SEES_LABELS = ("supervised", "deit", "grafit")
COUNTED = 20.0  # seconds of a run of --count
SPENT = 0.94  # share of a ten-minute budget spent in steps; the rest is start, readings, report


def guide_runs(args: argparse.Namespace) -> dict[str, tuple[str, str]]:
    """For methods that learn from a model: the option, and the run that it is set to."""
    return {
        "beit": ("tokenizer", args.tokenizer),
        "eva": ("target", args.target),
        "deit": ("teacher", "supervised"),
    }


def call(*words: str) -> float:
    """Run a command of omma; returns the peak memory of all children so far, in bytes."""
    done = subprocess.run([sys.executable, "-m", "omma", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"omma {' '.join(words)}: {(done.stderr or done.stdout).strip()[-400:]}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def training(method: str, args: argparse.Namespace, run: Path, runs: Path, *end: str) -> list[str]:
    """The command that trains a method; runs: the folder with the runs that it can learn from."""
    words = ["pretrain", args.data, "--method", method, "--model", args.model, *end]
    words += ["--recipe", "small", "--out", str(run), "--seed", str(args.seed)]
    if method in (options := guide_runs(args)):
        option, guide = options[method]
        words += [f"--method.{option}", str(runs / guide)]
    return words


def rate(run: Path) -> float:
    """Images per second of a run: the median of its logged steps."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["images_per_second"] for line in lines if line["event"] == "step")


def count(args: argparse.Namespace) -> None:
    """Write DIR/counts.json: each method's speed, and its number of steps within the budget."""
    file = args.out / "counts.json"
    counts = json.loads(file.read_text()) if file.exists() else {}
    for method in args.methods:
        if method in counts:
            continue
        run = args.out / "counted" / method
        call(*training(method, args, run, run.parent, "--budget", f"{COUNTED}s"))
        batch = json.loads((run / "config.json").read_text())["settings"]["batch"]
        steps = round(SPENT * seconds(args.budget) * rate(run) / batch)
        counts[method] = {"steps": steps, "images_per_second": rate(run)}
        file.write_text(json.dumps(counts, indent=1) + "\n")
        print(method, counts[method], flush=True)


def train_and_evaluate(method: str, args: argparse.Namespace) -> None:
    """Train and evaluate; writes DIR/METHOD.json. One per process, to measure memory."""
    run, file = args.out / method, args.out / f"{method}.json"
    counted = json.loads((args.out / "counts.json").read_text())[method] if args.counted else None
    end = ("--steps", str(counted["steps"])) if counted else ("--budget", args.budget)
    peak = call(*training(method, args, run, args.out, *end))
    evaluation = args.out / f"{method}-judged.json"
    call("evaluate", str(run), args.data, "--protocol", "knn", "linear", "--json", str(evaluation))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    health = [line for line in lines if line["event"] == "health"][-1]
    row = {
        "method": method,
        "results": json.loads(evaluation.read_text())["results"],
        "verdict": health["verdict"],
        "health": health["text"],
        "rank": health["rank"],
        "images_per_second": counted["images_per_second"] if counted else rate(run),
        "peak_memory": peak,
        "steps": lines[-1]["step"],
        "model": args.model,
        "budget": args.budget,
        "seed": args.seed,
    }
    file.write_text(json.dumps(row, indent=1) + "\n")


def best(row: dict[str, Any], subject: str, protocol: str) -> float:
    values = [
        r["value"] for r in row["results"]
        if r["subject"] == subject and r["protocol"] == protocol and r["metric"] == "top1"
        and r.get("k", 20) == 20
    ]  # fmt: skip
    return 100 * max(values, default=float("nan"))


def table(args: argparse.Namespace) -> str:
    rows = [json.loads(path.read_text()) for m in METHODS if (path := args.out / f"{m}.json").exists()]
    if not rows:
        return "no method is done"
    rows.sort(key=lambda row: -best(row, "trained", "knn"))
    lines = [
        "| method | k-NN | linear | health | effective rank | images/s | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["method"] + " (sees labels)" * (row["method"] in SEES_LABELS)
        lines.append(
            f"| {name} | {best(row, 'trained', 'knn'):.1f} | {best(row, 'trained', 'linear'):.1f} | "
            f"{row['health'].partition(':')[0]} | {row['rank']:.0f} | {row['images_per_second']:,.0f} | "
            f"{row['peak_memory'] / 2**30:.1f} GiB |"
        )
    for subject in ("untrained", "pixels"):
        source = next(row for row in rows if any(r["subject"] == subject for r in row["results"]))
        values = [best(source, subject, protocol) for protocol in ("knn", "linear")]
        lines.append(f"| {subject} | {values[0]:.1f} | {values[1]:.1f} | | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--model", default="vit-n/4")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--tokenizer", default="vqvae", choices=("vqvae", "dvae"))
    parser.add_argument("--target", default="simclr", help="whose run EVA regresses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--count", action="store_true", help="only count the steps that the budget holds")
    parser.add_argument("--counted", action="store_true", help="train as many steps as were counted")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.alone:
        train_and_evaluate(args.methods[0], args)
        return
    if args.count:
        count(args)
        return
    for method in [] if args.table else args.methods:
        if (args.out / f"{method}.json").exists():
            continue
        words = [sys.executable, __file__, args.data, "--out", str(args.out), "--alone", "--methods", method]
        words += ["--budget", args.budget, "--model", args.model, "--tokenizer", args.tokenizer]
        words += ["--target", args.target, "--seed", str(args.seed), *["--counted"] * args.counted]
        if subprocess.run(words).returncode == 0:
            print(f"{method} done", flush=True)
    print(table(args))


if __name__ == "__main__":
    main()
