"""How often a run of `--method context` knows the place of a patch, on images of training and on others.

    python benchmarks/context_pairs.py RUN DATA [--images 2000]

DATA is split (`train/` and `test/`, or a column). Of each image, resized to the size of the run's views, the
eight patches around the centre are placed (chance 12.5 %); intervals of 95 % are over images.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from omma import weights
from omma.core.protocols import Batch, Key
from omma.data.batches import preprocess as preprocessing
from omma.data.sources.collection import open_images
from omma.methods import context
from omma.methods.shared import patch_grid
from omma.pretraining import saved_method
from omma.pretraining.folder import RunFolder

CHUNK = 100  # images that pass the network at once
THREADS = 2  # that decode
SEED = 7  # of the patches' jitter and colours


@torch.no_grad()
def right(method: context.Method, images: torch.Tensor) -> np.ndarray:
    """[n, 8]: is each of the eight pairs of each image placed rightly?"""
    pairs = torch.from_numpy(patch_grid.neighbours(centre=True))
    answers = []
    for start in range(0, len(images), CHUNK):
        views = images[start : start + CHUNK, None]
        index = np.arange(start, start + len(views))
        batch = Batch((views,), Key(SEED, np.zeros(len(views), np.int64), index))
        places = method.logits(batch, pairs).argmax(1).unflatten(0, (-1, pairs.shape[1]))
        answers.append((places == pairs[2]).numpy())
    return np.concatenate(answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=2000, help="of each part, at most")
    args = parser.parse_args()
    folder = RunFolder(args.run)
    method = saved_method.whole(folder)
    if not isinstance(method, context.Method):
        raise SystemExit(f"{args.run}: no checkpoint of a run of --method context")
    c = method.config
    (crop,) = context.views(c, folder.config()["image_size"])
    preprocess = replace(weights.load(args.run).preprocess, size=crop.size, crop_share=1.0)
    source = open_images(args.data)
    if source.splits is None:
        raise SystemExit(f"{args.data}: is not split into train and test")
    print(f"{args.run}: patches of {c.patch} px, gap {c.gap}, jitter {c.jitter}, colours: {c.colour}")
    rng = np.random.default_rng(SEED)
    for part in ("train", "test"):
        rows = np.flatnonzero(source.splits == part)
        rows = np.sort(rng.permutation(rows)[: args.images])
        pixels, good, _ = preprocessing.load_batch(source, rows, preprocess, THREADS)
        answers = right(method, pixels[torch.from_numpy(good)])
        of_images = answers.mean(1)
        draws = rng.integers(0, len(of_images), (1000, len(of_images)))
        low, high = np.quantile(of_images[draws].mean(1), [0.025, 0.975])
        print(
            f"{part:6}{answers.mean():6.1%} of {answers.size:,} pairs ({low:.1%} to {high:.1%} over images)"
        )


if __name__ == "__main__":
    main()
