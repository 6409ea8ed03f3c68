"""CLIP: match images and captions within a batch [Radford 2021, arXiv 2103.00020].

An image tower and a causal text tower map into one space; each image must pick its caption among the batch's,
and each caption its image. Options: SigLIP's sigmoid loss [Zhai 2023, arXiv 2303.15343], and LiT's locked
image tower [Zhai 2021, arXiv 2111.07991], where only the text tower learns. The text tower, projections and
tokenizer are saved beside the encoder, for zero-shot classification and retrieval (docs/clip.md).

    L = (CE(s I T^t, i = j) + CE(s T I^t, i = j)) / 2,   I, T: unit vectors of images and captions, s = exp(t)

Costs: one view through the image tower and one caption through the text tower.
Choose it when images have captions and you will search them by words, or name the classes later.

CLIP's tokenizer reads its merges from a file (`merges`). Without one, merges are learned from the run's own
captions: on small data this gives a vocabulary of the words that occur and a much smaller embedding table.
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
from omma.core.errors import need
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
from omma.core.recipe import added
from omma.data import text_tokenizer
from omma.losses import contrastive
from omma.train import param_groups

LOSSES = ("clip", "siglip")
MAX_LOG_SCALE = math.log(100)  # logits are scaled by 1 to 100 [section 2.5; open_clip for the lower bound]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's defaults for its ViTs."""

    out: int = 512  # width of the space that both towers share
    text_depth: int = 12
    text_dim: int = 512
    text_heads: int = 8
    context: int = 77  # tokens a caption; longer ones are cut
    # biases of its MLPs start as PyTorch draws them, as in OpenAI's code; else at 0
    text_biases: bool = added(False, before=False)
    quickgelu: bool = True  # in the text tower, as in OpenAI's; false: GELU, as in most of open_clip's
    merges: str | None = None  # file of the tokenizer's merges; None: those of text_init, or learned ones
    caption: str | None = (
        None  # composed of a table's columns: "a {medium} from {culture}"; None: the table's
    )
    learned: int = 8192  # most merges to learn from the captions if there is no file; 0: bytes only
    # captions by ftfy first, as CLIP's code does; of `text_init`, as it was trained
    repair: bool = added(False, before=False)
    text_init: str | None = None  # a run or published CLIP whose text tower to start from
    locked: bool = False  # LiT: freeze the image tower; start it from good weights (--init)
    loss: str = "clip"  # "clip" or "siglip"
    scale: tuple[float, float] = (0.6, 1.0)  # area of the square crop; the largest in a photo has 2/3 or 3/4
    flip: float = 0.0  # probability; flipping makes "left" and text in images wrong

    def __post_init__(self) -> None:
        one_of("method.loss", self.loss, LOSSES)
        above_zero(self, "out", "text_depth", "text_dim", "text_heads")
        if self.text_dim % self.text_heads:
            raise ValueError(
                f"method.text_dim={self.text_dim}: must be a multiple of text_heads={self.text_heads}"
            )
        if self.learned < 0:
            raise ValueError(f"method.learned={self.learned}: must be at least 0 (bytes only)")
        if self.context < 3:
            raise ValueError(f"method.context={self.context}: must be at least 3 (the paper's: 77)")
        range_within_one(self, "scale")
        within_one(self, "flip")


def needs(config: Config) -> Needs:
    """Captions; at least two pairs to contrast; the model of `text_init`, if any."""
    return Needs(
        text=True,
        model=None if config.text_init is None else "text_init",
        kind="a model with a text tower (a run of --method clip, or CLIP's published weights)",
        beside=(text.TABLE,),
        caption="caption",
        files=("merges",),
        batch=2,
        why_batch="each image's caption is contrasted with those of the others",
    )


def tokenizer(config: Config, model: Trained | None, captions: Iterable[str]) -> Tokenizer:
    """With the merges of `config.merges`, of `config.text_init`, or learned from the captions.

    Raises ValueError if the first two differ, if `text_init` has no merges and none are given or does not
    repair its texts as `config.repair` asks, and for texts to repair without ftfy.
    """
    if config.repair:
        need("ftfy", "hf")
    merges = None if config.merges is None else text_tokenizer.read_merges(config.merges)
    if config.text_init is None or model is None:
        origin = f"merges of {config.merges}"
        if merges is None:
            merges = text_tokenizer.learned(captions, config.learned, config.repair)
            origin = f"{len(merges):,} merges learned from them" if len(merges) else "bytes only"
            origin += "; --method.merges FILE takes CLIP's own"
        return text_tokenizer.Tokenizer(merges, config.context, origin, config.repair)
    restored = text.restored(model.extras, config.text_init, merges).tokenizer
    if restored is None:
        raise ValueError(
            f"{config.text_init} does not hold its tokenizer's merges: give --method.merges "
            "bpe_simple_vocab_16e6.txt.gz (docs/clip.md)"
        )
    if merges is not None and merges.tolist() != restored.merges.tolist():
        raise ValueError(
            f"method.merges={config.merges} are not those of {config.text_init}: leave --method.merges out"
        )
    if config.repair and not restored.repaired:
        raise ValueError(
            f"{config.text_init} was trained on texts that ftfy had not repaired: give --method.repair False"
        )
    restored.origin = f"those of {config.text_init}"
    return restored


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """A random square, "the only data augmentation used during training" [section 2.4].

    Crops are square: trained on photos squashed to squares, a model ranked 26 % of its own training captions
    first, instead of 98 % (docs/clip.md).
    """
    return (Crop(size=image_size, scale=config.scale, ratio=(1.0, 1.0), flip_p=config.flip),)


def paper(image_size: int, model: str) -> Recipe:
    """ViT-B/32 on 400 million pairs: batch 32,768, 32 epochs, 2,000 steps of warm-up [table 18 and 19].

    `omma pretrain PAIRS --method clip --recipe paper --model vit-b/32 --epochs 32 --method.merges MERGES`
    Positions decay, too, as in open_clip's runs. The paper's image tower has a norm before its first block.
    For another batch no published rule is known: the rate changes with its square root.
    """
    return Recipe(
        config=Config(text_biases=True, repair=True), batch=32_768, lr=5e-4, lr_end=0.0, warmup=0.005,
        warmup_length=2000, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, decayed=("position",), clip=None,
        encoder={"norm_pre": True, "mlp": "quickgelu", "eps": 1e-5, "init": "clip"},
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 pairs on one machine: a shallow text tower, a learning rate for small batches.

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
    """Do they have the same weights? Parameters of other shapes (positions for another size) are ignored."""
    a, b = dict(one.named_parameters()), dict(other.named_parameters())
    shared = [name for name in a.keys() & b.keys() if a[name].shape == b[name].shape]
    return 2 * len(shared) > max(len(a), len(b)) and all(torch.equal(a[n], b[n]) for n in shared)


class Method(protocols.Method):
    """Image tower, text tower, their projections, and the scale (and bias) of their cosines."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        assert context.tokenizer is not None
        self.config = config
        self.encoder = encoder
        self.merges, self.repaired = context.tokenizer.merges, context.tokenizer.repaired
        saved: dict[str, Tensor] = {}
        if config.text_init is not None:
            assert context.model is not None
            paired = text.restored(context.model.extras, config.text_init, self.merges)
            self.text, saved = paired.tower.train(), dict(context.model.extras.tensors)
        else:
            self.text = text.TextTower(
                vocabulary=context.tokenizer.vocabulary, end=context.tokenizer.end, context=config.context,
                depth=config.text_depth, dim=config.text_dim, heads=config.text_heads, out=config.out,
                mlp="quickgelu" if config.quickgelu else "gelu", mlp_biases=config.text_biases,
            )  # fmt: skip
        self.projection = nn.Linear(encoder.dim, self.text.out, bias=False)
        nn.init.normal_(self.projection.weight, std=encoder.dim**-0.5)
        if (
            config.text_init is not None
            and context.model is not None
            and _same(encoder, context.model.encoder)
        ):
            self.projection.weight.data.copy_(saved[text.PROJECTION])
        # t: log(1 / .07) [section 2.5]; SigLIP's are log 10 and -10 [table 4]
        start = math.log(10.0) if config.loss == "siglip" else math.log(1 / 0.07)
        self.logit_scale = nn.Parameter(torch.tensor(start))
        if config.loss == "siglip":
            self.logit_bias = nn.Parameter(torch.tensor(-10.0))
        if ("logit_bias" in saved) == (config.loss == "siglip"):  # saved by a run with the same loss
            for name, scalar in self._scalars().items():
                if name in saved:
                    scalar.data.copy_(saved[name].reshape(()))
        if config.locked:
            encoder.requires_grad_(False)

    def _scalars(self) -> dict[str, nn.Parameter]:
        """The scale and, for SigLIP, the bias of the logits."""
        return {name: getattr(self, name) for name in ("logit_scale", "logit_bias") if hasattr(self, name)}

    def train(self, mode: bool = True) -> "Method":
        """A locked image tower never changes, nor do its batch norms' statistics."""
        super().train(mode)
        if self.config.locked:
            self.encoder.eval()
        return self

    def extras(self) -> Extras:
        return text.extras(self.text, self.projection.weight, self.merges, self._scalars(), self.repaired)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        (images,) = batch.views
        assert batch.text is not None
        image = self.projection(self.encoder(images[:, 0]).pooled).float()
        caption = self.text(batch.text).float()
        everyone, offset = (collectives.gather(image), collectives.gather(caption)), dist.rank() * len(image)
        scale = self.logit_scale.float().exp()
        if self.config.loss == "siglip":
            loss = contrastive.siglip(image, caption, scale, self.logit_bias.float(), everyone[1], offset)
        else:
            loss = contrastive.clip(image, caption, scale, everyone, offset)
        metrics = {"scale": scale.detach(), "alignment": contrastive.alignment(image, caption).detach()}
        with torch.no_grad():
            nearest = (image @ nn.functional.normalize(everyone[1], dim=-1).T).argmax(1)
            own = torch.arange(len(image), device=image.device) + offset
            metrics["batch_recall"] = (nearest == own).float().mean()
        return StepOutput(loss, metrics)

    @torch.no_grad()
    def after_step(self, clock: Clock, carries: Sequence[Any]) -> None:
        if self.config.loss == "clip":
            self.logit_scale.clamp_(0.0, MAX_LOG_SCALE)

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.text, "text")
        yield from param_groups.standard(self.projection, "projection")
        yield ParamGroup(label="scale", params=list(self._scalars().values()), decay=False)
