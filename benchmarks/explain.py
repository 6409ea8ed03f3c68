"""Do omma's maps show what answers rest on? On drawn digits, whose boxes are known, and on photographs.

    python benchmarks/explain.py digits [--net conv] [--steps 3000] [--images 300]
    python benchmarks/explain.py photos MODEL IMAGES [--images 60] [--what gradcam occlusion ...]

digits: a small network learns the demo's digits (10,000 for training), then each kind of map of
test digits that it answers rightly is compared with the digit's box: how often the map's peak lies in it
(pointing game [Zhang 2016, 1608.00507]), and which share of the map does. Beside both, the box's share of the
area, which is chance, and a blob in the middle. From the vision transformer TransFG is trained, whose parts
are compared with occlusion: the rank correlation of an image's two maps, and of two images', which is chance.
photos: the tests of `omma explain --test sanity insertion`. Intervals are 95 %, by a bootstrap over images.
"""

import argparse
import copy
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import omma
from omma import backbones
from omma.backbones.adapters import transfg
from omma.core.preprocess import Preprocess
from omma.core.protocols import Backbone, Extras, Features
from omma.data.sources.demo_digits import make_digits
from omma.inspection import faithfulness, registry, sanity
from omma.inspection.kinds import Subject
from omma.inspection.maps import enlarged, subject_of
from omma.losses.parts import contrast
from omma.weights import Model

SHAPE = {"name": "vit/4", "depth": 4, "dim": 64, "heads": 4, "hidden": 128, "image_size": 32, "channels": 3}
PREPROCESS = Preprocess(size=32, channels=3, low=(0,) * 3, high=(255,) * 3, mean=(0.45,) * 3, std=(0.25,) * 3)
KINDS = {
    "vit": ("attention", "rollout", "occlusion", "gradcam", "gradients"),
    "conv": ("occlusion", "gradcam", "gradients"),
}
RATES = {"vit": 1e-3, "conv": 3e-3}
STEPS = {"vit": 3000, "conv": 600}


class Conv(Backbone):
    """Five convolutions with batch norms, a feature for each 4 x 4 pixels, and their mean."""

    dim, patch, channels, drops_tokens, name = 64, 4, 3, False, "conv"

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b, stride in widths
            )
        )

    def tokenize(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.layers(images).flatten(2).transpose(1, 2)

    def encode(self, tokens: Tensor, grid: tuple[int, int], keep: Tensor | None = None) -> Features:
        return Features(tokens.mean(1), tokens, grid)


def tensor(images: np.ndarray) -> Tensor:
    return PREPROCESS.normalise(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)


def fit(
    encoder: Backbone, head: nn.Linear, x: Tensor, y: Tensor, steps: int, lr: float, parts: bool, seed: int
):
    """AdamW with a cosine schedule, on images moved by up to 2 px."""
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.02, betas=(0.9, 0.98))
    rng, began = np.random.default_rng(seed), time.time()
    for step in range(steps):
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / (0.05 * steps))
            group["lr"] = lr * warm * 0.5 * (1 + np.cos(np.pi * step / steps))
        rows = torch.from_numpy(rng.integers(len(x), size=64))
        dy, dx = rng.integers(-2, 3, size=2)
        pooled = encoder(x[rows].roll((int(dy), int(dx)), (2, 3))).pooled
        loss = F.cross_entropy(head(pooled), y[rows])
        if parts:
            loss = loss + contrast(pooled, y[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 250 == 249:
            print(f"  step {step + 1}: loss {loss.item():.3f}, {time.time() - began:.0f} s", flush=True)


def classified(encoder: Backbone, head: nn.Linear) -> Model:
    tensors = {"classifier.weight": head.weight.detach(), "classifier.bias": head.bias.detach()}
    return Model(encoder, PREPROCESS, {}, Extras(tensors, {"classes": [str(digit) for digit in range(10)]}))


def accuracy(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Which answers are right."""
    classifier = model.classifier
    assert classifier is not None
    with torch.no_grad():
        answers = [classifier.logits(model.encoder(part).pooled).argmax(1) for part in x.split(256)]
    return torch.cat(answers) == y


def in_boxes(maps: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each map [n, h, w]: does its peak lie in the box, and which share of it does?"""
    n, height, width = maps.shape
    rows, columns = np.arange(height)[:, None], np.arange(width)
    top, left, bottom, right = (boxes[:, i, None, None] for i in range(4))
    inside = (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)
    peaks = inside.reshape(n, -1)[np.arange(n), maps.reshape(n, -1).argmax(1)]
    total = maps.sum((1, 2))
    shares = np.where(total > 0, (maps * inside).sum((1, 2)) / np.where(total > 0, total, 1), 0)
    return peaks.astype(float), shares


def said(values: np.ndarray) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*faithfulness.interval(values))


def pointing(subject: Subject, boxes: np.ndarray, kinds: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Print both figures of each kind; returns the maps."""
    n, side = len(boxes), subject.size[0]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / side**2
    print(f"  chance (the box's share of the area): {area.mean():.3f}, {n} images")
    found = {"centre": faithfulness.centred(n, subject.size)}
    for name in kinds:
        one_map: Any = registry.find(name).one_map
        found[name] = enlarged(one_map(subject), subject.size)
    for name, maps in found.items():
        peaks, shares = in_boxes(np.asarray(maps), boxes)
        print(f"  {name}: peak in the box {said(peaks)}, more than chance by {said(peaks - area)};")
        print(f"    share in the box {said(shares)}, more than chance by {said(shares - area)}", flush=True)
    return found


def digits(args: argparse.Namespace) -> None:
    made = make_digits(10_000, 2_000, seed=args.seed)
    x, y = tensor(made.train), torch.from_numpy(made.train_labels)
    x_test, y_test = tensor(made.test), torch.from_numpy(made.test_labels)
    torch.manual_seed(args.seed)
    steps = args.steps or STEPS[args.net]
    encoder, head = Conv() if args.net == "conv" else backbones.build(**SHAPE), nn.Linear(64, 10)
    fit(encoder, head, x, y, steps, RATES[args.net], False, args.seed)
    model = classified(encoder.eval(), head)
    right = accuracy(model, x_test, y_test)
    print(f"top-1 {right.float().mean():.3f} of {len(y_test):,} test digits")
    rows = torch.nonzero(right)[: args.images, 0]
    subject = subject_of(model, x_test[rows])[0]
    print("maps and boxes")
    pointing(subject, made.test_boxes[rows], KINDS[args.net])
    if args.net == "conv":
        return
    chooses, head = copy.deepcopy(model.encoder), copy.deepcopy(head)
    transfg.insert(chooses, transfg.Config())
    fit(chooses, head, x, y, steps // 4, 3e-4, True, args.seed)
    other = classified(chooses.eval(), head)
    print(f"TransFG: top-1 {accuracy(other, x_test, y_test).float().mean():.3f}")
    parted = subject_of(other, x_test[rows])[0]
    found = pointing(parted, made.test_boxes[rows], ("parts", "occlusion"))
    agree = sanity.spearman(found["parts"], found["occlusion"])
    apart = sanity.spearman(found["parts"], np.roll(found["occlusion"], 1, axis=0))
    print(f"  parts and occlusion: rank correlation {said(agree)}; of two images' {said(apart)}")
    print(f"  of one image more by {said(agree - apart)}")


def photos(args: argparse.Namespace) -> None:
    found = omma.explain(
        args.model, args.images_at, what=args.what, test=args.test, most=args.images, seed=args.seed
    )
    print(f"{len(found.paths)} images")
    for explanation in found.explanations[-len(args.test) :]:
        for judged in explanation.judged:
            print(f"  {judged.of}: {judged.sentence}")
        for shows in explanation.shows:
            for row in getattr(shows, "rows", ()):
                print("   ", " | ".join(row))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    commands = parser.add_subparsers(required=True)
    drawn = commands.add_parser("digits")
    drawn.add_argument("--net", choices=("vit", "conv"), default="vit")
    drawn.add_argument("--steps", type=int, help="3,000 for the transformer, 600 for the other")
    drawn.add_argument("--images", type=int, default=300)
    drawn.set_defaults(run=digits)
    real = commands.add_parser("photos")
    real.add_argument("model")
    real.add_argument("images_at", metavar="IMAGES")
    real.add_argument("--images", type=int, default=60)
    real.add_argument("--what", nargs="+", default=[])
    real.add_argument("--test", nargs="+", default=["sanity", "insertion"])
    real.set_defaults(run=photos)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
