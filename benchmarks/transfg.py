"""TransFG against the same network without part selection, and whether its parts lie on the object.

    python benchmarks/transfg.py MODEL LABELLED [--shots 16] [--steps 80] [--only full transfg ...]

MODEL is a vision transformer with a class token, LABELLED has a train and a test part. Contenders are
trained by AdamW on the same images of each class in the same order, random crops and flips, and tested on all
test images. Parts are then looked for in drawn digits, at random places on crops of photographs: the share of
chosen patches whose centre lies in the digit's box, and the share of all patches, which is chance.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn

import omma
from omma.backbones import adapters
from omma.backbones.adapters.transfg import Parts
from omma.core import protocols
from omma.core.protocols import Backbone, Batch, Clock, Key, ParamGroup, Recipe, StepOutput
from omma.data.batches.preprocess import load_batch
from omma.data.sources import collection
from omma.losses import parts
from omma.train import param_groups
from omma.train.loop import Position, train
from omma.train.optimizer import make_optimizer
from omma.weights import Model

CONTENDERS: dict[str, dict[str, Any] | None] = {
    "full": None,
    "transfg": {},
    "transfg, no overlap": {"stride": "patch"},
    "transfg, fresh last block": {"fresh_last": True},
}
BATCH, ROOM = 16, 8 / 7  # images a step; how much larger than a crop the training images are
DIGITS, DIGIT = 300, 0.4  # drawn images, and the digit's side as a share of theirs


class Method(protocols.Method):
    """Encoder and linear classifier; parts are trained with the contrastive loss, too."""

    def __init__(self, encoder: Backbone, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, classes)
        nn.init.zeros_(self.head.weight)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        assert batch.labels is not None
        pooled = self.encoder(batch.views[0][:, 0]).pooled
        loss = F.cross_entropy(self.head(pooled).float(), batch.labels, label_smoothing=0.1)
        if isinstance(self.encoder, Parts):
            loss = loss + parts.contrast(pooled, batch.labels)
        return StepOutput(loss, {})

    def groups(self) -> Iterator[ParamGroup]:
        for group in param_groups.standard(self.encoder, "encoder"):
            yield replace(group, lr_scale=0.05)
        yield from param_groups.standard(self.head, "classifier")


def batches(images: Tensor, labels: Tensor, size: int, seed: int) -> Iterator[Batch]:
    """The same for all contenders of a seed."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(images))
        for rows in np.split(order, range(BATCH, len(order), BATCH))[: len(order) // BATCH]:
            crops = []
            for row in rows:
                top, left = rng.integers(images.shape[-1] - size + 1, size=2)
                crop = images[row, :, top : top + size, left : left + size]
                crops.append(crop.flip(-1) if rng.random() < 0.5 else crop)
            key = Key(seed, np.zeros(len(rows), np.int64), rows)
            yield Batch((torch.stack(crops)[:, None],), key, labels[rows])


@torch.no_grad()
def accuracy(method: Method, images: Tensor, labels: Tensor, dtype: torch.dtype) -> float:
    network = copy.deepcopy(method).eval().to(dtype)
    right = 0
    for x, y in zip(images.split(64), labels.split(64), strict=True):
        right += int((network.head(network.encoder(x.to(dtype)).pooled).argmax(-1) == y).sum())
    return right / len(labels)


def drawn(size: int, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Digits on textures [n, 3, size, size], normalised, and their boxes [n, 4]: top, left, bottom, right."""
    rng = np.random.default_rng(0)
    photographs = [torch.from_numpy(photo.copy()) for photo in load_sample_images().images]
    inks, side = load_digits().images / 16, round(DIGIT * size)
    images, boxes = [], []
    for number in rng.permutation(len(inks))[:DIGITS]:
        photo = photographs[rng.integers(len(photographs))]
        top, left = (rng.integers(n - size + 1) for n in photo.shape[:2])
        ground = photo[top : top + size, left : left + size].permute(2, 0, 1).float()
        ink = torch.from_numpy(inks[number]).float()[None, None]
        ink = F.interpolate(ink, size=(side, side), mode="bilinear")[0].clamp(0, 1)
        top, left = rng.integers(size - side + 1, size=2)
        place = ground[:, top : top + side, left : left + side]
        colour = torch.tensor(255.0 if place.mean() < 128 else 0.0)
        place.lerp_(colour.expand_as(place), ink)
        rows, columns = (ink[0] > 0.5).any(1).nonzero()[:, 0], (ink[0] > 0.5).any(0).nonzero()[:, 0]
        box = (top + rows[0], left + columns[0], top + rows[-1] + 1, left + columns[-1] + 1)
        images.append((ground / 255 - mean[:, None, None]) / std[:, None, None])
        boxes.append([int(x) for x in box])
    return torch.stack(images), torch.tensor(boxes)


@torch.no_grad()
def on_object(
    network: Parts, images: Tensor, boxes: Tensor, dtype: torch.dtype
) -> tuple[float, float, float]:
    """Share of chosen patches on the object, half its 95 % interval over images; share of all patches."""
    network = copy.deepcopy(network).eval().to(dtype)
    chosen = torch.cat([network.boxes(x.to(dtype)) for x in images.split(50)])
    rows, columns = network.grid(*images.shape[-2:])
    corner = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)) * network.stride
    every = torch.cat([corner, corner + network.patch], dim=1).expand(len(images), -1, -1)

    def inside(patches: Tensor) -> Tensor:
        y, x = (patches[..., 0] + patches[..., 2]) / 2, (patches[..., 1] + patches[..., 3]) / 2
        top, left, bottom, right = boxes.T[:, :, None]
        return ((y >= top) & (y < bottom) & (x >= left) & (x < right)).float().mean(1)

    share = inside(chosen)
    return float(share.mean()), 1.96 * float(share.std()) / len(share) ** 0.5, float(inside(every).mean())


def contender(model: Model, options: dict[str, Any] | None) -> Backbone:
    encoder = copy.deepcopy(model.encoder)
    if options is not None:
        adapters.insert(
            encoder, "transfg", {k: encoder.patch if v == "patch" else v for k, v in options.items()}
        )
    return encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("labelled")
    parser.add_argument("--size", type=int, default=112, help="pixels along a side")
    parser.add_argument("--shots", type=int, default=16, help="training images of each class")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-3, help="of the classifier; the encoder's is a 20th")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=["full", "transfg"])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision]
    model = omma.load(args.model)
    crop = replace(model.preprocess, size=args.size, crop_share=1 / ROOM)
    whole = replace(model.preprocess, size=round(ROOM * args.size), crop_share=1.0)
    images: Any = collection.opened(args.labelled)
    test = np.flatnonzero(images.splits == "test")
    x_test, y_test = load_batch(images, test, crop)[0], torch.from_numpy(images.labels[test])
    digits, boxes = drawn(
        args.size, *(torch.tensor(getattr(model.preprocess, name)) for name in ("mean", "std"))
    )
    recipe = Recipe(config=None, batch=BATCH, lr=args.lr, warmup=0.1, weight_decay=0.05, clip=1.0)
    scores: dict[str, list[float]] = {name: [] for name in args.only}
    untrained = contender(model, {})
    assert isinstance(untrained, Parts)
    print(
        "digits, before training: {:.3f} +- {:.3f}, chance {:.3f}".format(
            *on_object(untrained, digits, boxes, dtype)
        )
    )
    for seed in range(args.seeds):
        rng = np.random.default_rng(seed)
        order = rng.permutation(np.flatnonzero(images.splits == "train"))
        labels = images.labels[order]
        rows = np.concatenate([order[labels == k][: args.shots] for k in range(len(images.classes))])
        x, y = load_batch(images, rows, whole)[0], torch.from_numpy(images.labels[rows])
        for name in args.only:
            torch.manual_seed(seed)
            method = Method(contender(model, CONTENDERS[name]), len(images.classes))
            method.encoder.requires_grad_(True)
            position, began = Position(0, args.steps, BATCH, len(x)), time.process_time()
            losses = [
                step.loss
                for step in train(
                    method, make_optimizer(method, recipe), batches(x, y, args.size, seed), recipe, position,
                    dtype=dtype, seed=seed,
                )
            ]  # fmt: skip
            seconds = time.process_time() - began
            scores[name].append(accuracy(method, x_test, y_test, dtype))
            line = (
                f"seed {seed}, {name}: top-1 {scores[name][-1]:.4f}, {seconds / args.steps:.2f} CPU s a step"
            )
            line += f", loss {losses[0]:.2f} to {statistics.mean(losses[-5:]):.2f}"
            if isinstance(method.encoder, Parts):
                share, half, _ = on_object(method.encoder, digits, boxes, dtype)
                line += f"; digits {share:.3f} +- {half:.3f}"
            print(line, flush=True)
    for name, values in scores.items():
        print(f"{name}: mean {statistics.mean(values):.4f} of {len(values)} seeds, {len(test)} test images")


if __name__ == "__main__":
    main()
