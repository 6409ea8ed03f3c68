"""Features of omma's backbones against timm's and transformers' with the same random weights and images.

    python benchmarks/parity.py [--models vit-ti/16 ...] [--write]

fp32, two image sizes each, all parameters random. The table has the largest absolute difference of patch
features and of the pooled feature. --write puts it into docs/parity.md, between the markers.
"""

import argparse
import gc
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tables import write_between
from torch import Tensor

from omma import backbones
from omma.core.protocols import Backbone, Preprocess
from omma.weights.export import hf, timm_twin

DOCUMENT = Path(__file__).parent.parent / "docs" / "parity.md"
BEGIN, END = "<!-- benchmarks/parity.py begin -->", "<!-- benchmarks/parity.py end -->"
REGISTERS = {"registers": 4, "prefix_positions": False}
FC = {"pool": "mean_fc_norm"}


class Case(NamedTuple):
    name: str
    options: dict[str, Any]
    sizes: tuple[int, int]


CASES = [
    *(Case(f"vit-{s}/16", {}, (224, 160)) for s in ("ti", "s", "b")),
    *(Case(f"deit-{s}/16", {}, (224, 160)) for s in ("ti", "s", "b")),
    *(Case(f"cait-{s}", {}, (224, 160)) for s in ("xxs24", "xs24", "s24")),
    *(Case(f"swin-{s}", {}, (224, 448)) for s in ("t", "s", "b")),
    *(Case(f"beit-{s}/16", FC, (224, 160)) for s in ("ti", "s", "b")),
    *(Case(f"eva02-{s}/14", FC, (224, 168)) for s in ("ti", "s", "b")),
    *(Case(f"dinov2-{s}/14", REGISTERS, (224, 168)) for s in ("s", "b")),
    *(Case(f"dinov3-{s}/16", {}, (224, 160)) for s in ("s", "s+", "b")),
]


def scatter(encoder: Backbone) -> None:
    """Randomise every parameter, with magnitudes as after training."""
    generator = torch.Generator().manual_seed(0)
    for name, p in encoder.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        scale = 0.02 if p.ndim > 1 and "bias_table" not in name else 0.1
        with torch.no_grad():
            p.copy_(noise * scale + (1.0 if p.ndim == 1 and name.endswith(("weight", "gamma")) else 0.0))
            if "gamma_" in name:
                p.add_(0.5)


def theirs_of(library: str, encoder: Backbone) -> Any:
    """The library's network with the encoder's weights, as a function from images to (pooled, patches)."""
    if library == "timm":
        network: Any = timm_twin(encoder)
        network.load_state_dict(encoder.state_dict(), strict=True)

        def run(images: Tensor) -> tuple[Tensor | None, Tensor]:
            x = network.forward_features(images)
            pooled = None if encoder.name.startswith("deit") else network.forward_head(x, pre_logits=True)
            return pooled, x.flatten(1, 2) if x.ndim == 4 else x[:, encoder.prefix :]

        return run
    preprocess = Preprocess(
        size=224, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    with tempfile.TemporaryDirectory() as folder:
        hf.write(encoder, preprocess, Path(folder))
        return hf.reopen(encoder, preprocess, Path(folder)).run


def compare(case: Case, library: str) -> list[str]:
    """Differences at all sizes, as text; a dash if the library has no such network."""
    told = []
    for size in case.sizes:
        torch.manual_seed(0)
        encoder = backbones.build(name=case.name, image_size=size, **case.options).eval()
        scatter(encoder)
        try:
            run = theirs_of(library, encoder)
        except ValueError:  # it has none
            return ["-"]
        images = torch.randn(2, encoder.channels, size, size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            ours, (pooled, patches) = encoder(images), run(images)
        worst = (ours.patches - patches).abs().max().item()
        if pooled is not None:
            worst = max(worst, (ours.pooled - pooled).abs().max().item())
        told.append(f"{worst:.1e}")
        del encoder, run
        gc.collect()
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    lines = [
        f"fp32, torch {version('torch').partition('+')[0]}, timm {version('timm')}, "
        f"transformers {version('transformers')}; two images of random numbers, all parameters random.",
        "",
        "| model | px | largest difference from timm | from transformers |",
        "|---|---|---|---|",
    ]
    worst = 0.0
    for case in CASES:
        if case.name not in args.models:
            continue
        columns = [compare(case, library) for library in ("timm", "transformers")]
        worst = max([worst, *(float(x) for column in columns for x in column if x != "-")])
        sizes = ", ".join(map(str, case.sizes))
        lines.append(f"| `{case.name}` | {sizes} | {', '.join(columns[0])} | {', '.join(columns[1])} |")
        print(lines[-1], flush=True)
    print(f"largest of all: {worst:.1e}")
    if args.write:
        write_between(DOCUMENT, BEGIN, END, lines)


if __name__ == "__main__":
    main()
