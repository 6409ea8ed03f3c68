"""DINO's 2x224 + 6x96 crops from 500x375 JPEGs on one core: omma against lightly's DINOTransform, in turn.

    python benchmarks/views.py [--rounds 9] [--images 24] [--json FILE]

Both start from the same JPEG bytes and end with normalised float crops: omma decodes, cuts and colours a
batch, lightly's PIL pipeline one image after the other, as its data-loading worker would. Colour is the DINO
paper's: jitter .4, .4, .2, .1 at .8, grey .2, blur 1 / .1 / .5, solarise .2 on the second crop. Photographs
are scikit-learn's sample images, cut at random and saved at quality 90.
"""

import argparse
import io
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from omma.data import views
from omma.protocols import Colour, Crop, Key, Preprocess

COLOUR = Colour(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter_p=0.8, grey_p=0.2)
PLAN = (
    Crop(size=224, scale=(0.4, 1.0), colour=replace(COLOUR, blur_p=1.0)),
    Crop(size=224, scale=(0.4, 1.0), colour=replace(COLOUR, blur_p=0.1, solarise_p=0.2)),
    Crop(size=96, scale=(0.05, 0.4), count=6, colour=replace(COLOUR, blur_p=0.5)),
)
PREPROCESS = Preprocess(
    size=224,
    channels=3,
    low=(0.0,) * 3,
    high=(255.0,) * 3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def jpegs(count: int) -> list[bytes]:
    """Parts of two photographs, 70-100 % of their width, as 500x375 JPEGs."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    out = []
    for i in range(count):
        photo = photos[i % len(photos)]
        w = int(photo.width * rng.uniform(0.7, 0.88))
        h = w * 3 // 4
        left, top = int(rng.integers(photo.width - w + 1)), int(rng.integers(photo.height - h + 1))
        buffer = io.BytesIO()
        photo.crop((left, top, left + w, top + h)).resize((500, 375)).save(buffer, "JPEG", quality=90)
        out.append(buffer.getvalue())
    return out


def ours(files: list[bytes], epoch: int) -> dict[str, float]:
    """Seconds of each stage for one batch."""
    key = Key(0, np.full(len(files), epoch), np.arange(len(files)))
    start = time.perf_counter()
    images = [simplejpeg.decode_jpeg(file) for file in files]
    decoded = time.perf_counter()
    crops = views.cut(images, PLAN, key)
    cut = time.perf_counter()
    views.augment(crops, PLAN, key, PREPROCESS)
    end = time.perf_counter()
    return {"decode": decoded - start, "cut": cut - decoded, "colour": end - cut, "total": end - start}


def theirs(files: list[bytes], transform) -> float:
    start = time.perf_counter()
    for file in files:
        transform(Image.open(io.BytesIO(file)).convert("RGB"))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    import lightly
    from lightly.transforms import DINOTransform

    transform = DINOTransform()  # its defaults are the same crops and strengths
    files = jpegs(args.images)
    for _ in range(2):  # warm up
        ours(files, 0)
        theirs(files, transform)
    rounds = []
    for r in range(args.rounds):
        rounds.append({**ours(files, r + 1), "lightly": theirs(files, transform)})
    ms = {
        stage: 1000 * statistics.median(r[stage] for r in rounds) / len(files)
        for stage in ("decode", "cut", "colour", "total", "lightly")
    }
    ratios = [r["lightly"] / r["total"] for r in rounds]
    print(f"DINO 2x224 + 6x96, 500x375 JPEGs, one core, {len(rounds)} rounds of {len(files)} images, in turn")
    print(f"{'':28}{'ms/image':>10}{'images/s':>10}")
    print(f"{f'lightly {lightly.__version__}':28}{ms['lightly']:10.2f}{1000 / ms['lightly']:10.1f}")
    print(f"{'omma':28}{ms['total']:10.2f}{1000 / ms['total']:10.1f}")
    for stage in ("decode", "cut", "colour"):
        print(f"{'  ' + stage:28}{ms[stage]:10.2f}")
    print(f"ratio by round: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    if args.json:
        record = {
            "schema": 1,
            "benchmark": "views",
            "protocol": __doc__,
            "machine": platform.processor() or platform.machine(),
            "versions": {"torch": torch.__version__, "lightly": lightly.__version__},
            "images_per_second": {"omma": 1000 / ms["total"], "lightly": 1000 / ms["lightly"]},
            "ms_per_image": ms,
            "ratio": {"median": statistics.median(ratios), "rounds": ratios},
        }
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
