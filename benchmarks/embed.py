"""Embedding 224 px images in memory: omma's bf16 inference against timm's and transformers', in turn.

    python benchmarks/embed.py [--model vit-s/16] [--batch 16] [--rounds 9] [--json FILE]

The same random weights in all (omma's state loads strictly into timm's VisionTransformer, and is exported for
transformers' AutoModel), the same images, no decoding or resizing. omma runs as `omma.features` does: a copy
of the encoder, whole, in bf16, under inference mode, pooled features back in fp32. timm and transformers:
their fp32 models and `model.bfloat16()`, under inference mode. Beside the speed stand each one's operations
and what share they are of this machine's best matrix product in that precision, and what bf16 costs: each
image's cosine of omma's bf16 and timm's fp32 features.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from common import Contender, called
from torch import Tensor, nn

from omma import backbones
from omma.exporting import hf, timm_twin
from omma.protocols import Backbone, Preprocess

SIZE = 224


def runner(
    network: nn.Module, images: Tensor, dtype: torch.dtype, pooled: Callable[[Any], Tensor]
) -> Callable[[], Tensor]:
    """Features of the images, in fp32; `pooled` finds them in what the network gives."""
    network = copy.deepcopy(network).to(dtype=dtype).eval()

    def run() -> Tensor:
        with torch.inference_mode():
            return pooled(network(images.to(dtype=dtype))).float()

    return run


def transformers_twin(encoder: Backbone, size: int) -> nn.Module:
    """The same network as transformers reads it."""
    from transformers import AutoModel

    plain = Preprocess(
        size=size, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.5,) * 3
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        hf.write(encoder, plain, Path(folder))
        return AutoModel.from_pretrained(folder)


def contenders(model: str, batch: int, size: int = SIZE) -> list[Contender]:
    torch.manual_seed(0)
    encoder = backbones.build(name=model, image_size=size, channels=3)
    # a fresh network's features hardly tell images apart: larger weights, as training leaves them, do
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.startswith("blocks.") and weight.ndim == 2:
                weight.mul_(3.0)
    images = torch.randn(batch, 3, size, size)
    reference = timm_twin(encoder)
    reference.load_state_dict(encoder.state_dict())
    subjects: dict[str, tuple[nn.Module, Callable[[Any], Tensor]]] = {
        "omma": (encoder, lambda features: features.pooled),
        "timm": (reference, lambda features: features),
        "transformers": (transformers_twin(encoder, size), lambda out: out.last_hidden_state[:, 0]),
    }
    return [
        Contender(
            called(who, bf16),
            runner(network, images, torch.bfloat16 if bf16 else torch.float32, pooled),
            batch,
            ours=who == "omma",
            bf16=bf16,
        )
        for who, (network, pooled) in subjects.items()
        for bf16 in (True, False)
    ]


def cosines(subjects: list[Contender]) -> Tensor:
    """Of each image's features: omma's in bf16 with timm's in fp32."""
    runs = {subject.name: subject.run for subject in subjects}
    return nn.functional.cosine_similarity(runs["omma bf16"](), runs["timm fp32"](), dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="vit-s/16")
    parser.add_argument("--batch", type=int, default=16, help="images a pass [16, as omma.features]")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    subjects = contenders(args.model, args.batch)
    seconds = common.take_turns(subjects, args.rounds)
    result = common.summary(subjects, seconds)
    common.add_work(result, subjects)
    common.show(f"embedding, {args.model} at {SIZE} px, batch {args.batch}", result, args.rounds)
    speed = {name: s["median"] for name, s in result["images_per_second"].items()}
    for name in ("timm fp32", "omma fp32"):
        ratios = [theirs / ours for ours, theirs in zip(seconds["omma bf16"], seconds[name], strict=True)]
        print(
            f"omma bf16 / {name}: {speed['omma bf16'] / speed[name]:.2f} of medians, "
            f"{min(ratios):.2f} to {max(ratios):.2f} by round"
        )
        result[f"omma bf16 / {name}"] = ratios
    cosine = cosines(subjects)
    result["cosine"] = {"min": cosine.min().item(), "mean": cosine.mean().item()}
    print(f"cosine of omma bf16 to timm fp32: min {cosine.min():.5f}, mean {cosine.mean():.5f}")
    common.save(args.json, "embed", __doc__, [{"model": args.model, "batch": args.batch, **result}])


if __name__ == "__main__":
    main()
