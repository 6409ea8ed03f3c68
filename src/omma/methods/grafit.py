"""Grafit: fine classes from coarse labels [Touvron 2020, arXiv 2011.12982].

Two losses on one embedding: views of an image attract each other (with a predictor and a moving average, as
in BYOL), which preserves the differences between images; and an image's neighbours in a memory of the whole
data set should share its coarse label, which groups classes without merging the finer ones inside them.

    L = - mean_(i != j) cos(q(g(v_i)), g_ema(v_j))  -  log sum_(y_j = y_i, j != i) p_ij,
    p_ij = exp(cos(g(x_i), g(x_j)) / s) / sum_(k != i) exp(cos(g(x_i), g(x_k)) / s)

Costs: two views through the encoder and its average, and a product with the memory, which holds `out` fp32
numbers for each image of the data set (in every checkpoint too). Each view needs several matrices of batch
times data set (5 GB each for a batch of 1,024 on ImageNet).
Exports: the trained `encoder`.
Choose it when labels are coarser than the classes you need: species labelled by genus, products by category.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omma import backbones
from omma.backbones.layers.heads import projector, require_two_classes
from omma.core import collectives, protocols
from omma.core.checks import above_zero, at_least_zero, range_within_one, within_one
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Crop,
    HealthSignal,
    Needs,
    ParamGroup,
    Recipe,
    StepOutput,
)
from omma.losses import contrastive
from omma.methods.shared import crops, signals
from omma.train import ema, param_groups
from omma.train.schedules import cosine


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's defaults, for ImageNet."""

    temperature: float = 0.05  # of the neighbours' softmax
    hidden: int = 4096
    out: int = 256
    views: int = 2  # per image
    instance_weight: float = 1.0
    neighbour_weight: float = 1.0
    momentum: float = 0.996  # of the average, rising to 1 by a cosine
    scale: tuple[float, float] = (0.08, 1.0)
    crop_size: int | None = None  # pixels of the views; None: the image size
    colour: float = 1.0  # strength of jitter; .5 suits small images
    blur: bool = True  # off under 64 px

    def __post_init__(self) -> None:
        above_zero(self, "temperature", "hidden", "out")
        within_one(self, "momentum")
        range_within_one(self, "scale")
        if self.views < 2:
            raise ValueError(f"method.views={self.views}: at least 2 are compared")
        at_least_zero(self, "instance_weight", "neighbour_weight")


def needs(config: Config) -> Needs:
    """Coarse labels, and the images' numbers, under which it remembers them."""
    return Needs(labels=True, numbered=True)


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """`config.views` crops with the same augmentation."""
    colour = crops.pair_colour(config.colour, 0.5 if config.blur else 0.0, 0.1)
    size = config.crop_size or image_size
    return (Crop(count=config.views, size=size, scale=config.scale, colour=colour),)


def paper(image_size: int, model: str) -> Recipe:
    """ResNet-50 on ImageNet with coarse labels: batch 1024, 400 epochs; AdamW in place of SGD.

    `omma pretrain IMAGES --method grafit --recipe paper --model timm:resnet50 --epochs 400`
    """
    return Recipe(config=Config(), batch=1024, lr=1e-3, warmup=5 / 400, weight_decay=0.05, clip=None)


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: lighter heads, mild views, a faster average.

    `omma pretrain coarse.csv --method grafit --steps 1000`, Tiny-ImageNet with 24 coarse labels: k-NN on the
    fine classes of its test images 7.8 % (median of three seeds), after supervised training 6.8
    (docs/benchmarks.md). Strong colours and small crops undo what the neighbours' labels teach in few steps.
    """
    plain = backbones.family(model).plain
    config = Config(
        hidden=512, out=128, momentum=0.9, scale=(0.4, 1.0), colour=0.1, blur=False,
        crop_size=crops.smaller(image_size, plain),
    )  # fmt: skip
    return Recipe(
        config=config, batch=128, lr=1e-3 if plain else 2e-3, lr_end=2e-5, warmup=0.05, weight_decay=0.05,
        clip=None, encoder={"pool": "mean"},
    )  # fmt: skip


def neighbour_loss(
    x: Float[Tensor, "b d"],
    memory: Float[Tensor, "n d"],
    same: Bool[Tensor, "b n"],
    others: Bool[Tensor, "b n"],
    temperature: float,
) -> Float[Tensor, "b"]:
    """-log of the share that entries of the row's label have in a softmax over `others` [section 3.2].

    memory: unit vectors. same: entries with the row's label. others: entries to compare with, without the
    row's own. 0 for a row without an entry in both.
    """
    scores = F.normalize(x.float(), dim=-1) @ memory.T / temperature
    low = torch.finfo(scores.dtype).min
    positives = scores.masked_fill(~(same & others), low).logsumexp(1)
    loss = scores.masked_fill(~others, low).logsumexp(1) - positives
    return torch.where((same & others).any(1), loss, torch.zeros_like(loss))


class Method(protocols.Method):
    """Encoder, projector, predictor, the moving averages of the first two, and the memory."""

    memory: Tensor
    memory_labels: Tensor

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        require_two_classes(context.classes)
        self.config = config
        self.encoder = encoder
        self.head = projector([encoder.dim, config.hidden, config.out])
        self.predictor = projector([config.out, config.hidden, config.out])
        self.slow_encoder = ema.teacher_of(encoder)
        self.slow_head = ema.teacher_of(self.head)
        self.register_buffer("memory", torch.zeros(context.images, config.out))
        # -1: no label, or not seen yet
        self.register_buffer("memory_labels", torch.full((context.images,), -1))

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c = self.config
        (views,) = batch.views
        assert batch.labels is not None, "guaranteed by `needs`"
        b, labels = len(views), batch.labels
        images = views.transpose(0, 1).flatten(0, 1)
        g = self.head(self.encoder(images).pooled)
        with torch.no_grad():
            slow = F.normalize(self.slow_head(self.slow_encoder(images).pooled).float(), dim=-1)
        q = F.normalize(self.predictor(g).float(), dim=-1).unflatten(0, (c.views, b))
        slow = slow.unflatten(0, (c.views, b))
        # sum over i != j of q_i k_j = (sum q)(sum k) - sum q_i k_i
        pairs = (q.sum(0) * slow.sum(0)).sum(-1) - (q * slow).sum((0, 2))
        instance = -pairs.mean() / (c.views * (c.views - 1))

        index = torch.from_numpy(batch.key.index).to(labels.device)
        others = (self.memory_labels >= 0)[None] & (
            index[:, None] != torch.arange(len(self.memory), device=index.device)
        )
        same = labels[:, None] == self.memory_labels
        others = others & (labels >= 0)[:, None]
        by_view = g.unflatten(0, (c.views, b))
        losses = [neighbour_loss(x, self.memory, same, others, c.temperature) for x in by_view]
        neighbours = torch.stack(losses).mean()
        first = by_view[0].detach()
        loss = c.instance_weight * instance + c.neighbour_weight * neighbours
        metrics = {
            "instance_loss": instance.detach(),
            "neighbour_loss": neighbours.detach(),
            "uniformity": contrastive.uniformity(first),
        }
        return StepOutput(loss, metrics, (index, labels, F.normalize(first.float(), dim=-1)))

    @torch.no_grad()
    def after_step(
        self, clock: Clock, carries: Sequence[tuple[Int[Tensor, "b"], Int[Tensor, "b"], Float[Tensor, "b d"]]]
    ) -> None:
        momentum = cosine(self.config.momentum, 1.0, clock.progress)
        ema.update(self.slow_encoder, self.encoder, momentum)
        ema.update(self.slow_head, self.head, momentum)
        for index, labels, g in carries:
            rows = collectives.gather(index)
            self.memory[rows] = collectives.gather(g)
            self.memory_labels[rows] = collectives.gather(labels)

    def health_signals(self) -> Sequence[HealthSignal]:
        return signals.CONTRASTIVE

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "head")
        yield from param_groups.standard(self.predictor, "predictor")
