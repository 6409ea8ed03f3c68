"""Metrics of answers against scikit-learn, torchmetrics, hiclass, networkx and published heights.

    python benchmarks/parity_metrics.py [--mistakes DIR] [--write]

DIR is a clone of https://github.com/fiveai/making-better-mistakes, whose files of heights are read, not its
code. --write puts the table into docs/parity.md, between the markers; it needs all rows.
"""

import argparse
import itertools
import lzma
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import hiclass.metrics
import networkx
import numpy as np
import torch
import torchmetrics.classification as torchmetrics
from scipy.special import softmax
from sklearn import metrics as sk

from omma.data.sources import taxonomy
from omma.data.sources.taxonomy import Taxonomy
from omma.evaluation import average_precision, hierarchy, image_retrieval, metrics
from omma.evaluation.hierarchy import Tree

DOCUMENT = Path(__file__).parent.parent / "docs" / "parity.md"
BEGIN, END = (f"<!-- benchmarks/parity_metrics.py {word} -->" for word in ("begin", "end"))
BOUND = 1e-5
Row = tuple[str, str, float, str]  # what, source, largest difference, remark


def scikit_learn(cases: int = 1000) -> Iterator[Row]:
    """The sums that intervals draw, with every image once; and average precisions of draws."""
    rng, worst, precision = np.random.default_rng(0), 0.0, 0.0
    for _ in range(cases):
        classes, m = int(rng.integers(1, 9)), int(rng.integers(1, 60))
        some = rng.choice(classes, rng.integers(1, classes + 1), replace=False)
        labels, predictions = rng.choice(some, m), rng.integers(0, classes, m)
        counts = [np.bincount(x, minlength=classes).astype(float) for x in (labels, predictions)]
        hits = np.bincount(labels[labels == predictions], minlength=classes).astype(float)
        ours = metrics._of_sums({"support": counts[0], "predicted": counts[1], "hits": hits})
        theirs = {
            f"{name}_{average}": function(labels, predictions, average=average, zero_division=0)
            for average in ("micro", "macro")
            for name, function in (
                ("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)
            )
        }  # fmt: skip
        worst = max([worst, *(abs(float(ours[name]) - value) for name, value in theirs.items())])
        positive, scores = rng.random(m) < 0.3, rng.normal(size=m).round(1)
        positive[0] = True
        draw = rng.integers(0, 3, m)
        draw[0] = 1
        pair = average_precision._Ranked.of(scores, positive).segments(np.arange(m), m)
        drawn = average_precision._ap(*pair, draw[:, None].astype(np.float32))[0]
        expected = sk.average_precision_score(positive.repeat(draw), scores.repeat(draw))
        precision = max(precision, abs(drawn - expected))
    source = f"scikit-learn {version('scikit-learn')}"
    remark = "values are its own; this is what intervals draw"
    yield "precision, recall, F1, micro and macro, classes absent", source, worst, remark
    yield "average precision with ties, images drawn several times", source, precision, "the same"
    vectors = rng.normal(size=(300, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = rng.integers(0, 12, 300)
    found = image_retrieval.ranked(vectors, groups)
    near, worst = vectors @ vectors.T, 0.0
    for row, ours in zip(found.queries, found.precision, strict=True):
        rest = np.arange(300) != row
        theirs = sk.average_precision_score(groups[rest] == groups[row], near[row, rest])
        worst = max(worst, abs(ours - theirs))
    yield "average precision of image retrieval", source, worst, "each query without itself"


def torch_metrics() -> Iterator[Row]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 20, 2000)
    logits = rng.normal(size=(2000, 20)) + 2 * (labels[:, None] == np.arange(20))
    p = softmax(logits, axis=1).astype(np.float32)
    ours = metrics.single_label(p.argmax(1), labels, 20, p, True).overall
    source, pair = f"torchmetrics {version('torchmetrics')}", (torch.from_numpy(p), torch.from_numpy(labels))
    for name, key, metric in (
        ("top-5", "top5", torchmetrics.MulticlassAccuracy(20, top_k=5, average="micro")),
        ("balanced accuracy", "balanced_accuracy", torchmetrics.MulticlassAccuracy(20)),
        ("F1, macro", "f1_macro", torchmetrics.MulticlassF1Score(20)),
        ("mAP", "map_macro", torchmetrics.MulticlassAveragePrecision(20)),
        ("calibration error", "ece", torchmetrics.MulticlassCalibrationError(20, n_bins=15)),
    ):
        remark = ""
        if key == "ece":
            remark = "it gives a confidence of exactly 1 a bin of its own (.525 for .475); here there is none"
        yield name, source, abs(ours[key].value - float(metric(*pair))), remark
    targets = (rng.random((500, 6)) < 0.3).astype(int)
    scores = (0.7 * rng.random((500, 6)) + 0.3 * targets).astype(np.float32)
    ours = metrics.multi_label(scores, targets).overall
    pair = torch.from_numpy(scores), torch.from_numpy(targets)
    for name, key, metric in (
        ("several labels: mAP", "map_macro", torchmetrics.MultilabelAveragePrecision(6)),
        ("several labels: F1, macro", "f1_macro", torchmetrics.MultilabelF1Score(6)),
        ("several labels: F1, micro", "f1_micro", torchmetrics.MultilabelF1Score(6, average="micro")),
    ):
        yield name, source, abs(ours[key].value - float(metric(*pair))), ""


def hierarchical(trees: int = 200) -> Iterator[Row]:
    rng, worst = np.random.default_rng(2), 0.0
    for _ in range(trees):
        bits = rng.integers(0, 3, (15, 4)).astype(str)
        rows = [[*("".join(row[: k + 1]) for k in range(4)), f"c{i}"] for i, row in enumerate(bits)]
        tree = Tree.of(taxonomy._of_paths(rows, list("abcde"), [], "x"), [row[-1] for row in rows])
        labels, predictions = rng.integers(0, 15, (2, 40))
        pair = np.array(rows)[labels], np.array(rows)[predictions]
        ours = hierarchy.measures(tree, predictions, labels)
        for name, function in (
            ("h_precision", hiclass.metrics.precision),
            ("h_recall", hiclass.metrics.recall),
            ("h_f1", hiclass.metrics.f1),
        ):
            worst = max(worst, abs(ours[name].value - function(*pair)))
    yield (
        f"hierarchical precision, recall, F1 on {trees} random trees",
        f"hiclass {version('hiclass')}", worst, "its micro average",
    )  # fmt: skip
    worst = 0.0
    for seed in range(trees // 4):
        rng = np.random.default_rng(seed)
        edges = {(int(rng.integers(0, k)), k) for k in range(1, 40)}
        edges |= {(int(rng.integers(0, k)), k) for k in rng.integers(25, 40, seed % 8).tolist()}
        names = [str(k) for k in range(40)]
        tree = Tree.of(Taxonomy("x", names, sorted(edges), {}), names)
        graph = networkx.DiGraph(sorted(edges))
        steps = dict(networkx.all_pairs_shortest_path_length(graph))
        above = {k: networkx.ancestors(graph, k) | {k} for k in graph}
        below = {k: graph.subgraph(networkx.descendants(graph, k) | {k}) for k in graph}
        heights = {k: networkx.dag_longest_path_length(below[k]) for k in graph}
        a, b = map(np.array, zip(*itertools.combinations(range(40), 2), strict=True))
        found = tree.compare(a, b)
        for i, j, height, distance in zip(a, b, found.heights, found.distances, strict=True):
            common = above[i] & above[j]
            worst = max(worst, abs(height - min(heights[k] for k in common)))
            worst = max(worst, abs(distance - min(steps[k][i] + steps[k][j] for k in common)))
    yield (
        f"ancestors' heights and distances, {trees // 4} trees and graphs with two parents",
        f"networkx {version('networkx')}", float(worst), "",
    )  # fmt: skip


def published_heights(folder: Path) -> Iterator[Row]:
    """Heights of the lowest common ancestors of all pairs of iNaturalist 2019's species."""
    file = folder / "data" / "inaturalist19_ilsvrc_distances.txt.xz"
    with lzma.open(file, "rt") as lines:
        rows = [line.split() for line in lines if line.strip()]
    read = taxonomy.read(folder / "data" / "inaturalist19_isa.txt")
    inner = {read.nodes[parent] for parent, _ in read.edges}
    rows = [row for row in rows if row[0] not in inner and row[1] not in inner]
    names = sorted({row[0] for row in rows})
    number = {name: k for k, name in enumerate(names)}
    a, b = (np.array([number[row[side]] for row in rows]) for side in (0, 1))
    found = Tree.of(read, names).compare(a, b)
    worst = float(np.abs(found.heights - np.array([float(row[2]) for row in rows])).max())
    yield (
        f"common ancestors' heights, all {len(rows):,} pairs of iNaturalist 2019",
        "fiveai/making-better-mistakes `f0bb7d0`", worst,
        "on tiered ImageNet and ImageNet 27 to 29 % of pairs differ: theirs are of the unpruned WordNet",
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mistakes", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = [*scikit_learn(), *torch_metrics(), *hierarchical()]
    rows += [] if arguments.mistakes is None else published_heights(arguments.mistakes)
    lines = ["| what | source | largest difference | |", "|---|---|---|---|"]
    lines += [f"| {what} | {source} | {worst:.1e} | {remark} |" for what, source, worst, remark in rows]
    print("\n".join(lines))
    if arguments.write:
        if arguments.mistakes is None:
            raise SystemExit("--write needs --mistakes DIR")
        before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
        after = rest.split(END)[1]
        text = "\n".join([before + BEGIN, *lines, END])
        DOCUMENT.write_text(text + after, encoding="utf-8")
    return int(max(worst for _, _, worst, _ in rows) > BOUND)


if __name__ == "__main__":
    sys.exit(main())
