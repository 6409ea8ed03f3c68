"""Forward and backward passes of omma's backbones and timm's, taking turns.

    python benchmarks/backbones.py [--models vit swin cait] [--batch 16] [--rounds 9] [--json FILE]

Both sides have the same random weights and images (224 px, in memory), no stochastic depth, and run in fp32
and in bf16; the headline compares omma's best with timm's best. Forward: inference mode, the pooled
feature. Forward and backward: training mode, the sum of squares of the pooled feature, gradients of all
parameters.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import common
import torch
from common import Contender
from torch import Tensor, nn

from omma import backbones

SIZE = 224
MODELS = {
    "vit": ("vit-s/16", "vit_small_patch16_224", {}),
    "swin": ("swin-t", "swin_tiny_patch4_window7_224", {}),
    "cait": ("cait-xxs24", "cait_xxs24_224", {"global_pool": "token"}),
}


def runner(
    network: nn.Module, images: Tensor, dtype: torch.dtype, backward: bool, ours: bool
) -> Callable[[], Any]:
    """One pass over the images."""
    network = deepcopy(network).to(dtype=dtype).train(backward)
    images = images.to(dtype)

    def forward() -> Tensor:
        return network(images).pooled if ours else network(images)

    def run() -> Any:
        if not backward:
            with torch.inference_mode():
                return forward().float()
        network.zero_grad()
        forward().float().square().sum().backward()
        return None

    return run


def contenders(model: str, batch: int, backward: bool) -> list[Contender]:
    import timm

    name, theirs, options = MODELS[model]
    torch.manual_seed(0)
    peer = timm.create_model(theirs, num_classes=0, **options)
    encoder = backbones.build(name=name, image_size=SIZE)
    encoder.load_state_dict(peer.state_dict())
    images = torch.randn(batch, 3, SIZE, SIZE)
    both = ((encoder, True), (peer, False))
    with torch.no_grad():
        ours, reference = (runner(network, images[:2], torch.float32, False, own)() for network, own in both)
    difference = (ours - reference).abs().max().item()
    assert difference < 1e-4, f"{name} and timm's {theirs} differ by {difference}"
    return [
        Contender(
            f"{'omma' if own else 'timm'} {'bf16' if dtype == torch.bfloat16 else 'fp32'}",
            runner(network, images, dtype, backward, own),
            batch,
            own,
        )
        for dtype in (torch.bfloat16, torch.float32)
        for network, own in both
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    for model in args.models:
        for backward in (False, True):
            subjects = contenders(model, args.batch, backward)
            result = common.summary(subjects, common.take_turns(subjects, args.rounds))
            what = "forward and backward" if backward else "forward"
            common.show(f"{MODELS[model][0]} at {SIZE} px, batch {args.batch}, {what}", result, args.rounds)
            results.append({"model": MODELS[model][0], "what": what, "batch": args.batch, **result})
    common.save(args.json, "backbones", __doc__, results)


if __name__ == "__main__":
    main()
