"""How well wrong labels are found: a share of train labels is flipped, and the ranking compared with that.

    python benchmarks/mislabelled.py MODEL LABELLED [--share 0.1] [--seeds 3] [--cache features.npz]

Labels are flipped uniformly to other classes. Reported for each seed: AUROC of the score (1 - the probability
of the given label), precision of the first `share` of the ranking, precision and recall of the list of
flagged labels, and the share that is flagged without any flip. Beside it the same on in-sample probabilities,
which nobody should use, by the same probe and its strength.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from omma import weights
from omma.curation import mislabelled
from omma.data.sources import collection
from omma.evaluation import linear
from omma.weights.cached_features import cached_features


def features(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and labels of the train part (all images where there is no split)."""
    if args.cache is not None and args.cache.exists():
        stored = np.load(args.cache)
        return stored["vectors"], stored["labels"]
    images = collection.open_images(args.labelled)
    if images.splits is not None:
        images = images.subset(images.splits == "train")
    model, name = weights.named(args.model)
    found = cached_features(model, images, torch.device("cpu"), torch.float32, source=name)
    assert images.labels is not None
    labels = images.labels[found.indices]
    if args.cache is not None:
        np.savez(args.cache, vectors=found.vectors, labels=labels)
    return found.vectors, labels


def flip(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a share has another class, uniformly drawn, and which these are."""
    rng = np.random.default_rng((seed, 0xF11))
    k, wrong = int(labels.max()) + 1, np.zeros(len(labels), bool)
    wrong[rng.permutation(len(labels))[: round(share * len(labels))]] = True
    return np.where(wrong, (labels + rng.integers(1, k, len(labels))) % k, labels), wrong


def in_sample(x: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """The probability of the given label by a probe that was fitted on it."""
    targets = linear.one_hot(labels, int(labels.max()) + 1)
    pairs = mislabelled.grouped_folds(labels, np.arange(len(labels)), seed)
    settings = linear.choose(x, targets, pairs=pairs[:1], seed=seed)
    logits = torch.from_numpy(linear.fit(x, targets, settings, seed=seed)(x))
    return logits.softmax(-1).numpy()[np.arange(len(labels)), labels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("labelled")
    parser.add_argument("--share", type=float, default=0.1, help="of the labels that are flipped")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="file to keep the features in")
    args = parser.parse_args()
    x, labels = features(args)
    codes = np.unique(labels, return_inverse=True)[1]
    print(f"{len(x):,} images, {codes.max() + 1} classes, {x.shape[1]} dimensions")
    clean = mislabelled.find(x, codes)
    print(f"without flips: {int(clean.flagged.sum()):,} flagged ({clean.flagged.mean():.2%})")
    rows = []
    for seed in range(args.seeds):
        given, wrong = flip(codes, args.share, seed)
        found = mislabelled.find(x, given, seed=seed)
        first = np.argsort(found.confidence, kind="stable")[: wrong.sum()]
        flagged, truth = found.flagged, wrong[found.rows]
        right = (found.suggested == codes[found.rows])[flagged & truth].mean()
        seen = in_sample(x, given, seed)
        row = (
            roc_auc_score(truth, 1 - found.confidence), truth[first].mean(), truth[flagged].mean(),
            flagged[truth].mean(), right, roc_auc_score(wrong, 1 - seen),
            wrong[np.argsort(seen, kind="stable")[: wrong.sum()]].mean(),
        )  # fmt: skip
        rows.append(row)
        print(
            f"seed {seed}: AUROC {row[0]:.4f}, precision of the first {args.share:.0%} {row[1]:.3f}; "
            f"list of {int(flagged.sum()):,}: precision {row[2]:.3f}, recall {row[3]:.3f}, true class "
            f"suggested {row[4]:.3f}; in-sample: AUROC {row[5]:.4f}, precision {row[6]:.3f}"
        )
    mean = np.mean(rows, 0)
    print(f"mean: AUROC {mean[0]:.4f}, precision {mean[1]:.3f}; in-sample {mean[5]:.4f}, {mean[6]:.3f}")


if __name__ == "__main__":
    main()
