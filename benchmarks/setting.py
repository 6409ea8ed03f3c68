"""What all contenders of a race have in common: sizes, crops, heads, batch, learning rate."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from omma.backbones import vit

DISTILLED = ("dino", "ibot", "dinov2")
METHODS = (*DISTILLED, "mae", "simclr", "moco", "supervised")
PROTOTYPES = {"dino": 65_536, "ibot": 8192, "dinov2": 65_536}  # lightly's own; 4,096 under 64 px


class Decoder(NamedTuple):
    """MAE's."""

    depth: int
    dim: int
    heads: int


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The settings of one race, from which every contender and its batch are built."""

    method: str
    model: str = "vit-ti/4"  # vit-SIZE/PATCH
    image_size: int = 32
    batch: int = 32
    local_crops: int = 6
    prototypes: int | None = None
    untied: bool = False  # DINOv2: a head of their own for patches
    hidden: int = 2048  # of the heads with prototypes
    bottleneck: int = 256
    drop_path: float = 0.1  # of iBOT's and DINOv2's students, as lightly's examples have it
    layer_scale: float = 1e-5  # of theirs too
    decoder: Decoder | None = None
    projector: int = 512  # hidden width of SimCLR's and MoCo's heads
    out: int = 128  # and their width
    queue: int = 4096  # MoCo's keys of earlier batches
    temperature: float = 0.5  # SimCLR's and MoCo's
    classes: int = 1000
    lr: float = 1e-4
    references: Path | None = None  # a folder with clones of the papers' code
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def patch(self) -> int:
        return int(self.model.rpartition("/")[2])

    @property
    def shape(self) -> vit.Size:
        """Depth, width and heads."""
        return vit.SIZES[self.model.removeprefix("vit-").partition("/")[0]]

    @property
    def local_size(self) -> int:
        """96 of 224 px, 16 of 32."""
        return 16 if self.image_size < 64 else round(self.image_size * 96 / 224 / 16) * 16

    @property
    def prototypes_(self) -> int:
        return self.prototypes or (4096 if self.image_size < 64 else PROTOTYPES[self.method])

    @property
    def decoder_(self) -> Decoder:
        """The paper's; a light one under 64 px."""
        return self.decoder or (Decoder(2, 128, 4) if self.image_size < 64 else Decoder(8, 512, 16))

    def describe(self) -> str:
        """For a headline."""
        words = [f"{self.method} step, {self.model}, {self.crops_told()}"]
        if self.method in DISTILLED:
            heads = " each of two heads" if self.method == "dinov2" and self.untied else ""
            words.append(f"K={self.prototypes_:,}{heads}")
        elif self.method == "mae":
            words.append(f"decoder {self.decoder_.depth}x{self.decoder_.dim}")
        elif self.method == "moco":
            words.append(f"queue {self.queue:,}")
        return ", ".join([*words, f"batch {self.batch}", str(self.device)])

    def sizes(self) -> list[int]:
        """Pixels of each view of an image."""
        if self.method in DISTILLED:
            return [self.image_size] * 2 + [self.local_size] * self.local_crops
        return [self.image_size] * (2 if self.method in ("simclr", "moco") else 1)

    def crops_told(self) -> str:
        told = self.sizes()
        return " + ".join(f"{told.count(size)}x{size}" for size in dict.fromkeys(told)) + " px"

    def crops(self) -> list[Tensor]:
        """The views [b, 3, s, s] that all contenders get: the same random numbers."""
        generator = torch.Generator().manual_seed(0)
        return [
            torch.randn(self.batch, 3, size, size, generator=generator).to(self.device)
            for size in self.sizes()
        ]

    def labels(self) -> Tensor:
        """[b]"""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.classes, (self.batch,), generator=generator).to(self.device)
