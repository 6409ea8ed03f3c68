"""Fine classes from coarse labels: Grafit, supervised training on the same labels, and SimCLR without labels.

    python benchmarks/coarse.py TINY_IMAGENET.zip TREE.json --out DIR [--depth 4] [--steps 1500]

TREE.json is WordNet's tree of the classes as nodes and links (nbdt's graph-wordnet.json). A class's coarse
label is its ancestor `depth` steps below the root. Every method sees the coarse labels, or none, and is
evaluated by k-NN on the fine ones (k=20, T=.07): validation images are classified by their neighbours among
the training images.
"""

import argparse
import csv
import json
import statistics
import zipfile
from pathlib import Path

from league import best, call


def coarse_names(tree: Path, depth: int) -> dict[str, str]:
    """The WordNet id of each leaf's ancestor."""
    graph = json.loads(tree.read_text())
    parent = {link["target"]: link["source"] for link in graph["links"]}
    results = {}
    for node in graph["nodes"]:
        path = [node["id"]]
        while path[-1] in parent:
            path.append(parent[path[-1]])
        path.reverse()
        results[node["id"]] = path[min(depth, len(path) - 1)]
    return results


def prepare(args: argparse.Namespace) -> tuple[Path, Path]:
    """Unpack the images and write two manifests: with fine labels and with coarse ones."""
    images = args.out / "images"
    if not images.exists():
        with zipfile.ZipFile(args.data) as archive:
            archive.extractall(images)
    above = coarse_names(args.tree, args.depth)
    rows = list(csv.DictReader((images / "labels.csv").open()))
    files = {}
    for kind in ("fine", "coarse"):
        files[kind] = images / f"{kind}.csv"
        with files[kind].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "split", "label"))
            for row in rows:
                label = row["wnid"] if kind == "fine" else above[row["wnid"]]
                writer.writerow((row["path"], row["split"], label))
    print(
        f"{len({r['wnid'] for r in rows})} fine classes, {len({above[r['wnid']] for r in rows})} coarse ones"
    )
    return files["fine"], files["coarse"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("tree", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--steps", default="1500")
    parser.add_argument("--model", default="vitc-15mf")
    parser.add_argument("--methods", nargs="+", default=("grafit", "supervised", "simclr"))
    parser.add_argument("--seeds", nargs="+", default=("0", "1", "2"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    fine, coarse = prepare(args)
    print("| method | k-NN on fine classes, each seed | median | on coarse ones, median |\n|---|---|---|---|")
    for method in args.methods:
        results: dict[Path, list[float]] = {fine: [], coarse: []}
        for seed in args.seeds:
            run = args.out / f"{method}-{seed}"
            if not (run / "model.safetensors").exists():
                words = ["--method", method, "--model", args.model, "--steps", args.steps, "--seed", seed]
                words += ["--recipe", "small", "--out", str(run)]
                call("pretrain", str(coarse), *words)
            for labels, values in results.items():
                evaluation = args.out / f"{run.name}-{labels.stem}.json"
                call("evaluate", str(run), str(labels), "--protocol", "knn", "--json", str(evaluation))
                values.append(best(json.loads(evaluation.read_text()), "trained", "knn"))
        accuracies = ", ".join(f"{v:.1f}" for v in results[fine])
        median = {labels: statistics.median(values) for labels, values in results.items()}
        print(f"| {method} | {accuracies} | {median[fine]:.1f} | {median[coarse]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
