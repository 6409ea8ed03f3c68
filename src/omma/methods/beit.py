"""BEiT: predict a tokenizer's codes of hidden patches [Bao 2021, arXiv 2106.08254].

Blocks of patches are replaced by a mask token; at each hidden patch the network predicts which of K codes a
trained tokenizer, which sees the whole image, assigns to it. Codes describe a patch's content rather than its
exact pixels.

    c_i = argmax_k (W f_i + b)_k,   f = the tokenizer's features of the unmasked image
    L = -1/|M| sum_{i in M} log softmax(V h_i)_{c_i},   h = the student's features of the masked image

Costs: a forward pass of the tokenizer, and the student's on all patches.
Choose it when you have a tokenizer (train one: `--method vqvae`) and will fine-tune; MAE learns similar
features without one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from omma import backbones
from omma.backbones.layers.frozen import Frozen
from omma.core import collectives, protocols
from omma.core.checks import one_of
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Colour,
    Context,
    Crop,
    Needs,
    ParamGroup,
    Recipe,
    Schedule,
    StepOutput,
)
from omma.core.recipe import added
from omma.losses import prediction
from omma.methods.shared.masked_head import BlockMasking, Hidden, MaskedHead, hidden_blocks
from omma.ops import statistics
from omma.train import param_groups


@dataclass(frozen=True, kw_only=True)
class Config(BlockMasking):
    """The paper's defaults."""

    tokenizer: str | None = None  # a run of vqvae or dvae, or another model with codes
    colour: float = 0.4  # strength of brightness, contrast and saturation jitter
    # of these: drawn for each view, or as listed
    jitter_order: Literal["random", "fixed"] = added("random", before="fixed")

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("method.jitter_order", self.jitter_order, ("random", "fixed"))


def needs(config: Config) -> Needs:
    """A tokenizer, and a backbone that embeds each patch separately."""
    return Needs(
        model="tokenizer",
        kind="a tokenizer (train one: omma pretrain IMAGES --method vqvae)",
        beside=("codes.weight",),
        plain=True,
    )


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """One crop, flipped and jittered, for both student and tokenizer."""
    c = config.colour
    order = config.jitter_order
    colour = Colour(brightness=c, contrast=c, saturation=c, jitter_p=1.0, jitter_order=order) if c else None
    return (Crop(size=image_size, scale=config.scale, colour=colour),)


def paper(image_size: int, model: str) -> Recipe:
    """BEiT-B on ImageNet: batch 2048, 800 epochs; all layers share the relative positions of `beit-b/16`.

    `omma pretrain IMAGES --method beit --method.tokenizer RUN --recipe paper --model beit-b/16 --epochs 800`
    """
    large = backbones.options(model).get("dim") == 1024
    scale = 1e-5 if large else 0.1  # [section 2.4 and the code's README]
    return Recipe(
        config=Config(), batch=2048, lr=1.5e-3, rate_by_batch="none", lr_end=1e-5,
        warmup=10 / 800, warmup_epochs=10, schedule=Schedule(ramp="closed"), weight_decay=0.05,
        decayed=("mask_token", "table"), clip=3.0, drop_path=0.1,
        encoder={"pool": "mean", "layer_scale": scale, "bias": "shared", "init": "beit"},
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: milder crops, no jitter.

    `omma pretrain cifar10_25k.zip --method beit --method.tokenizer RUN --model vit-n/4 --budget 10m` on two
    cores with a vqvae that took as long: k-NN 44.3 %, the untrained network's 27.9 (docs/benchmarks.md).
    """
    return Recipe(
        config=Config(scale=(0.4, 1.0), colour=0.0, jitter_order="fixed"), batch=128, lr=1.5e-3, lr_end=1e-5,
        warmup=0.05,
        weight_decay=0.05, betas=(0.9, 0.98), clip=3.0, encoder={"pool": "mean"},
    )  # fmt: skip


class Method(protocols.Method):
    """Student, mask token and linear head, and the frozen tokenizer."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        assert context.model is not None, "guaranteed by Needs.model"
        self.config = config
        self.encoder = encoder
        self.tokenizer = Frozen(context.model, context.preprocess, "codes")
        self.head = MaskedHead(encoder, self.tokenizer.dim)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        hidden = hidden_blocks(self.config, self.encoder, batch)
        target = self.tokenizer(hidden.images, hidden.grid)[hidden.mask].argmax(-1)  # c_i
        logits = self.head(self.encoder, hidden.images, hidden.mask)  # V h_i
        loss = prediction.codes(logits, target, hidden.count)
        return StepOutput(loss, self._metrics(logits.detach(), target, hidden))

    def _metrics(self, logits: Tensor, target: Tensor, hidden: Hidden) -> dict[str, Tensor]:
        correct = (logits.argmax(-1) == target).float().sum()
        use = collectives.mean(torch.bincount(target, minlength=self.tokenizer.dim).float())
        share = use / use.sum().clamp(min=1)
        return {
            "accuracy": correct / hidden.count.clamp(min=1e-6),
            "accuracy_of_commonest": share.max(),  # if the most frequent code is always predicted
            "target_perplexity": statistics.entropy(share).exp(),
            "masked": hidden.mask.float().mean(),
        }

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")
