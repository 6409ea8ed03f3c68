"""Kill runs at random moments, resume them, and compare their weights with an uninterrupted run's.

    python benchmarks/kill.py [--kills 10] [--steps 400]

Each kill has its own run: `kill -9` at a random time after a random step was saved. The run is resumed, and
its weights are compared bit for bit with those of the uninterrupted run.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def command(data: Path, out: Path, steps: int) -> list[str]:
    return [sys.executable, "-m", "omma", "pretrain", str(data), "--out", str(out), "--steps", str(steps),
            "--batch-size", "32", "--checkpoint-every", "0.3", "--seed", "3"]  # fmt: skip


def last_saved(out: Path) -> int:
    """The newest checkpoint's step; 0 if there is none."""
    return max((int(p.stem.rpartition("-")[2]) for p in (out / "checkpoints").glob("step-*.pt")), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    rng = random.Random(0)
    folder = Path(tempfile.mkdtemp())
    pixels = np.random.default_rng(0).integers(0, 256, (500, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=pixels)
    quiet = {"stdout": subprocess.DEVNULL}
    subprocess.run(command(folder / "images.npz", folder / "straight", args.steps), check=True, **quiet)
    reference = load_file(folder / "straight" / "model.safetensors")
    equal = 0
    for kill in range(args.kills):
        out = folder / f"killed{kill}"
        words = command(folder / "images.npz", out, args.steps)
        process = subprocess.Popen(words, **quiet)
        target, delay = rng.randrange(int(0.9 * args.steps)), rng.uniform(0, 1)
        while process.poll() is None and last_saved(out) < target:
            time.sleep(0.01)
        time.sleep(delay)
        alive = process.poll() is None
        process.kill()
        process.wait()
        saved = last_saved(out)
        subprocess.run(words, check=True, **quiet)
        weights = load_file(out / "model.safetensors")
        same = weights.keys() == reference.keys() and all((weights[k] == reference[k]).all() for k in weights)
        equal += same and alive
        state = "running" if alive else "already finished"
        print(f"killed {delay:.2f} s after step {target} ({state}, step {saved} saved): "
              f"{'equal bit for bit' if same else 'DIFFERENT'}")  # fmt: skip
    print(f"{equal} of {args.kills} killed in training and equal")
    sys.exit(equal != args.kills)


if __name__ == "__main__":
    main()
