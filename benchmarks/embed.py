"""Embedding 224 px images in memory: omma's bf16 inference against timm's, in turn.

    python benchmarks/embed.py [--model vit-s/16] [--batch 16] [--rounds 9] [--json FILE]

The same random weights in all (omma's state loads strictly into timm's VisionTransformer), the same images,
no decoding or resizing. omma runs as `omma.features` does: a copy of the encoder, whole, in bf16, under
inference mode, pooled features back in fp32. timm: its fp32 model and `model.bfloat16()`, under inference
mode. Beside the speed stands what bf16 costs: each image's cosine of omma's bf16 and timm's fp32 features.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import common
import torch
from common import Contender
from torch import Tensor, nn

from omma import backbones
from omma.exporting import timm_twin

SIZE = 224


def runner(network: nn.Module, images: Tensor, dtype: torch.dtype, ours: bool) -> Callable[[], Tensor]:
    """Features of the images, in fp32."""
    network = copy.deepcopy(network).to(dtype=dtype).eval()

    def run() -> Tensor:
        with torch.inference_mode():
            features = network(images.to(dtype=dtype))
        return (features.pooled if ours else features).float()

    return run


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
    return [
        Contender(
            f"{'omma' if ours else 'timm'} {'bf16' if dtype == torch.bfloat16 else 'fp32'}",
            runner(encoder if ours else reference, images, dtype, ours),
            batch,
            ours,
        )
        for ours in (True, False)
        for dtype in (torch.bfloat16, torch.float32)
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
