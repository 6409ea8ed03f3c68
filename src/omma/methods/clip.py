"""CLIP: images and their captions, told from all others of the batch [Radford 2021, arXiv 2103.00020].

An image tower and a causal text tower meet in one space; each image must find its caption among the batch's,
and each caption its image. Options: SigLIP's sigmoid loss [Zhai 2023, arXiv 2303.15343], and LiT's locked
image tower [Zhai 2021, arXiv 2111.07991], with which only the texts learn. What pairs images with texts is
kept beside the encoder, for zero-shot classification and retrieval (docs/clip.md).

    L = (CE(s I T^t, i = j) + CE(s T I^t, i = j)) / 2,   I, T: unit vectors of images and captions, s = exp(t)

Costs: one view through the image tower and one caption through the text tower.
Choose it when images have captions and you will search them by words, or name classes only afterwards.

CLIP's tokenizer needs its file of merges (`merges`). Where none is given, merges are learned from the run's
own captions: for small data a vocabulary of the words that occur, and a much smaller table of them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omma import backbones
from omma.backbones.layers import text
from omma.core import collectives, dist, protocols
from omma.core.checks import above_zero, one_of, range_within_one, within_one
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Crop,
    Extras,
    Needs,
    ParamGroup,
    Recipe,
    StepOutput,
    Tokenizer,
    Trained,
)
from omma.data import text_tokenizer
from omma.losses import contrastive
from omma.train import param_groups

LOSSES = ("clip", "siglip")
MOST = math.log(100)  # logits are never scaled by more than 100 [section 2.5]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's defaults for its ViTs."""

    out: int = 512  # width of the space that both towers share
    text_depth: int = 12
    text_dim: int = 512
    text_heads: int = 8
    context: int = 77  # tokens a caption; longer ones are cut
    quickgelu: bool = True  # in the text tower, as OpenAI's; false: GELU, as most of open_clip's
    merges: str | None = None  # file of the tokenizer's merges; None: those of text_init, or learned ones
    learned: int = 8192  # merges learned from the captions at most, where none are given; 0: bytes alone
    text_init: str | None = None  # a run or published CLIP whose text tower to go on from
    locked: bool = False  # LiT: the image tower is frozen; go on from good weights (--init)
    loss: str = "clip"  # "clip" or "siglip"
    scale: tuple[float, float] = (0.6, 1.0)  # area of the square crop; a photo's largest has 2/3 or 3/4
    flip: float = 0.0  # probability; "left" and writing are mirrored by it

    def __post_init__(self) -> None:
        one_of("method.loss", self.loss, LOSSES)
        above_zero(self, "out", "text_depth", "text_dim", "text_heads")
        if self.text_dim % self.text_heads:
            raise ValueError(
                f"method.text_dim={self.text_dim}: must be a multiple of text_heads={self.text_heads}"
            )
        if self.learned < 0:
            raise ValueError(f"method.learned={self.learned}: must be at least 0, which leaves bytes alone")
        if self.context < 3:
            raise ValueError(f"method.context={self.context}: must be at least 3 (the paper's: 77)")
        range_within_one(self, "scale")
        within_one(self, "flip")


def needs(config: Config) -> Needs:
    """Captions; other pairs to tell apart from; where it is named, the model whose text tower goes on."""
    return Needs(
        text=True,
        model=None if config.text_init is None else "text_init",
        kind="a model with a text tower (a run of --method clip, or CLIP's published weights)",
        beside=(text.TABLE,),
        files=("merges",),
        batch=2,
        why_batch="each image's caption is told from those of the others",
    )


def tokenizer(config: Config, model: Trained | None, captions: Iterable[str]) -> Tokenizer:
    """Of the merges in `config`, or of the text tower that goes on, or of merges learned from the captions.

    Raises ValueError where the first two differ, or where the tower needs merges and none are there.
    """
    merges = None if config.merges is None else text_tokenizer.read_merges(config.merges)
    if config.text_init is None or model is None:
        origin = f"merges of {config.merges}"
        if merges is None:
            merges = text_tokenizer.learned(captions, config.learned)
            origin = f"{len(merges):,} merges learned from them" if len(merges) else "bytes alone"
            origin += "; --method.merges FILE takes CLIP's own"
        return text_tokenizer.Tokenizer(merges, config.context, origin)
    found = text.restored(model.extras, config.text_init, merges).tokenizer
    if found is None:
        raise ValueError(
            f"{config.text_init} does not hold its tokenizer's merges: give --method.merges "
            "bpe_simple_vocab_16e6.txt.gz (docs/clip.md)"
        )
    if merges is not None and merges.tolist() != found.merges.tolist():
        raise ValueError(
            f"method.merges={config.merges} are not those of {config.text_init}: leave --method.merges out"
        )
    found.origin = f"those of {config.text_init}"
    return found


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """A random square, "the only data augmentation used during training" [section 2.4].

    Squares alone: photographs squashed in training and not in use found 26 % of their own training captions
    first, in place of 98 % (docs/clip.md).
    """
    return (Crop(size=image_size, scale=config.scale, ratio=(1.0, 1.0), flip_p=config.flip),)


def paper(image_size: int, model: str) -> Recipe:
    """ViT-B/32 on 400 million pairs: batch 32,768, 32 epochs, 2,000 steps of warm-up [table 18 and 19].

    `omma pretrain PAIRS --method clip --recipe paper --model vit-b/32 --epochs 32 --method.merges MERGES`
    AdamW's epsilon is 1e-8, not the paper's 1e-6. The paper's image tower has a norm before its first block.
    """
    return Recipe(
        config=Config(), batch=32_768, lr=5e-4, lr_end=0.0, warmup=0.005, weight_decay=0.2, betas=(0.9, 0.98),
        clip=None, encoder={"norm_pre": True, "mlp": "quickgelu", "eps": 1e-5},
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 pairs on one machine: a shallow text tower, and a rate that fits small batches.

    `omma pretrain flickr8k_1000_s192.zip --method clip --image-size 32 --method.scale 1,1 --budget 8m` on two
    busy cores: 97.6 % recall@1 of its own training captions, from chance at .1 % (docs/clip.md).
    """
    plain = backbones.family(model).plain
    config = Config(out=256, text_depth=2, text_dim=256, text_heads=4)
    return Recipe(
        config=config, batch=128, lr=1e-3 if plain else 2e-3, lr_end=1e-5, warmup=0.1, weight_decay=0.1,
        betas=(0.9, 0.98), clip=1.0, encoder={"pool": "mean"},
    )  # fmt: skip


def _same(one: Backbone, other: Backbone) -> bool:
    """Is it the image tower that the text tower was trained with? Its positions may be for another size."""
    a, b = dict(one.named_parameters()), dict(other.named_parameters())
    alike = [name for name in a.keys() & b.keys() if a[name].shape == b[name].shape]
    return 2 * len(alike) > max(len(a), len(b)) and all(torch.equal(a[n], b[n]) for n in alike)


class Method(protocols.Method):
    """Image tower, text tower, their projections, and the scale (and bias) of their cosines."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        assert context.tokenizer is not None
        self.config = config
        self.encoder = encoder
        self.merges = context.tokenizer.merges
        others: dict[str, Tensor] = {}
        if config.text_init is not None:
            assert context.model is not None
            paired = text.restored(context.model.extras, config.text_init, self.merges)
            self.text, others = paired.tower.train(), dict(context.model.extras.tensors)
        else:
            self.text = text.TextTower(
                vocabulary=context.tokenizer.vocabulary, end=context.tokenizer.end, context=config.context,
                depth=config.text_depth, dim=config.text_dim, heads=config.text_heads, out=config.out,
                mlp="quickgelu" if config.quickgelu else "gelu",
            )  # fmt: skip
        self.projection = nn.Linear(encoder.dim, self.text.out, bias=False)
        nn.init.normal_(self.projection.weight, std=encoder.dim**-0.5)
        if (
            config.text_init is not None
            and context.model is not None
            and _same(encoder, context.model.encoder)
        ):
            self.projection.weight.data.copy_(others[text.PROJECTION])
        # t: log(1 / .07) [section 2.5]; SigLIP's are log 10 and -10 [table 4]
        start = math.log(10.0) if config.loss == "siglip" else math.log(1 / 0.07)
        self.logit_scale = nn.Parameter(torch.tensor(start))
        if config.loss == "siglip":
            self.logit_bias = nn.Parameter(torch.tensor(-10.0))
        for name in ("logit_scale", "logit_bias"):  # a tower goes on with the scale that it was trained with
            own = getattr(self, name, None)
            if own is not None and name in others and ("logit_bias" in others) == (config.loss == "siglip"):
                own.data.copy_(others[name].reshape(()))
        if config.locked:
            encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> "Method":
        """A locked image tower never changes, statistics of batch norms included."""
        super().train(mode)
        if self.config.locked:
            self.encoder.eval()
        return self

    def extras(self) -> Extras:
        names = ("logit_scale", "logit_bias")
        others = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return text.kept(self.text, self.projection.weight, self.merges, others)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        (images,) = batch.views
        assert batch.text is not None
        one = self.projection(self.encoder(images[:, 0]).pooled).float()
        two = self.text(batch.text).float()
        everyone, offset = (collectives.gather(one), collectives.gather(two)), dist.rank() * len(one)
        scale = self.logit_scale.float().exp()
        if self.config.loss == "siglip":
            loss = contrastive.siglip(one, two, scale, self.logit_bias.float(), everyone[1], offset)
        else:
            loss = contrastive.clip(one, two, scale, everyone, offset)
        metrics = {"scale": scale.detach(), "alignment": contrastive.alignment(one, two).detach()}
        with torch.no_grad():
            found = (one @ nn.functional.normalize(everyone[1], dim=-1).T).argmax(1)
            own = torch.arange(len(one), device=one.device) + offset
            metrics["batch_recall"] = (found == own).float().mean()
        return StepOutput(loss, metrics)

    @torch.no_grad()
    def after_step(self, clock: Clock, carries: Sequence[Any]) -> None:
        if self.config.loss == "clip":
            self.logit_scale.clamp_(max=MOST)

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.text, "text")
        yield from param_groups.standard(self.projection, "projection")
        scalars = [getattr(self, name) for name in ("logit_scale", "logit_bias") if hasattr(self, name)]
        yield ParamGroup(label="scale", params=scalars, decay=False)
