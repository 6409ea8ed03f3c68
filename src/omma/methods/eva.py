"""EVA: predict a trained image tower's features of hidden patches [Fang 2022, arXiv 2211.07636].

Blocks of patches are replaced by a mask token; at each hidden patch the network predicts the direction of the
feature that a frozen tower, which sees the whole image, has there. The paper's tower is CLIP's, so that the
student inherits what CLIP learned from language.

    t_i = P f_i,   f = the tower's last patch features of the unmasked image, P its projection
    L = -1/|M| sum_{i in M} cos(V h_i, t_i),   h = the student's features of the masked image

As in the code behind the paper's figures, targets are not normalised further (`--method.normalise-target
true` subtracts each one's mean and divides by its deviation first).

Costs: a forward pass of the tower and the student's on all patches; the tower is often the larger of the two.
Choose it when a strong tower exists for images like yours, and you want a network of another size.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from omma.backbones.layers.frozen import Frozen
from omma.core import collectives, protocols
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Crop,
    Needs,
    ParamGroup,
    Recipe,
    Schedule,
    StepOutput,
)
from omma.losses import prediction
from omma.methods.shared.masked_head import BlockMasking, MaskedHead, hidden_blocks
from omma.train import param_groups


@dataclass(frozen=True, kw_only=True)
class Config(BlockMasking):
    """The code's defaults."""

    target: str | None = None  # CLIP weights, or any other model
    mask_share: float = 105 / 256  # largest share of the patches to hide
    block_share: float = 16 / 256  # smallest share of the patches in one block
    normalise_target: bool = False  # layer norm without scale and shift
    scale: tuple[float, float] = (0.2, 1.0)


def needs(config: Config) -> Needs:
    """A trained model, and a backbone that embeds each patch separately."""
    return Needs(
        model="target",
        kind="a trained image tower (CLIP weights, timm:NAME, hf:NAME, or a run of yours)",
        plain=True,
    )


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """One crop, flipped at random, for both student and tower."""
    return (Crop(size=image_size, scale=config.scale),)


def paper(image_size: int, model: str) -> Recipe:
    """1 billion parameters on 30 million images: batch 4096, 150 epochs, CLIP's ViT-L/14 as the target.

    `omma pretrain IMAGES --method eva --method.target CLIP --recipe paper --model eva-g/14 --epochs 150`
    """
    return Recipe(
        config=Config(), batch=4096, lr=1e-3, rate_by_batch="none", lr_end=1e-5, warmup=2 / 150,
        warmup_epochs=2, schedule=Schedule(ramp="closed"), betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05,
        decayed=("mask_token",), clip=3.0, drop_path=0.1, encoder={"init": "eva"},
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine.

    `omma pretrain cifar10_25k.zip --method eva --method.target RUN --model vit-n/4 --budget 10m` on two cores
    with a run of SimCLR that took as long (k-NN 59.6 %): 57.5 %, the untrained network's 27.9
    (docs/benchmarks.md).
    """
    return Recipe(
        config=Config(scale=(0.4, 1.0)), batch=128, lr=1.5e-3, lr_end=1e-5, warmup=0.05, weight_decay=0.05,
        betas=(0.9, 0.98), clip=3.0, encoder={"pool": "mean"},
    )  # fmt: skip


class Method(protocols.Method):
    """Student, mask token and linear head, and the frozen tower."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        assert context.model is not None, "guaranteed by Needs.model"
        self.config = config
        self.encoder = encoder
        self.target = Frozen(context.model, context.preprocess, "projection")
        self.head = MaskedHead(encoder, self.target.dim)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        hidden = hidden_blocks(self.config, self.encoder, batch)
        target = self.target(hidden.images, hidden.grid)[hidden.mask].float()  # t_i
        if self.config.normalise_target:
            target = F.layer_norm(target, target.shape[-1:])
        predicted = self.head(self.encoder, hidden.images, hidden.mask)  # V h_i
        loss = prediction.cosine(predicted, target, hidden.count)
        with torch.no_grad():  # the best constant prediction is the mean direction of all targets
            directions = collectives.mean(F.normalize(target, dim=-1).sum(0))
            constant = directions.norm() / hidden.count.clamp(min=1e-6)
        metrics = {"cosine": -loss.detach(), "cosine_of_constant": constant}
        return StepOutput(loss, {**metrics, "masked": hidden.mask.float().mean()})

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")
