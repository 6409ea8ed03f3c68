"""How cost grows with an image's area: Swin linearly, ViT quadratically.

    python benchmarks/area.py [--sizes 224 320 448 640 896] [--rounds 5] [--train] [--json FILE]
    python benchmarks/area.py --memory --sizes 224 448 896 1344 2048

Measured are swin-t and vit-s/16, which cost the same at 224 px, and vit-s/16 with other token mixers:
linear attention, and BigBird's local, global and random attention. One image at a time, in fp32, forward
only or (--train) with the backward pass; the networks take turns, and the best round counts. --memory: peak
memory in a fresh process, above that before its first image. Multiply-adds are counted, not timed. An
exponent is fitted to each (cost ~ area^e, least squares of logarithms): 1 is linear. That of the whole ViT
lies between 1 and 2 at these sizes, since the work on each token is linear. The last line counts only work
on pairs of tokens: all that exceeds 12 d^2 per token in each layer.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import Contender

from omma import backbones
from omma.core.device import peak_memory
from omma.ops.cost import multiply_adds

SUBJECTS: dict[str, dict[str, Any]] = {
    "swin-t": {"name": "swin-t"},
    "vit-s/16": {"name": "vit-s/16"},
    "vit-s/16 linear": {"name": "vit-s/16", "mixer": "linear"},
    "vit-s/16 bigbird": {"name": "vit-s/16", "mixer": "bigbird"},
}
HOME = 224  # px that positions are made for; other sizes interpolate them


def counted(subject: str, size: int) -> int:
    """Multiply-adds of one image."""
    return multiply_adds(backbones.outline(image_size=HOME, **SUBJECTS[subject]), (1, 3, size, size))


def pairs(size: int) -> int:
    """Multiply-adds of a vit-s/16 that are spent on pairs of tokens."""
    one, two = (
        multiply_adds(backbones.outline(name="vit-s/16", image_size=HOME, depth=d), (1, 3, size, size))
        for d in (1, 2)
    )
    tokens, dim = (size // 16) ** 2 + 1, 384
    return 12 * (two - one - 12 * tokens * dim**2)


def contender(subject: str, size: int, train: bool) -> Contender:
    torch.manual_seed(0)
    network = backbones.build(image_size=HOME, **SUBJECTS[subject]).train(train)
    image = torch.randn(1, 3, size, size)

    def run() -> None:
        with torch.inference_mode(not train):
            pooled = network(image).pooled
        if train:
            pooled.sum().backward()

    return Contender(subject, run, 1)


def memory_of(subject: str, size: int, train: bool) -> int:
    """Peak memory of this process in bytes for an image of this size, above what it used before."""
    one = contender(subject, size, train)
    before = peak_memory(common.CPU)
    one.run()
    return peak_memory(common.CPU) - before


def memory(sizes: list[int], train: bool) -> list[dict[str, Any]]:
    """Each subject and size in a fresh process; prints a table in MiB."""
    results = []
    print(f"{'MiB':24}" + "".join(f"{size:>9} px" for size in sizes))
    for subject in SUBJECTS:
        taken = []
        for size in sizes:
            command = [sys.executable, __file__, "--sizes", str(size), "--subject", subject]
            done = subprocess.run(command + ["--train"] * train, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{subject} at {size} px: {done.stderr.strip()[-2000:]}")
            taken.append(json.loads(done.stdout))
        print(f"{subject:24}" + "".join(f"{bytes_ / 2**20:12,.0f}" for bytes_ in taken), flush=True)
        results.append({"model": subject, "sizes": sizes, "train": train, "bytes": taken})
    return results


def exponent(sizes: list[int], costs: list[float]) -> float:
    """e of cost ~ area^e, by least squares of logarithms."""
    return float(np.polyfit(2 * np.log(sizes), np.log(costs), 1)[0])


def measure(sizes: list[int], rounds: int, train: bool) -> list[dict[str, Any]]:
    """For each subject: multiply-adds and seconds by size, and their exponents."""
    seconds: dict[str, list[list[float]]] = {subject: [] for subject in SUBJECTS}
    for size in sizes:
        turns = common.take_turns([contender(subject, size, train) for subject in SUBJECTS], rounds)
        for subject, each in turns.items():
            seconds[subject].append(each)
    results = []
    for subject in SUBJECTS:
        macs, best = [counted(subject, size) for size in sizes], [min(each) for each in seconds[subject]]
        results.append(
            {
                "model": subject,
                "sizes": sizes,
                "multiply_adds": macs,
                "seconds": seconds[subject],
                "exponent_multiply_adds": exponent(sizes, macs),
                "exponent_seconds": exponent(sizes, best),
            }
        )
    return results


def show(results: list[dict[str, Any]]) -> None:
    """Print a table of multiply-adds and of the best round's milliseconds."""
    sizes = results[0]["sizes"]
    here = common.machine()
    print(f"{here['processor']}, {here['threads']} threads; torch {here['versions']['torch']}")
    for what, key, exp in (
        ("10^9 multiply-adds", "multiply_adds", "exponent_multiply_adds"),
        ("milliseconds", "seconds", "exponent_seconds"),
    ):
        print(f"{what:24}" + "".join(f"{size:>9} px" for size in sizes) + f"{'area^':>8}")
        for result in results:
            values = (v / 1e9 if key == "multiply_adds" else 1e3 * min(v) for v in result[key])
            print(f"{result['model']:24}" + "".join(f"{v:12.2f}" for v in values) + f"{result[exp]:8.2f}")
    within = [pairs(size) for size in sizes]
    line = "".join(f"{v / 1e9:12.2f}" for v in within)
    print(f"{'vit-s/16, pairs':24}{line}{exponent(sizes, within):8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 320, 448, 640, 896], help="px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train", action="store_true", help="with the backward pass")
    parser.add_argument("--memory", action="store_true", help="peak memory in place of time")
    parser.add_argument("--subject", choices=SUBJECTS, help="(for --memory: what this process is for)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.subject:
        print(memory_of(args.subject, args.sizes[0], args.train))
        return
    if args.memory:
        results = memory(args.sizes, args.train)
    else:
        if len(set(args.sizes)) < 2:
            parser.error("--sizes: two or more, to fit an exponent to")
        results = measure(args.sizes, args.rounds, args.train)
        show(results)
    common.save(args.json, "area", __doc__, results)


if __name__ == "__main__":
    main()
