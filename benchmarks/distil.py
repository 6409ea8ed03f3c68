"""distil against SimCLR: the same students on the same images without labels, in the same time each.

    python benchmarks/distil.py IMAGES TEACHER --labelled SET ... --out DIR [--budget 10m] [--image-size 64]
        [--students vitc-15mf vit-ti/8]

k-NN on the labelled sets' own held-out parts. Other options go to both methods, `--method.KEY VALUE` to
distil alone. Finished runs are not repeated.
"""

import argparse
import json
from pathlib import Path

from league import call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images")
    parser.add_argument("teacher")
    parser.add_argument("--labelled", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--image-size", default="64")
    parser.add_argument("--students", nargs="+", default=["vitc-15mf", "vit-ti/8"])
    args, others = parser.parse_known_args()
    args.out.mkdir(parents=True, exist_ok=True)
    at = [i for i, word in enumerate(others) if word.startswith("--method.")]
    own = [word for i in at for word in others[i : i + 2]]
    shared = [word for i, word in enumerate(others) if i not in {j for k in at for j in (k, k + 1)}]
    print("| student | method | " + " | ".join(Path(each).stem for each in args.labelled) + " |", flush=True)
    print("|---|---|" + "---|" * len(args.labelled), flush=True)
    for student in args.students:
        for method in ("simclr", "distil"):
            run = args.out / f"{method}-{student.replace('/', '-').replace(':', '-')}"
            if not (run / "model.safetensors").exists():
                words = ["--method", method, "--model", student, "--budget", args.budget, "--out", str(run)]
                words += ["--image-size", args.image_size, *shared]
                words += ["--method.teacher", args.teacher, *own] if method == "distil" else []
                call("pretrain", args.images, *words)
            cells = [_knn(run, each, args.out) for each in args.labelled]
            print(f"| {student} | {method} | {' | '.join(cells)} |", flush=True)


def _knn(run: Path, labelled: str, folder: Path) -> str:
    """Top-1 with its 95 % interval, in per cent."""
    file = folder / f"{run.name}-{Path(labelled).stem}.json"
    if not file.exists():
        call("evaluate", str(run), labelled, "--protocol", "knn", "--no-floors", "--json", str(file))
    for result in json.loads(file.read_text())["results"]:
        if result["subject"] == "trained" and result["metric"] == "top1":
            low, high = result["interval95"]
            return f"{100 * result['value']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    raise SystemExit(f"{file} has no top-1")


if __name__ == "__main__":
    main()
