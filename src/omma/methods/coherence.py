"""Coherence: two frames of a sequence are the two views that agree [Sermanet 2017, arXiv 1704.06888].

A time-lapse, a turntable, a z-stack or a video shows the same thing more than once, and frames differ in ways
that no augmentation makes. Two frames of a sequence, each with its own crop and colours, take the place of
SimCLR's two views of an image. Other frames of the same sequence are left out of the negatives: they show
the same thing, too.

    l(i, j) = -log e_ij / (e_ij + sum_(k: s_k != s_i) e_ik),  e_ij = exp(cos(z_i, z_j) / t),
    for two frames i, j of sequence s_i

Costs: as simclr, and one more image read for each.
Choose it for images in sequences (columns `sequence` and `frame`), when what a sequence shows is what counts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from omma.core import collectives, protocols
from omma.core.checks import one_of
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Crop,
    Frames,
    HealthSignal,
    Needs,
    ParamGroup,
    Recipe,
    StepOutput,
)
from omma.methods.shared import pair_contrast, signals, tracks
from omma.train import param_groups


@dataclass(frozen=True, kw_only=True)
class Config(pair_contrast.Contrast):
    """SimCLR's defaults, for ImageNet."""

    least: float = 1.0  # distance of the two frames, in units of the column `frame` ...
    most: float | None = None  # ... none: any
    # others: frames of other sequences; all: further frames of the same one, too (for few, long sequences)
    negatives: str = "others"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("method.negatives", self.negatives, ("others", "all"))


def needs(config: Config) -> Needs:
    """Sequences, by the number of each image; at least two images to contrast."""
    return Needs(
        numbered=True, batch=2, why_batch="frames are contrasted with those of other sequences in their batch"
    )


def frames(config: Config) -> Frames:
    """Two frames, in any order, each cut and coloured by itself; an image without another is both."""
    return Frames(count=2, least=config.least, most=config.most, order="any", together=False, alone=True)


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """SimCLR's crop, of each frame."""
    return (pair_contrast.crop(config, image_size, 1),)


def paper(image_size: int, model: str) -> Recipe:
    """SimCLR's: batch 4096.

    `omma pretrain IMAGES --method coherence --recipe paper --model vit-s/16 --epochs 100`
    """
    return pair_contrast.paper(Config)


def small(image_size: int, model: str) -> Recipe:
    """SimCLR's for 1,000 to 100,000 images on one machine.

    `omma pretrain plates.csv --method coherence`
    """
    return pair_contrast.small(Config, image_size, model)


class Method(protocols.Method):
    """Encoder and projector."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.head = pair_contrast.head(config, encoder.dim)
        self.sequences = tracks.sequences("coherence", context)
        if config.negatives == "others" and self.sequences.min() == self.sequences.max():
            raise ValueError(
                "coherence contrasts sequences, and these images are of a single one: give more of them, or "
                "--method.negatives all, which contrasts frames of one sequence too"
            )

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        z = self.head(self.encoder(pair_contrast.stacked(batch.views[0])).pooled)
        own = torch.from_numpy(self.sequences[batch.key.index]).to(z.device)
        excluded = own[:, None] == collectives.gather(own)
        contrasted = (~excluded).float().mean()  # share of the batch's images that are negatives
        if self.config.negatives == "all":
            excluded = None
        loss, metrics, _ = pair_contrast.output(z, self.config, excluded=excluded)
        return StepOutput(loss, {**metrics, "other_sequences": contrasted})

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.CONTRASTIVE

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")
