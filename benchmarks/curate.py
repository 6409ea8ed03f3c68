"""`omma curate`: memory and time, five rings, and what a balanced half of an unbalanced pool is worth.

    python benchmarks/curate.py scale --rows 1000000 --dim 64         # a synthetic table; minutes
    python benchmarks/curate.py scale --rows 10000000 --dim 384       # 15 GB of disk, twice
    python benchmarks/curate.py rings                                 # shares of five rings, by levels
    python benchmarks/curate.py halves --data cifar10_25k.zip         # 12 minutes on two cores, all of them
    python benchmarks/curate.py halves --data cifar10_25k.zip --features MODEL --steps 0   # entropies alone

halves: a pool of 2,000 images of one class of CIFAR-10 and 222 of the nine others together. Its vectors are
those of SimCLR (vit-n/4, 32 px) trained on this pool without labels (the honest way), or of --features. Half
of the pool is chosen by `curate`, and a random half beside it, with three seeds. Two runs at a time, one
thread each, then pretrain the same network for the same number of steps on either half, and k-NN with labels
of 2,000 other images tells 2,000 test images of all ten classes apart. Prints effective numbers of classes,
both k-NNs and their difference; the pool's and the data's split are the same for all seeds.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import omma
from omma.curation.hierarchical import build, default_levels, drawn, shares
from omma.features.vectors import ArrayVectors

RINGS = (20_000, 200, 1000, 500, 8000)
MAJOR, MINOR = 2000, 222
BANK, TEST = 200, 200  # images a class, for k-NN


# ---------------------------------------------------------------- scale
class Memory(threading.Thread):
    """The most anonymous memory of this process: pages of files that it reads are the system's."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.ended = 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            self.most = max(self.most, self.now())

    @staticmethod
    def now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def synthetic(file: Path, rows: int, dim: int) -> None:
    """Clusters of very different sizes around 1,000 directions, written a block at a time."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(1000, dim)).astype(np.float32)
    weights = 1 / np.arange(1, 1001)
    with open(file, "wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, rows, 65_536):
            n = min(65_536, rows - start)
            own = centers[rng.choice(1000, n, p=weights / weights.sum())]
            stream.write((own + 0.5 * rng.normal(size=(n, dim))).astype("<f4").tobytes())


def scale(rows: int, dim: int, size: int, levels: list[int] | None, similarity: float, folder: Path) -> None:
    file = folder / f"{rows}x{dim}.npy"
    if not file.exists():
        synthetic(file, rows, dim)
    before, memory, started = Memory.now(), Memory(), time.monotonic()
    memory.start()
    found = omma.curate(
        None, file, size, folder / "list.parquet", levels=levels, similarity=similarity, device="cpu"
    )
    seconds = time.monotonic() - started
    memory.ended.set()
    print(f"{rows:,} x {dim} ({file.stat().st_size / 2**30:.2f} GiB), {found.rows:,} chosen")
    print(
        f"{seconds:.0f} s; {(memory.most - before) / 2**20:.0f} MiB at the most, above {before / 2**20:.0f}"
    )
    print(*found.notes, sep="\n")


# ---------------------------------------------------------------- rings
def rings(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Five rings of one radius and width, apart, with very different numbers of points."""
    rng = np.random.default_rng(seed)
    centers = 4 * np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 2]])
    parts = []
    for n, center in zip(RINGS, centers):
        angle, radius = rng.uniform(0, 2 * np.pi, n), 1 + 0.1 * rng.normal(size=n)
        parts.append(center + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1))
    return np.concatenate(parts).astype(np.float32), np.repeat(np.arange(5), RINGS)


def all_rings(seeds: int) -> None:
    print("of 1,000 chosen, in each ring (equal: 200; random: 673, 7, 34, 17, 269)")
    for levels in ((1000, 300, 50, 5), (300, 60, 5), (1000, 100, 20), default_levels(sum(RINGS))):
        for seed in range(seeds):
            rows, ring = rings(seed)
            hierarchy, rng = build(ArrayVectors(rows), levels, seed=seed), np.random.default_rng(seed)
            chosen = drawn(hierarchy.levels[0], shares(hierarchy, 1000, rng), rng)
            print(levels, "seed", seed, np.bincount(ring[chosen], minlength=5).tolist())


# ---------------------------------------------------------------- halves
def unpacked(data: Path, major: str, folder: Path) -> tuple[Path, Path]:
    """The pool's folder of classes, and a list of other images with labels in two parts, for k-NN."""
    rng = np.random.default_rng(0)
    pool, rows = folder / "pool", []
    with zipfile.ZipFile(data) as archive:
        names: dict[tuple[str, str], list[str]] = {}
        for name in archive.namelist():
            if name.endswith(".jpg"):
                part, label, _ = name.split("/")
                names.setdefault((part, label), []).append(name)
        minors = sorted({label for _, label in names} - {major})
        sizes = dict(zip(minors, (len(part) for part in np.array_split(np.arange(MINOR), len(minors)))))
        for (part, label), members in sorted(names.items()):
            order = rng.permutation(sorted(members)).tolist()
            taken = sizes.get(label, MAJOR) if part == "train" else 0
            bank = order[-BANK:] if part == "train" else order[:TEST]
            for name in [*order[:taken], *bank]:
                (folder / "other" / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / "other" / name).write_bytes(archive.read(name))
            for name in order[:taken]:
                (pool / label).mkdir(parents=True, exist_ok=True)
                os.link(folder / "other" / name, pool / label / Path(name).name)
            rows += [(folder / "other" / name, label, part) for name in bank]
    with open(folder / "judged.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    return pool, folder / "judged.csv"


def pretraining(images: Path, out: Path, steps: int, seed: int) -> list[str]:
    words = ["pretrain", images, "--method", "simclr", "--model", "vit-n/4", "--image-size", 32, "--out", out]
    words += ["--steps", steps, "--seed", seed, "--workers", 0, "--device", "cpu"]
    return [sys.executable, "-m", "omma", *map(str, words)]


def in_pairs(commands: list[list[str]]) -> Iterator[float]:
    """Run commands, two at a time with a thread each; seconds of each pair."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    for pair in (commands[k : k + 2] for k in range(0, len(commands), 2)):
        started = time.monotonic()
        running = [subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL) for words in pair]
        if any(process.wait() for process in running):
            raise RuntimeError(f"a run failed: {' '.join(pair[0])}")
        yield time.monotonic() - started


def knn(run: Path, judged: Path) -> tuple[float, list[float]]:
    found = omma.evaluate(run, judged, protocols=("knn",), floors=False, device="cpu", cache=None).to_json()
    result = next(r for r in found["results"] if r["subject"] == "trained" and r["metric"] == "top1")
    return result["value"], result["interval95"]


def halves(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    pool, judged = unpacked(args.data, args.major, folder)
    features, size = args.features, (MAJOR + MINOR) // 2
    if features is None:
        command = pretraining(pool, folder / "f", args.feature_steps, 0)
        print(
            f"SimCLR on the pool, {args.feature_steps} steps: {next(in_pairs([command])):.0f} s", flush=True
        )
        features = folder / "f"
    rows, commands = [], []
    for seed in range(args.seeds):
        for arm, strategy in (("random", "random"), ("curated", args.strategy)):
            out = folder / f"{arm}-{seed}.csv"
            found = omma.curate(
                features, pool, size, out, strategy=strategy, seed=seed, levels=args.levels,
                similarity=1.0, device="cpu",
            )  # fmt: skip
            before, after = found.classes_before, found.classes_after
            rows.append({"seed": seed, "arm": arm, "classes": after, "pool": before})
            commands.append(pretraining(out, folder / f"run-{arm}-{seed}", args.steps, seed))
            print(f"seed {seed}, {arm}: {after:.2f} effective classes, {before:.2f} in the pool", flush=True)
    if args.steps:
        for seconds in in_pairs(commands):
            print(f"two runs of {args.steps} steps: {seconds:.0f} s", flush=True)
        for row in rows:
            row["knn"], row["interval95"] = knn(folder / f"run-{row['arm']}-{row['seed']}", judged)
            print(f"seed {row['seed']}, {row['arm']}: k-NN {row['knn']:.4f} {row['interval95']}")
        gains = [b["knn"] - a["knn"] for a, b in zip(rows[::2], rows[1::2])]
        print(f"curated - random: {np.round(gains, 4).tolist()}, mean {np.mean(gains):+.4f}")
    return {"rows": rows, "size": size, "steps": args.steps, "strategy": args.strategy, "major": args.major}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("scale", "rings", "halves"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--size", type=int, default=10_000)
    parser.add_argument(
        "--similarity", type=float, default=1.0, help="scale: below 1, near-copies are sought"
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--feature-steps", type=int, default=400)
    parser.add_argument("--major", default="automobile")
    parser.add_argument("--strategy", default="balanced")
    parser.add_argument("--levels", type=lambda text: [int(k) for k in text.split(",")])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="kept; by default a temporary one")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if args.what == "scale":
            scale(args.rows, args.dim, args.size, args.levels, args.similarity, folder)
        elif args.what == "rings":
            all_rings(args.seeds)
        else:
            if args.data is None:
                parser.error("halves: --data is needed")
            found = halves(args, folder)
            if args.json:
                args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
