"""Finetune: a classifier from an encoder that has learned before, its labels few or many.

A linear layer on the pooled feature predicts the class; the encoder learns with it, or an adapter within the
encoder (`--adapt`, docs/finetune.md). Learning rates fall from the last layer to the first [Bao 2021, arXiv
2106.08254, appendix]; the head may learn alone at first [Kumar 2022, arXiv 2202.10054]; an average of the
weights over the steps may be what is evaluated and exported.

    loss = - sum_k t_k log softmax(W f(x) + b)_k                  one label an image, t smoothed and mixed
    loss = - sum_k p_k t_k log s_k + (1 - t_k) log(1 - s_k)       several, s = sigmoid(W f(x) + b)

With TransFG's adapter, whose heads choose parts, the features of a batch are also compared: those of a class
are to be alike, those of two classes no more alike than a margin (losses/parts.py).

With `teacher`, the second head of a distillation token learns the decisions of a trained classifier, as in
`omma methods deit`. Augmentation, mixing and targets are those of `omma methods supervised`.

Costs: one forward and backward pass per view; with an adapter, no gradients of the encoder's weights.
Choose it by `omma finetune MODEL LABELLED`, which holds images out, stops early, and keeps the best weights.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omma import backbones
from omma.backbones.layers.heads import require_two_classes
from omma.core import collectives
from omma.core.checks import at_least_zero, one_of, within_one
from omma.core.protocols import Backbone, Batch, Clock, Context, Needs, ParamGroup, Recipe, StepOutput
from omma.losses import classification, parts
from omma.methods.shared import labelled_views, teaching
from omma.methods.shared.classifies import Classifies
from omma.train import param_groups
from omma.train.shadow import Shadow
from omma.weights.classifier import Classifier

BALANCES = ("none", "loss", "sampler")
WARMED = 10.0  # the average's memory is shorter at first: its decay is (1 + t) / (10 + t) in step t


@dataclass(frozen=True, kw_only=True)
class Config(labelled_views.Labelled, teaching.Taught):
    """MAE's defaults, for ImageNet [He 2021, arXiv 2111.06377, table 9]; those of a teacher are DeiT's."""

    repeats: int = 1
    layer_decay: float = 0.65  # of the learning rate, from each layer to the one before
    encoder_lr_scale: float = 1.0  # the encoder's learning rate, as a share of the head's
    fit_head: bool = False  # does the head begin as a linear classifier of the frozen features?
    head_warmup: float = 0.0  # share of the run in which the head learns alone
    head_std: float = 2e-5  # of the head's initial weights
    fixed_statistics: bool = False  # do batch norms keep the statistics that they come with?
    ema: float = 0.0  # decay of the average of the weights that is evaluated; 0: none
    balance: str = "none"  # or "loss", "sampler": what makes up for classes of different sizes
    contrast: float | None = None  # weight of TransFG's loss between images; None: 1 with its adapter, else 0

    def __post_init__(self) -> None:
        labelled_views.Labelled.__post_init__(self)
        teaching.Taught.__post_init__(self)
        one_of("method.balance", self.balance, BALANCES)
        within_one(self, "layer_decay")
        at_least_zero(self, "head_std")
        for name in ("head_warmup", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"method.{name}={getattr(self, name)}: must lie in [0, 1)")
        if not self.encoder_lr_scale > 0:
            raise ValueError(f"method.encoder_lr_scale={self.encoder_lr_scale}: must be above 0 (.01 to 1)")
        if self.contrast is not None and self.contrast < 0:
            raise ValueError(f"method.contrast={self.contrast}: must be at least 0 (off)")


def needs(config: Config) -> Needs:
    """Labels, one an image or several; with a teacher, that and a distillation token."""
    taught = {} if config.teacher is None else {
        "backbone_options": teaching.TOKEN, "model": "teacher", "kind": teaching.TEACHER,
        "beside": ("classifier.weight",),
    }  # fmt: skip
    return Needs(
        labels=True,
        label_sets=config.teacher is None,
        holds_out=True,
        fits_head=config.fit_head,
        balanced=config.balance == "sampler",
        **taught,
    )


views = labelled_views.plan


class Published(NamedTuple):
    """Fine-tuning on ImageNet as published, for networks up to ViT-B and for larger ones."""

    lr: tuple[float, float]  # for `batch` images
    batch: int
    layer_decay: tuple[float, float]
    drop_path: tuple[float, float, float]  # up to B, L, H
    warmup: tuple[float, float]
    weight_decay: float = 0.05
    clip: float | None = None


PUBLISHED = {
    # 100 epochs (B), 50 (L, H)
    "mae": Published((5e-4, 1e-3), 256, (0.65, 0.75), (0.1, 0.2, 0.3), (0.05, 0.1)),
    "beit": Published((4e-3, 1e-3), 1024, (0.65, 0.75), (0.1, 0.2, 0.2), (0.2, 0.1)),
    "simmim": Published((1.25e-3, 1.25e-3), 512, (0.65, 0.8), (0.1, 0.1, 0.1), (0.2, 0.2), clip=5.0),
    # 30 epochs at 384 px
    "deit": Published((5e-6, 5e-6), 512, (1.0, 1.0), (0.1, 0.1, 0.1), (0.0, 0.0), weight_decay=1e-8),
}
LIKE = {"supervised": "deit", "eva": "beit", "ibot": "beit"}  # methods whose papers fine-tune that way


def paper(image_size: int, model: str) -> Recipe:
    """MAE's, for a ViT-B on ImageNet: 100 epochs, peak rate 5e-4 for each 256 images.

    `omma finetune RUN IMAGENET --recipe paper --epochs 100`. Of weights that omma pretrained by beit, simmim,
    deit or supervised, the recipe is that of their papers.
    """
    return paper_after("mae", image_size, model)


def paper_after(method: str, image_size: int, model: str) -> Recipe:
    """As published for weights that were pretrained by this method; MAE's if nothing is known of it."""
    p = PUBLISHED[LIKE.get(method, method) if LIKE.get(method, method) in PUBLISHED else "mae"]
    family, dim = backbones.family(model), backbones.traits(model).dim or 0
    # Swin-B has the second of SimMIM's layer decays
    large = int(dim > 768 or family.hierarchical)
    layered = family.by_depth is not Backbone.by_depth
    config = Config(layer_decay=p.layer_decay[large] if layered else 1.0)
    return Recipe(
        config=config, batch=1024, lr=p.lr[large] * 1024 / p.batch, warmup=p.warmup[large], clip=p.clip,
        weight_decay=p.weight_decay, drop_path=p.drop_path[0 if dim <= 768 else 1 if dim <= 1024 else 2],
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """5 to 100,000 labels on one machine: a fitted head first, gentle rates, weak augmentation, no mixing."""
    layered = backbones.family(model).by_depth is not Backbone.by_depth
    config = Config(
        smoothing=0.1, mixup=0.0, cutmix=0.0, operations=0, erase_p=0.0, scale=(0.4, 1.0), fit_head=True,
        layer_decay=0.75 if layered else 1.0, encoder_lr_scale=1.0 if layered else 0.05,
        fixed_statistics=True,
    )  # fmt: skip
    return Recipe(config=config, batch=32, lr=2e-4, warmup=0.1, weight_decay=0.05, clip=3.0)


class Method(Classifies):
    """Encoder and linear classifier, with an average of what is trained and the best of it."""

    teacher: Backbone  # with `distilled` alone

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        if not context.several:
            require_two_classes(context.classes)
        self.config, self.classes, self.several = config, context.classes, context.several
        self.encoder = encoder
        self.contrast = _contrast(encoder, config, context)
        self.head = _head("classifier", encoder.dim, config.head_std, context)
        self.begun = _known("classifier", encoder.dim, context) is not None
        self.distilled = None
        if config.teacher is not None:
            teaching.require_token("a teacher", encoder)
            self.distilled = _head("distilled", encoder.dim, config.head_std, context)
            teaching.take(self, config, context)
        weights = context.class_weights if config.balance == "loss" else None
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", torch.tensor(weights) if weights else None, persistent=False)
        self._trained = {name for name, p in self.named_parameters() if p.requires_grad}
        # an average of what training changes, and the best so far, take no more memory than that
        self.average = Shadow(self._tensors()) if config.ema else None
        self.best = Shadow(self._tensors())

    def _tensors(self) -> list[Tensor]:
        """Whatever training changes: parameters, and statistics of batch norms."""
        parameters: list[Tensor] = [p for name, p in self.named_parameters() if name in self._trained]
        if self.encoder.frozen:  # statistics too
            return parameters
        stored = self.encoder.state_dict(keep_vars=True).values()
        return parameters + [t for t in stored if t.is_floating_point() and not isinstance(t, nn.Parameter)]

    def train(self, mode: bool = True) -> "Method":
        """A teacher stays in evaluation mode, and so do batch norms with fixed statistics."""
        super().train(mode)
        if self.config.fixed_statistics:
            for module in self.encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        if self.distilled is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c = self.config
        images, targets, weights = labelled_views.examples(batch, len(self.classes), c)
        count = collectives.mean(weights.sum())
        features = self.encoder(images)
        logits = self.head(features.pooled).float()
        if self.several:
            loss = classification.binary_cross_entropy(logits, targets, weights, count, self.class_weights)
            correct = (logits.detach() > 0) == (targets > 0.5)
        else:
            weighed = targets if self.class_weights is None else targets * self.class_weights
            loss = classification.soft_cross_entropy(logits, weighed, weights, count)
            # of a mixed image: the larger share's
            correct = logits.detach().argmax(-1) == targets.argmax(-1)
        metrics = {"accuracy": labelled_views.share(correct, weights, count)}
        if self.distilled is not None:
            assert features.prefix is not None, "it has a distillation token"
            teacher = teaching.logits(self, images)
            distilled = self.distilled(features.prefix[:, 1]).float()
            loss = teaching.mixed_loss(c, loss, distilled, teacher, weights, count)
            metrics["accuracy_teacher"] = labelled_views.share(
                teacher.argmax(-1) == targets.argmax(-1), weights, count
            )
        if self.contrast:
            assert batch.labels is not None, "one label an image: `_contrast`"
            labels = batch.labels.repeat(len(features.pooled) // len(batch.labels))
            everyone = collectives.gather(features.pooled), collectives.gather(labels)
            between = parts.contrast(features.pooled, labels, everyone=everyone)
            loss, metrics["contrast"] = loss + self.contrast * between, between.detach()
        return StepOutput(loss, metrics)

    def after_step(self, clock: Clock, carries: Sequence[Any]) -> None:
        if self.average is not None:
            decay = min(self.config.ema, (1 + clock.step) / (WARMED + clock.step))
            self.average.follow(self._tensors(), decay)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """In evaluation mode, with the average of the weights if there is one."""
        training = self.training
        self.eval()
        try:
            with nullcontext() if self.average is None else self.average.in_place_of(self._tensors()):
                yield
        finally:
            self.train(training)

    def logits(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Of normalised images."""
        features = self.encoder(images)
        return self.classifier().logits(features.pooled, features.prefix)

    def keep(self) -> None:
        """Remember the weights as they are now as the best so far."""
        self.best.take(self._tensors())

    def settle(self, best: bool) -> None:
        """From now on the weights are the best ones, or the average if there is one."""
        if best:
            self.best.put(self._tensors())
        elif self.average is not None:
            self.average.put(self._tensors())

    def classifier(self) -> Classifier:
        """As it is now, not calibrated."""
        second = None if self.distilled is None else (self.distilled.weight, self.distilled.bias)
        return Classifier(
            classes=self.classes,
            weight=self.head.weight,
            bias=self.head.bias,
            distilled=second,
            multi_label=self.several,
        )

    def groups(self) -> Iterable[ParamGroup]:
        c = self.config
        for group in param_groups.layerwise(self.encoder, "encoder", c.layer_decay):
            rate = group.lr_scale * c.encoder_lr_scale
            yield replace(group, lr_scale=rate, frozen_share=c.head_warmup)
        yield from param_groups.standard(self.head, "classifier")
        if self.distilled is not None:
            yield from param_groups.standard(self.distilled, "distilled")


def _contrast(encoder: Backbone, config: Config, context: Context) -> float:
    """Its weight; ValueError if images are mixed or have several labels, and so are of no one class."""
    weight = encoder.contrast if config.contrast is None else config.contrast
    if weight and context.several:
        if config.contrast is not None:
            raise ValueError(
                f"method.contrast={weight:g}: compares classes, and these images have several: give 0"
            )
        return 0.0
    if weight and config.mix_p and (config.mixup or config.cutmix):
        raise ValueError(
            f"method.contrast={weight:g}: compares classes, and mixed images are of two: give --method.mixup "
            "0 --method.cutmix 0, or --method.contrast 0"
        )
    return weight


def _head(name: str, dim: int, std: float, context: Context) -> nn.Linear:
    """Near 0, for equal probabilities; or that of the weights that the run starts from, if it fits."""
    head = nn.Linear(dim, len(context.classes))
    nn.init.trunc_normal_(head.weight, std=std) if std else nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    if (rows := _known(name, dim, context)) is not None:
        with torch.no_grad():
            for key, p in head.named_parameters():
                if (known := context.start.tensors.get(f"{name}.{key}")) is not None:
                    p.copy_(known[rows])
    return head


def _known(name: str, dim: int, context: Context) -> list[int] | None:
    """The rows of each class in the head of the weights that the run starts from; None if it does not fit."""
    tensors, names = context.start.tensors, list(context.start.facts.get("classes", ()))
    weight = tensors.get(f"{name}.weight")
    if weight is None or weight.shape != (len(names), dim) or "classifier.projection" in tensors:
        return None
    if not {*context.classes} <= {*names} or len({*names}) < len(names):
        return None
    return [names.index(each) for each in context.classes]
