"""What a step of DINO, MoCo v3, BEiT and SimMIM costs, relative to SimMIM's, on one backbone at 224 px.

    python benchmarks/costs.py [--model vit-b/16] [--batch 8] [--rounds 7] [--device cpu] [--precision bf16]

Each has its paper recipe (heads, crops, views) and the same batch; a step is forward, backward and
optimizer. They take turns in one process; views are made beforehand. SimMIM's paper gives 2.0 : 1.8 : 1.5 :
1.0 for training time on ViT-B [Xie 2021, arXiv 2111.09886, table 6].
"""

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from omma import backbones, methods, weights
from omma.core.protocols import Batch, Context, Extras, Key, Preprocess
from omma.train.loop import Position, train
from omma.train.optimizer import make_optimizer

SIZE = 224
PUBLISHED = {"dino": 2.0, "moco": 1.8, "beit": 1.5, "simmim": 1.0}
PLAIN = Preprocess(
    size=SIZE, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.5,) * 3
)  # fmt: skip


def tokenizer() -> weights.Model:
    """A stride-8 tokenizer of DALL-E's size, untrained, since the cost does not depend on the codes."""
    encoder = backbones.build(name="dalle/8", image_size=SIZE // 2)
    codes = {"codes.weight": torch.randn(8192, encoder.dim), "codes.bias": torch.zeros(8192)}
    return weights.Model(encoder, dataclasses.replace(PLAIN, size=SIZE // 2), extras=Extras(codes))


def steps(name: str, args: argparse.Namespace) -> Iterator[Any]:
    """Optimizer steps of one method, always on the same images."""
    file = methods.get(name)
    recipe = file.paper(SIZE, args.model)
    config = recipe.config
    options = {k: v for k, v in recipe.encoder.items() if k in backbones.options(args.model)}
    encoder = backbones.build(name=args.model, image_size=SIZE, drop_path=recipe.drop_path, **options)
    model = tokenizer().to(args.device) if name == "beit" else None
    given = Context(image_size=SIZE, images=10_000, preprocess=PLAIN, model=model)
    method = file.Method(encoder, config, given).to(args.device)
    views = tuple(
        torch.randn(args.batch, crop.count, 3, crop.size, crop.size, device=args.device)
        for crop in file.views(config, SIZE)
    )
    key = Key(0, np.zeros(args.batch, np.int64), np.arange(args.batch))
    recipe = dataclasses.replace(recipe, lr=1e-5)
    # past what is frozen at first
    position = Position(5_000, 10_000, args.batch, 10_000)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.precision]
    batches = itertools.repeat(Batch(views, key, None))
    return train(method, make_optimizer(method, recipe), batches, recipe, position, dtype=dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit-b/16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    args = parser.parse_args()
    contenders = {name: steps(name, args) for name in PUBLISHED}
    times: dict[str, list[float]] = {name: [] for name in PUBLISHED}
    for turn in range(args.rounds + 2):
        for name, loop in contenders.items():
            if args.device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            next(loop)
            if args.device == "cuda":
                torch.cuda.synchronize()
            if turn >= 2:
                times[name].append(time.perf_counter() - began)
    print(
        f"{args.model}, {SIZE} px, batch {args.batch}, {args.precision}, {args.device}, {args.rounds} rounds"
    )
    for name in PUBLISHED:
        ratios = [t / s for t, s in zip(times[name], times["simmim"], strict=True)]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{name:7} {middle:.2f} ({low:.2f} to {high:.2f})   published {PUBLISHED[name]}")


if __name__ == "__main__":
    main()
