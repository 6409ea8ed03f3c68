"""Kill runs at random moments, resume them, and compare their weights with an uninterrupted run's.

    python benchmarks/kill.py [--kills 10] [--steps 400]

`kill -9` after a random time; every kill is a run of its own, killed once, resumed, compared bit for bit.
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
    start = time.monotonic()
    subprocess.run(command(folder / "images.npz", folder / "straight", args.steps), check=True, **quiet)
    whole = time.monotonic() - start
    reference = load_file(folder / "straight" / "model.safetensors")
    equal = 0
    for kill in range(args.kills):
        out = folder / f"killed{kill}"
        words = command(folder / "images.npz", out, args.steps)
        process = subprocess.Popen(words, **quiet)
        at = rng.uniform(0.1, 0.95) * whole
        time.sleep(at)
        alive = process.poll() is None
        process.kill()
        process.wait()
        saved = sorted(p.name for p in (out / "checkpoints").glob("step-*.pt"))
        subprocess.run(words, check=True, **quiet)
        weights = load_file(out / "model.safetensors")
        same = weights.keys() == reference.keys() and all((weights[k] == reference[k]).all() for k in weights)
        equal += same
        where = saved[-1] if saved else "no checkpoint yet"
        print(f"killed after {at:.1f} s ({'running' if alive else 'already finished'}; {where}): "
              f"{'equal bit for bit' if same else 'DIFFERENT'}")  # fmt: skip
    print(f"{equal} of {args.kills} equal")
    sys.exit(equal != args.kills)


if __name__ == "__main__":
    main()
