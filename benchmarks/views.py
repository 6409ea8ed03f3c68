"""DINO's crops, 2x224 and 8 or 6 of 96 px, from 500x375 JPEG files on one core: omma, torchvision, lightly.

    python benchmarks/views.py [--rounds 9] [--images 24] [--json FILE]

All start from files in the page cache and end with normalised float crops. omma reads, crops and colours a
batch, from the JPEGs and from its cache of decoded pixels (`--cache`), which stores the size that the plan
needs. The peers' pipelines decode with Pillow and process one image after the other, like a data-loading
worker: torchvision's transforms composed as in DINO's repository, with Pillow's blur and solarisation, and
lightly's DINOTransform. Colour is the paper's: jitter .4, .4, .2, .1 at .8, grey .2, blur 1 / .1 / .5,
solarise .2 on the second crop. Photographs are scikit-learn's sample images, cut at random and saved at
quality 90. Time is CPU time of the process, so that other processes on the core do not count.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import Contender
from PIL import Image, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images

from omma.core.protocols import Crop, Key, Preprocess
from omma.data.batches import augment
from omma.data.batches.decoded_cache import Cache
from omma.data.batches.preprocess import IMAGENET_MEAN, IMAGENET_STD
from omma.data.sources.collection import open_images
from omma.data.sources.indexed import IndexedImages
from omma.methods.shared.crops import MultiCrop, multi_crop

PREPROCESS = Preprocess(
    size=224, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=IMAGENET_MEAN, std=IMAGENET_STD
)
OURS, PEERS = ("omma, JPEG", "omma, cache"), ("torchvision", "lightly")


def write_jpegs(folder: Path, count: int) -> list[Path]:
    """Parts of two photographs, 70-88 % of their width, as 500x375 JPEGs."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    folder.mkdir()
    for i in range(count):
        photo = photos[i % len(photos)]
        w = int(photo.width * rng.uniform(0.7, 0.88))
        h = w * 3 // 4
        left, top = int(rng.integers(photo.width - w + 1)), int(rng.integers(photo.height - h + 1))
        part = photo.crop((left, top, left + w, top + h)).resize((500, 375))
        part.save(folder / f"{i:03}.jpg", quality=90)
    return sorted(folder.iterdir())


def ours(images: IndexedImages, plan: tuple[Crop, ...]) -> Callable[[], dict[str, float]]:
    """Make the next epoch's views of all images; returns the seconds of each stage."""
    epochs, least = iter(range(10**9)), augment.at_least(plan)

    def run() -> dict[str, float]:
        key = Key(0, np.full(len(images), next(epochs)), np.arange(len(images)))
        times = [time.process_time()]
        read = [images.read(i, least) for i in range(len(images))]
        times.append(time.process_time())
        crops = augment.cut(read, plan, key)
        times.append(time.process_time())
        augment.augment(crops, plan, key, PREPROCESS)
        times.append(time.process_time())
        return dict(zip(("read", "cut", "colour"), np.diff(times).tolist(), strict=True))

    return run


def torchvision_transform(local_crops: int) -> Callable[[Image.Image], list[torch.Tensor]]:
    """`DataAugmentationDINO` of facebookresearch/dino, main_dino.py and utils.py."""
    from torchvision import transforms as t

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

    def view(size: int, scale: tuple[float, float], *last: Callable) -> t.Compose:
        return t.Compose(
            [
                t.RandomResizedCrop(size, scale, interpolation=t.InterpolationMode.BICUBIC),
                t.RandomHorizontalFlip(),
                t.RandomApply([t.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
                t.RandomGrayscale(0.2),
                *last,
                t.ToTensor(),
                t.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    first = view(224, (0.4, 1.0), blur)
    second = view(
        224, (0.4, 1.0), t.RandomApply([blur], 0.1), t.RandomApply([t.Lambda(ImageOps.solarize)], 0.2)
    )
    local = view(96, (0.05, 0.4), t.RandomApply([blur], 0.5))
    return lambda image: [first(image), second(image), *(local(image) for _ in range(local_crops))]


def lightly_transform(local_crops: int) -> Callable[[Image.Image], list[torch.Tensor]]:
    """Its defaults are the same crops and strengths."""
    from lightly.transforms import DINOTransform

    return DINOTransform(n_local_views=local_crops)


def theirs(paths: list[Path], transform: Callable[[Image.Image], Any]) -> Callable[[], None]:
    def run() -> None:
        for path in paths:
            with Image.open(path) as image:
                transform(image.convert("RGB"))

    return run


def race(paths: list[Path], folder: Path, local_crops: int, rounds: int) -> dict[str, Any]:
    """Speeds of all, ratios by round of omma to each peer, and milliseconds of omma's stages."""
    plan = multi_crop(MultiCrop(local_crops=local_crops), 224)
    assert [(c.size, c.count, c.scale) for c in plan[1:]] == [
        (224, 1, (0.4, 1.0)),
        (96, local_crops, (0.05, 0.4)),
    ]
    source = open_images(paths[0].parent)
    cache = Cache(source, augment.at_least(plan), folder)
    cache.write()
    runs = {
        "omma, JPEG": ours(source, plan),
        "omma, cache": ours(cache.images, plan),
        "torchvision": theirs(paths, torchvision_transform(local_crops)),
        "lightly": theirs(paths, lightly_transform(local_crops)),
    }
    contenders = [Contender(name, run, len(paths), ours=name in OURS) for name, run in runs.items()]
    seconds = common.take_turns(contenders, rounds, clock=time.process_time)
    stages = {name: [runs[name]() for _ in range(rounds)] for name in OURS}
    return {
        "local_crops": local_crops,
        **common.summary(contenders, seconds),
        "ratios": {
            f"{us} / {peer}": [b / a for a, b in zip(seconds[us], seconds[peer], strict=True)]
            for us in OURS
            for peer in PEERS
        },
        "ms_per_image": {
            name: {
                stage: 1000 * statistics.median(r[stage] for r in rs) / len(paths)
                for stage in ("read", "cut", "colour")
            }
            for name, rs in stages.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as name:
        paths = write_jpegs(Path(name) / "images", args.images)
        for local_crops in (8, 6):
            result = race(paths, Path(name) / "cache", local_crops, args.rounds)
            title = f"views, 2x224 + {local_crops}x96, {args.images} images, seconds of the process"
            common.show(title, result, args.rounds)
            for pair, ratios in result["ratios"].items():
                print(f"{pair}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
            for who, stages in result["ms_per_image"].items():
                told = ", ".join(f"{stage} {ms:.2f}" for stage, ms in stages.items())
                print(f"{who}, ms an image: {told}")
            print()
            results.append(result)
    common.save(args.json, "views", __doc__, results)


if __name__ == "__main__":
    main()
