"""Staged runs whose outcome is known by labels: do the verdicts of `omma pretrain` agree?

    python benchmarks/verdicts.py DATA --out DIR [--groups chosen tested] [--only NAME ...]
    python benchmarks/verdicts.py DATA --out DIR --table

DATA is a folder with cifar10_25k.zip, tiny_imagenet_6k.zip, digits_mnist_t10k_usps.npz and Fashion-MNIST's
test images in IDX format. Sixty small runs are made to collapse, stopped before they learn anything, or left
to learn. The thresholds of `pretraining.health` were chosen on the thirty of the group "chosen"; the thirty
of "tested" have other seeds, other data and, in part, other methods. Runs see no labels, but for those of
supervised methods. Afterwards k-NN and a ridge probe compare each encoder with the untrained one, by the 99 %
interval of the paired difference on 3,000 images that the run has not seen:

- good: one of them is better, and none is worse;
- collapsed: any other run that was made to collapse;
- idle: any other.

DIR/runs.jsonl gets one line a run: every reading, the method's figures, and what the labels say. So --table,
which prints the confusion matrix, can give the verdicts again with other thresholds. Runs that are there are
not repeated.
"""

import argparse
import contextlib
import csv
import gzip
import io
import json
import os
import shutil
import statistics
import time
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import omma
from omma import methods
from omma.core.protocols import HealthSignal
from omma.data.batches.preprocess import scale
from omma.data.sources.collection import ArrayImages
from omma.evaluation import confidence, knn, ridge
from omma.evaluation.split import Split
from omma.ops.batch_norm import calibrated
from omma.pretraining import health, monitor, requirements

SIDE = 32
TRAIN, TEST = 3_000, 3_000
TRUTHS, VERDICTS = ("collapsed", "idle", "good"), ("collapsed", "idle", "learning")


@dataclass(frozen=True, kw_only=True)
class Staged:
    """One run: what is meant to become of it, and how it is trained."""

    meant: str  # of TRUTHS
    method: str
    data: str = "cifar10"
    model: str = "vitc-15mf"
    steps: int
    rate: float | None = None  # the peak learning rate; None: the recipe's ...
    times: float = 1.0  # ... times this
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        parts = [self.meant, self.method, self.data, f"{self.steps}"]
        parts += [] if self.rate is None else [f"lr{self.rate:g}"]
        parts += [] if self.times == 1 else [f"x{self.times:g}"]
        parts += [f"{key}{value}" for key, value in self.options.items()]
        return "-".join([*parts, f"s{self.seed}"])


VIT = "vit-n/4"
NO_VARIANCE = {"variance": 0.0, "covariance": 0.0}
UNCENTRED = {"centring": "off", "momentum": 0.9}
NO_SPREAD = {"koleo": 0.0}
NO_AVERAGE = {"momentum": 0.0}
CHOSEN = (
    Staged(meant="good", method="simclr", steps=160),
    Staged(meant="good", method="moco", steps=160),
    Staged(meant="good", method="byol", steps=200, options={"momentum": 0.9}),
    Staged(meant="good", method="vicreg", steps=160),
    Staged(meant="good", method="dino", steps=160),
    Staged(meant="good", method="lejepa", steps=200),
    Staged(meant="good", method="mae", model=VIT, steps=300, times=1.5, data="fashion"),
    Staged(meant="good", method="simmim", model=VIT, steps=200),
    Staged(meant="good", method="ibot", model=VIT, steps=160),
    Staged(meant="good", method="supervised", steps=160),
    Staged(meant="idle", method="simclr", steps=40, rate=1e-9),
    Staged(meant="idle", method="dino", steps=40, rate=1e-9),
    Staged(meant="idle", method="vicreg", steps=40, rate=1e-9),
    Staged(meant="idle", method="mae", model=VIT, steps=40, rate=1e-9),
    Staged(meant="idle", method="moco", steps=2),
    Staged(meant="idle", method="byol", steps=2),
    Staged(meant="idle", method="lejepa", steps=3),
    Staged(meant="idle", method="mae", model=VIT, steps=30),
    Staged(meant="idle", method="mae", model=VIT, steps=80),
    Staged(meant="idle", method="simmim", model=VIT, steps=25),
    Staged(meant="collapsed", method="dino", steps=100, options=UNCENTRED),
    Staged(meant="collapsed", method="ibot", model=VIT, steps=60, times=1000),
    Staged(meant="collapsed", method="vicreg", steps=100, options=NO_VARIANCE),
    Staged(meant="collapsed", method="simclr", steps=100, times=1000),
    Staged(meant="collapsed", method="byol", steps=100, times=300, options=NO_AVERAGE),
    Staged(meant="collapsed", method="lejepa", steps=80, options={"weight": 0.0}),
    Staged(meant="collapsed", method="mae", model=VIT, steps=60, times=1000),
    Staged(meant="collapsed", method="simmim", model=VIT, steps=60, times=1000),
    Staged(meant="collapsed", method="moco", steps=80, times=1000),
    Staged(meant="collapsed", method="supervised", steps=80, times=1000),
)
TESTED = (
    Staged(meant="good", method="simclr", data="fashion", seed=3, steps=200),
    Staged(meant="good", method="vicreg", data="digits", seed=4, steps=200),
    Staged(meant="good", method="byol", data="fashion", seed=5, steps=200, options={"momentum": 0.95}),
    Staged(meant="good", method="dino", data="digits", model=VIT, seed=6, steps=160),
    Staged(meant="good", method="dinov2", data="cifar10", model=VIT, seed=7, steps=160),
    Staged(meant="good", method="moco", data="digits", seed=8, steps=160),
    Staged(meant="good", method="mae", data="digits", model=VIT, seed=9, steps=300, times=1.5),
    Staged(meant="good", method="vqvae", data="digits", model=VIT, seed=10, steps=200),
    Staged(meant="good", method="grafit", data="tiny_imagenet", seed=11, steps=160),
    Staged(meant="good", method="simmim", data="fashion", model=VIT, seed=12, steps=300),
    Staged(meant="idle", method="byol", data="fashion", seed=3, steps=40, rate=1e-9),
    Staged(meant="idle", method="lejepa", data="digits", seed=4, steps=40, rate=1e-9),
    Staged(meant="idle", method="simmim", data="fashion", model=VIT, seed=5, steps=40, rate=1e-9),
    Staged(meant="idle", method="vqvae", data="cifar10", model=VIT, seed=6, steps=40, rate=1e-9),
    Staged(meant="idle", method="simclr", data="tiny_imagenet", seed=7, steps=2),
    Staged(meant="idle", method="dinov2", data="fashion", model=VIT, seed=8, steps=2),
    Staged(meant="idle", method="ibot", data="digits", model=VIT, seed=9, steps=3),
    Staged(meant="idle", method="mae", data="tiny_imagenet", model=VIT, seed=10, steps=30),
    Staged(meant="idle", method="mae", data="fashion", model=VIT, seed=11, steps=20),
    Staged(meant="idle", method="grafit", data="tiny_imagenet", seed=12, steps=3),
    Staged(meant="collapsed", method="dino", data="fashion", seed=3, steps=100, options=UNCENTRED),
    Staged(
        meant="collapsed",
        method="dinov2",
        data="digits",
        model=VIT,
        seed=4,
        steps=80,
        times=1000,
        options=NO_SPREAD,
    ),
    Staged(meant="collapsed", method="vicreg", data="digits", seed=5, steps=100, options=NO_VARIANCE),
    Staged(meant="collapsed", method="simclr", data="digits", seed=6, steps=100, times=1000),
    Staged(
        meant="collapsed",
        method="byol",
        data="digits",
        seed=7,
        steps=100,
        times=300,
        options=NO_AVERAGE,
    ),
    Staged(meant="collapsed", method="lejepa", data="fashion", seed=8, steps=80, options={"weight": 0.0}),
    Staged(meant="collapsed", method="vqvae", data="fashion", model=VIT, seed=9, steps=60, times=1000),
    Staged(meant="collapsed", method="grafit", data="tiny_imagenet", seed=10, steps=80, times=1000),
    Staged(meant="collapsed", method="mae", data="digits", model=VIT, seed=11, steps=60, times=1000),
    Staged(meant="collapsed", method="moco", data="fashion", seed=12, steps=80, times=1000),
)
GROUPS = {"chosen": CHOSEN, "tested": TESTED}


# ---------------------------------------------------------------- data
def load(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 32, 32, c] of 8 bits, and their labels."""
    if name == "digits":
        with np.load(folder / "digits_mnist_t10k_usps.npz") as arrays:
            return _padded(arrays["mnist"]), arrays["mnist_labels"].astype(np.int64)
    if name == "fashion":
        pixels, labels = (
            np.frombuffer(gzip.decompress((folder / file).read_bytes()), np.uint8, offset=offset)
            for file, offset in (
                ("fashion_t10k-images-idx3-ubyte.gz", 16), ("fashion_t10k-labels-idx1-ubyte.gz", 8),
            )
        )  # fmt: skip
        return _padded(pixels.reshape(-1, 28, 28)), labels.astype(np.int64)
    pixels, labels = [], []
    with zipfile.ZipFile(folder / {"cifar10": "cifar10_25k.zip"}.get(name, f"{name}_6k.zip")) as archive:
        for row in csv.DictReader(io.TextIOWrapper(archive.open("labels.csv"), encoding="utf-8")):
            picture = Image.open(io.BytesIO(archive.read(row["path"]))).convert("RGB")
            pixels.append(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
            labels.append(row["label"])
    return np.stack(pixels), np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _padded(images: np.ndarray) -> np.ndarray:
    """Grey pictures [n, 28, 28] as [n, 32, 32, 1]."""
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None]


# ---------------------------------------------------------------- a run
def run(staged: Staged, images: np.ndarray, labels: np.ndarray, folder: Path) -> dict[str, Any]:
    """Train, and compare with the untrained network by labels."""
    order = np.random.default_rng(staged.seed).permutation(len(images))
    test, train = order[:TEST], order[TEST : TEST + TRAIN]
    recipe = methods.get(staged.method).small(SIDE, staged.model)
    seen = (None, ())  # labels and names of classes
    if requirements.needs_of(staged.method, recipe.config).labels:
        seen = labels[train], tuple(map(str, range(labels.max() + 1)))
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    result = {"name": staged.name, "meant": staged.meant, "method": staged.method}
    try:
        ended = omma.pretrain(
            ArrayImages(images[train], *seen), method=staged.method, model=staged.model, image_size=SIDE,
            recipe="small", steps=staged.steps, batch_size=64,
            lr=staged.rate or staged.times * (64 / recipe.batch) ** 0.5 * recipe.lr,
            device="cpu", precision="fp32", workers=0, seed=staged.seed, options=dict(staged.options),
            model_options={"depth": 2} if staged.model == VIT else None, out=folder,
        )  # fmt: skip
    except ValueError as error:  # diverged
        return {**result, "error": str(error)}
    if ended.stopped_by is not None:
        raise SystemExit(128 + ended.stopped_by)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = compare(folder, images, labels, train, test, staged.seed)
    return {
        **result,
        "scores": scores,
        "seconds": time.monotonic() - began,
        "readings": [line for line in lines if line["event"] == "health"],
        "steps": [line for line in lines if line["event"] == "step"],
    }


def compare(
    folder: Path, images: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int
) -> dict[str, Any]:
    """k-NN and ridge of the run's encoder, of the untrained one, and the interval of the difference."""
    trained = omma.load(folder)
    right = {}
    for name, model in (("trained", trained), ("untrained", trained.untrained(seed))):
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        inputs = [model.preprocess.normalise(scale(pixels[rows], model.preprocess)) for rows in (train, test)]
        # statistics of batch norms are not learned: the untrained network gets those of the training images
        own = name == "trained"
        with contextlib.nullcontext() if own else calibrated(model.encoder, inputs[0].split(64)):
            parts = [monitor.vectors(model.encoder, each).numpy() for each in inputs]
        if not all(np.isfinite(part).all() for part in parts):
            parts = [np.zeros_like(part) for part in parts]
        data = Split(parts[0], labels[train], parts[1], labels[test])
        right[name] = {
            "knn": knn.predict_each(data, ks=(20,))[20] == labels[test],
            "ridge": ridge.predict(data).predictions == labels[test],
        }
    return {
        protocol: {
            **{name: float(right[name][protocol].mean()) for name in right},
            "interval99": confidence.paired(
                right["trained"][protocol], right["untrained"][protocol], level=0.99
            ),
        }
        for protocol in ("knn", "ridge")
    }


# ---------------------------------------------------------------- the verdicts
def truth(row: Mapping[str, Any]) -> str:
    """What became of the run, by labels; see above."""
    intervals = [score["interval99"] for score in row["scores"].values()]
    if any(low > 0 for low, _ in intervals) and not any(high < 0 for _, high in intervals):
        return "good"
    return "collapsed" if row["meant"] == "collapsed" else "idle"


def verdict(row: Mapping[str, Any]) -> health.Verdict:
    """The verdict on a run's last reading, by today's thresholds."""
    names = {each.name for each in fields(health.Reading)}
    readings = [health.Reading(**{k: v for k, v in r.items() if k in names}) for r in row["readings"]]
    since = readings[-2].step if len(readings) > 1 else 0
    recent = [step for step in row["steps"] if step["step"] > since] or row["steps"][-1:]
    means = {
        name: statistics.fmean(step[name] for step in recent)
        for name, value in (recent[-1].items() if recent else ())
        if isinstance(value, float)
    }
    return health.judge(readings, means, signals(row["method"]))


def signals(method: str) -> tuple[HealthSignal, ...]:
    """What the method declares, whatever it is built with."""
    return tuple(methods.get(method).Method.health_signals(None))  # type: ignore[arg-type]


def table(rows: list[dict[str, Any]], group: str) -> str:
    """The confusion matrix, and every run whose verdict is not the truth."""
    counts: Counter[tuple[str, str]] = Counter()
    wrong = []
    for row in rows:
        said, fact = verdict(row), truth(row)
        counts[fact, said.state] += 1
        if TRUTHS.index(fact) != (VERDICTS.index(said.state) if said.state in VERDICTS else -1):
            wrong.append(f"- {row['name']} ({fact}): {said.text}")
    lines = [f"{group}: {len(rows)} runs, {len(wrong)} verdicts wrong", ""]
    lines += [f"| truth | {' | '.join(VERDICTS)} | other |", "|---|" + "---|" * (len(VERDICTS) + 1)]
    for name in TRUTHS:
        cells = [counts[name, said] for said in VERDICTS]
        other = sum(n for (t, said), n in counts.items() if t == name and said not in VERDICTS)
        lines.append(f"| {name} | {' | '.join(map(str, cells))} | {other} |")
    return "\n".join([*lines, "", *wrong])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--only", nargs="+", default=("",), help="runs whose names hold one of these")
    parser.add_argument("--table", action="store_true", help="print the verdicts of the runs made so far")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "runs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["group"], row["name"]) for row in rows}
    for group in args.groups:
        for staged in [] if args.table else GROUPS[group]:
            if (group, staged.name) in done or not any(part in staged.name for part in args.only):
                continue
            folder = args.out / f"run-{os.getpid()}"
            row = {"group": group} | run(staged, *load(args.data, staged.data), folder)
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            rows.append(row)
            print(staged.name, row.get("error") or truth(row), flush=True)
    for group in args.groups:
        made = [row for row in rows if row["group"] == group and "scores" in row]
        print(f"\n{table(made, group)}")


if __name__ == "__main__":
    main()
