"""What an encoder knows of a speaker, or a recording, that it never heard: a run for each value of a column.

    python benchmarks/sounds.py spoken_digits_8k_wav.zip --by speaker --out DIR --option crop_size=32
    python benchmarks/sounds.py esc10_100clips_16k_wav.zip --by fold --out DIR --steps 600

Each run sees the clips of the other values, without labels. Then a linear probe learns from the same clips
with their labels, its penalty is chosen on values left out of these, and it is tested on the value that
nobody has heard. Printed: top-1 of each, and their mean, of the encoder, of the same network untrained and of
raw pixels, with the 95 % interval of all test clips together (Wilson's, as if clips were independent). A run
that was stopped goes on; finished ones are not repeated. docs/sounds.md has `--option crop_size=32` for both.
"""

import argparse
import ast
import json
from pathlib import Path

from scipy.stats import binomtest
from tracked import unpacked, write

import omma


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--by", required=True, help="column whose values are left out, one after the other")
    parser.add_argument("--only", nargs="+", help="values to leave out; default: all")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--method", default="simclr")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--option", nargs="*", default=[], help="NAME=VALUE of the method's own")
    args = parser.parse_args()
    folder = args.out / "clips"
    rows = unpacked(args.data, folder)
    right: dict[str, list[tuple[int, int]]] = {}
    for value in args.only or sorted({row[args.by] for row in rows}):
        run = args.out / f"{args.method}-{args.steps}-{value}-{args.seed}"
        heard = [{"path": row["path"]} for row in rows if row[args.by] != value]
        if not (run / "model.safetensors").exists():
            omma.pretrain(
                str(write(folder / f"without-{value}.csv", heard)),
                out=run,
                method=args.method,
                image_size=args.image_size,
                steps=args.steps,
                seed=args.seed,
                options={name: ast.literal_eval(text) for name, text in (o.split("=") for o in args.option)},
            )
        if not (run / "judged.json").exists():
            table = str(folder / "labels.csv")
            omma.evaluate(
                run,
                table,
                protocols=["linear"],
                test_on=[f"{args.by}={value}"],
                group=args.by,
                json=run / "judged.json",
            )
        results = json.loads((run / "judged.json").read_text())["results"]
        for each in results:
            count = round(each["value"] * each["n_test"])
            right.setdefault(each["subject"], []).append((count, each["n_test"]))
        print(value, *(f"{each['subject']} {each['value']:.3f}" for each in results), flush=True)
    for subject, folds in right.items():
        mean = sum(k / n for k, n in folds) / len(folds)
        low, high = binomtest(*map(sum, zip(*folds, strict=True))).proportion_ci(method="wilson")
        print(f"{subject:10} mean of {len(folds)}: {mean:.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
