"""Positions and features at other image sizes than a network's own, against the published code.

    python benchmarks/parity_positions.py --references DIR [--write]

DIR holds clones (benchmarks/published/references.py). Networks of the published code with random weights are
loaded as files are, so omma has to recognise how they interpolate. The table has the largest differences of
positions and of patch features, and for positions what the antialiased ones differ by. --write puts it into
docs/parity.md and numbers of positions from a formula into tests/ops/positions_official.json. The command
fails if positions differ by more than 1e-5.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from published.comparing import scatter, wave
from published.references import References, on_this_machine
from tables import write_between
from torch import Tensor, nn

from omma.core.protocols import Backbone
from omma.ops.positions import resample
from omma.weights.published import into_model

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "parity.md"
GOLDEN = ROOT / "tests" / "ops" / "positions_official.json"
BEGIN, END = "<!-- benchmarks/parity_positions.py begin -->", "<!-- benchmarks/parity_positions.py end -->"
BOUND = 1e-5
WIDTH, SAMPLES, STRIDE = 8, 40, 1009  # of the golden numbers


class Case(NamedTuple):
    name: str
    source: str
    make: Callable[[References], Any]
    home: int  # pixels
    patch: int
    size: tuple[int, int]


def _dino(references: References) -> nn.Module:
    official = references.load("facebookresearch/dino", "vision_transformer")
    return official.VisionTransformer(
        img_size=[224], patch_size=16, embed_dim=192, num_heads=3, depth=2, qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip


def _ibot(references: References) -> nn.Module:
    official = references.load("bytedance/ibot", "models.vision_transformer")
    return official.VisionTransformer(patch_size=16, embed_dim=192, num_heads=3, depth=2, qkv_bias=True)


def _dinov2(references: References, entry: str, home: int) -> nn.Module:
    official = references.load("facebookresearch/dinov2", "dinov2.hub.backbones")
    clone = str(references.path("facebookresearch/dinov2"))
    with mock.patch.dict(sys.modules), mock.patch.object(sys, "path", [clone, *sys.path]):
        network = getattr(official, entry)(pretrained=False, img_size=home)  # which imports the network
    network.blocks = network.blocks[:2]
    return network


SMALL, REGISTERS = partial(_dinov2, entry="dinov2_vits14"), partial(_dinov2, entry="dinov2_vits14_reg")
CASES = [
    Case("DINO, 224 to 480 px", "facebookresearch/dino", _dino, 224, 16, (480, 480)),
    Case("DINO, 224 to 96 px", "facebookresearch/dino", _dino, 224, 16, (96, 96)),
    Case("DINO, 224 to 320 x 160 px", "facebookresearch/dino", _dino, 224, 16, (320, 160)),
    Case("iBOT, 224 to 480 px", "bytedance/ibot", _ibot, 224, 16, (480, 480)),
    *(
        Case(f"{name}, {home} to {' x '.join(map(str, dict.fromkeys(size)))} px", "facebookresearch/dinov2",
             partial(make, home=home), home, 14, size)
        for name, make in (("DINOv2", SMALL), ("DINOv2 with registers", REGISTERS))
        for home, size in ((518, (224, 224)), (224, (518, 518)), (518, (224, 336)))
    ),
]  # fmt: skip


def official_positions(network: Any, case: Case) -> Tensor:
    """The patches' positions as the published code interpolates them."""
    cells = math.prod(side // case.patch for side in case.size)
    tokens = torch.zeros(1, 1 + cells, network.pos_embed.shape[-1])
    return network.interpolate_pos_encoding(tokens, *case.size)[:, 1:]


def positions_of(encoder: Any, case: Case, how: Any) -> Tensor:
    rows, columns = (side // case.patch for side in case.size)
    own = encoder.prefix if encoder.prefix_positions else 0
    return resample(encoder.pos_embed[:, own:], encoder.home, (rows, columns), how)


def patch_features(network: Any, images: Tensor) -> Tensor:
    if hasattr(network, "num_register_tokens"):
        return network.forward_features(images)["x_norm_patchtokens"]
    return network.get_intermediate_layers(images, 1)[0][:, 1:]


@torch.no_grad()
def compare(case: Case, references: References) -> tuple[str, float, float, float]:
    """How the loaded network interpolates; differences of positions, features, antialiased positions."""
    network = case.make(references).eval()
    scatter(network)
    loaded, _, _ = into_model(network.state_dict(), source=case.name)
    encoder: Backbone = loaded
    how = getattr(encoder, "interpolation", "")
    expected = official_positions(network, case)
    apart = (positions_of(encoder, case, how) - expected).abs().max()
    antialiased = (positions_of(encoder, case, "antialias") - expected).abs().max()
    images = torch.randn(1, 3, *case.size, generator=torch.Generator().manual_seed(1))
    features = (encoder(images).patches - patch_features(network, images)).abs().max()
    return how, float(apart), float(features), float(antialiased)


@torch.no_grad()
def golden(case: Case, how: str, references: References) -> dict[str, Any]:
    """Some of the official positions for positions from a formula."""
    network, side = case.make(references).eval(), case.home // case.patch
    network.pos_embed = nn.Parameter(wave(1, 1 + side * side, WIDTH))
    values = official_positions(network, case).flatten()
    index = torch.arange(SAMPLES) * STRIDE % len(values)
    grid = [n // case.patch for n in case.size]
    return {"home": side, "grid": grid, "how": how, "values": [round(float(x), 8) for x in values[index]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--references", type=Path, required=True, metavar="DIR")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    references = References(args.references)
    missing = sorted({case.source for case in CASES if references.path(case.source) is None})
    if missing:
        sys.exit(f"clone into {args.references}: {', '.join(missing)}")
    lines = [
        f"Largest absolute differences, fp32, torch {version('torch').partition('+')[0]}; positions and all "
        "other parameters random.",
        "",
        "| network | `interpolation`, recognised | positions | patch features | antialiased positions |",
        "|---|---|---|---|---|",
    ]
    worst, numbers = 0.0, {}
    with on_this_machine():
        for case in CASES:
            how, apart, features, antialiased = compare(case, references)
            worst = max(worst, apart)
            numbers[case.name] = golden(case, how, references)
            lines.append(f"| {case.name} | {how} | {apart:.1e} | {features:.1e} | {antialiased:.1e} |")
            print(lines[-1], flush=True)
    if not worst < BOUND:
        sys.exit(f"positions differ by {worst:.1e}, more than {BOUND:.0e}")
    if args.write:
        write_between(DOCUMENT, BEGIN, END, lines)
        GOLDEN.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
