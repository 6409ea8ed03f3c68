"""Does `order` know the order of frames in sequences that it never saw?

    python benchmarks/order.py turntable_300x18_s48.zip --out DIR --steps 400 --most 1
    python benchmarks/order.py clips/labels.csv --out DIR --steps 300 --folds 3 --most 15

The table has the columns path, sequence and frame; of an archive it is labels.csv. Whole sequences are held
out: a third in each of three folds, or a fifth with one. Printed with 95 % intervals by sequence, over all
held-out images with the frames that go with them: balanced accuracy and the area under the curve (AUC), of
tuples in order against those that are not; chance is .5. Beside them the network as it is built, and a linear
classifier of the differences between the frames' pixels. Finished runs are not repeated.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tracked import Row, in_batches, interval, method_of, pictures, unpacked, write

import omma
from omma.core.protocols import Key
from omma.data.batches.frames import Sampler
from omma.data.sources import sequences
from omma.data.sources.collection import open_images
from omma.methods import order


def folds(rows: list[dict[str, str]], count: int) -> list[tuple[list[Row], list[Row]]]:
    """Rows to train on and rows held out, by sequence; a fifth of the sequences with one fold."""
    names = np.random.default_rng(0).permutation(sorted({row["sequence"] for row in rows}))
    parts = np.array_split(names, max(count, 5 if count == 1 else count))[:count]
    return [
        ([r for r in rows if r["sequence"] not in part], [r for r in rows if r["sequence"] in part])
        for part in map(set, parts)
    ]


def samples(table: Path, config: order.Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the five frames around each image that has enough, and their sequences."""
    of = sequences.read(open_images(str(table)))
    sampler = Sampler(of.sequence, of.frame, order.frames(config))
    rows = np.flatnonzero(sampler.usable())
    return sampler(Key(seed, np.zeros(len(rows), np.int64), rows)), of.sequence[rows]


def balanced(scores: np.ndarray) -> float:
    """Balanced accuracy of scores of the tuples [n, 3], above 0 if in order; the first of each is."""
    return float((scores[:, 0] > 0).mean() + (scores[:, 1:] <= 0).mean()) / 2


def auc(scores: np.ndarray) -> float:
    """The chance that a tuple in order has a higher score than one that is not."""
    return float(roc_auc_score(np.tile([1, 0, 0], len(scores)), scores.ravel()))


def by_network(net: order.Method, x: Tensor, rows: np.ndarray) -> np.ndarray:
    """Scores of the tuples, forwards."""

    def scores(part: Tensor) -> Tensor:
        logits = net.logits(x[part], torch.zeros(len(part), dtype=torch.bool))
        return logits[..., 1] - logits[..., 0]

    return in_batches(scores, torch.from_numpy(rows)).numpy()


def by_pixels(x: Tensor, rows: np.ndarray) -> np.ndarray:
    """Squared differences of the middle frame from the others, and between those: [n, 3, 3 cells]."""
    small = torch.nn.functional.adaptive_avg_pool2d(x, 8).flatten(1)
    f = small[torch.from_numpy(rows)][:, torch.tensor(order.TUPLES)]  # [n, 3 tuples, 3 frames, d]
    first, middle, last = f.unbind(2)
    pairs = ((first, middle), (middle, last), (first, last))
    return torch.cat([(a - b).square() for a, b in pairs], -1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--folds", type=int, default=1)
    parser.add_argument("--least", type=float, default=1.0)
    parser.add_argument("--most", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=48)
    args = parser.parse_args()
    if args.data.suffix == ".zip":
        rows, folder = unpacked(args.data, args.out / "images"), args.out / "images"
    else:
        rows, folder = list(csv.DictReader(args.data.open(newline=""))), args.data.parent
    answers: dict[str, list[np.ndarray]] = {}
    groups = []
    config = order.Config(least=args.least, most=args.most)
    for k, part in enumerate(folds(rows, args.folds)):
        train, test = (write(folder / f"{n}{k}.csv", p) for n, p in zip(("train", "test"), part, strict=True))
        run = args.out / f"order-{args.steps}-{k}"
        if not (run / "model.safetensors").exists():
            omma.pretrain(
                str(train), method="order", model="vitc-15mf", image_size=args.image_size, steps=args.steps,
                out=run, options={"least": args.least, "most": args.most},
            )  # fmt: skip
        seen, unseen = (pictures(run, open_images(str(table))) for table in (train, test))
        known, (asked, codes) = samples(train, config, 0)[0], samples(test, config, 0)
        groups.append(codes + 10_000 * k)
        for trained in (True, False):
            net = method_of(run, open_images(str(train)), trained)
            name = "trained" if trained else "untrained"
            answers.setdefault(name, []).append(by_network(net, unseen, asked))  # type: ignore[arg-type]
        linear = LogisticRegression(max_iter=2000, class_weight="balanced")
        linear.fit(by_pixels(seen, known).reshape(3 * len(known), -1), np.tile([1, 0, 0], len(known)))
        floor = linear.decision_function(by_pixels(unseen, asked).reshape(3 * len(asked), -1))
        answers.setdefault("pixels", []).append(floor.reshape(-1, 3))
    for name, scores in answers.items():
        values, where = np.concatenate(scores), np.concatenate(groups)
        print(json.dumps({
            "what": name, "sequences": len(set(where.tolist())), "tuples": 3 * len(values),
            "balanced_accuracy": interval(values, where, balanced), "auc": interval(values, where, auc),
        }))  # fmt: skip


if __name__ == "__main__":
    main()
