"""Supervised: a classifier that learns from labels, as DeiT's do [Dosovitskiy 2020, arXiv 2010.11929].

A linear layer on the pooled feature predicts the class. The augmentation and regularisation of [Touvron 2020,
arXiv 2012.12877, table 9] prevent overfitting: RandAugment, random erasing, mixup or CutMix of pairs of
images, label smoothing, stochastic depth.

    x = s x_i + (1 - s) x_j,  t = s t_i + (1 - s) t_j,  s ~ Beta(alpha, alpha)
    loss = - sum_k t_k log softmax(W f(x) + b)_k              softmax
    loss = sum_(k != y) max(0, z_k - z_y + 1), z = W f(x) + b   hinge [Weston and Watkins 1998]

With `patience`, labelled images are held out: the best weights are kept, and training ends once so many
readings are no better. The classical networks (linear, mlp, lenet, resnet20) have recipes of their own.

Costs: one forward and backward pass per view; 3 views per image in the paper's recipe, 1 in the small one.
Choose it when most images have the labels that you need, or to train a teacher for deit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from omma import backbones
from omma.backbones import classic
from omma.backbones.layers.heads import classifier
from omma.core import collectives
from omma.core.checks import at_least_zero, one_of
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Extras,
    Needs,
    ParamGroup,
    Recipe,
    StepOutput,
)
from omma.losses import classification
from omma.methods.shared import labelled_views
from omma.methods.shared.classifies import Classifies
from omma.train import param_groups
from omma.train.shadow import Shadow
from omma.weights.classifier import Classifier

LOSSES = ("softmax", "hinge")
CLASSIC: dict[str, dict[str, Any]] = {  # of `small`, by the kind of classical network
    "linear": {"batch": 128, "lr": 3e-4, "weight_decay": 0.05},
    "mlp": {"batch": 128, "lr": 5e-4, "weight_decay": 0.1},
    "lenet": {"batch": 64, "lr": 2e-3, "weight_decay": 0.05},
    "resnet": {"batch": 64, "lr": 4e-3, "weight_decay": 0.1},
}
LEAST = {"linear": 0.8, "mlp": 0.7, "lenet": 0.6, "resnet": 0.6}  # share of the image in a crop


@dataclass(frozen=True, kw_only=True)
class Config(labelled_views.Labelled):
    """DeiT's defaults, for ImageNet."""

    loss: str = "softmax"  # or "hinge", of one class an image
    dropout: float = 0.0  # share of the pooled feature that is dropped before the classifier
    patience: int = 0  # readings of held-out images without improvement that end training; 0: none are read

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("method.loss", self.loss, LOSSES)
        at_least_zero(self, "patience")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"method.dropout={self.dropout:g}: must lie in [0, 1)")
        if self.loss == "hinge" and (self.smoothing or (self.mix_p and (self.mixup or self.cutmix))):
            raise ValueError(
                "method.loss=hinge: needs one class an image, and labels are smoothed or mixed: give "
                "--method.smoothing 0 --method.mix-p 0 too"
            )


def needs(config: Config) -> Needs:
    """Labels; with patience, some of them held out."""
    return Needs(labels=True, holds_out=config.patience > 0, patience=config.patience or None)


views = labelled_views.plan


def paper(image_size: int, model: str) -> Recipe:
    """DeiT's: 1,008 views a step; 100 epochs are its 300, since each shows every image three times.

    `omma pretrain IMAGES --method supervised --recipe paper --model vit-s/16 --epochs 100`. The paper's top-1
    on ImageNet: 72.2 (deit-ti), 79.8 (deit-s), 81.8 (deit-b), at 224 px.
    """
    return Recipe(config=Config(), batch=336, encoder={"init": "deit"}, **labelled_views.PAPER)


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: weaker augmentation, one view per image, mean pooling.

    `omma pretrain cifar10_25k.zip --method supervised --model vit-n/4 --budget 10m` on two cores: k-NN
    69.0 %, the untrained network's 27.9 (docs/benchmarks.md). Smaller views are faster, and no worse after
    the same number of steps. The classical networks see whole images, flipped and lightly cropped, unmixed.
    """
    if kind := classic.kind(model):
        plain = Config(
            smoothing=0.0, mixup=0.0, cutmix=0.0, mix_p=0.0, operations=0, erase_p=0.0, repeats=1,
            scale=(LEAST[kind], 1.0),
        )  # fmt: skip
        return Recipe(config=plain, lr_end=1e-5, warmup=0.05, clip=3.0, **CLASSIC[kind])
    return Recipe(
        config=Config(**labelled_views.small(image_size)), batch=128,
        lr=1e-3 if backbones.family(model).plain else 2e-3, lr_end=1e-5, warmup=0.05, weight_decay=0.05,
        clip=3.0, encoder={"pool": "mean"},
    )  # fmt: skip


class Method(Classifies):
    """Encoder and linear classifier, and with patience the best of both so far."""

    begun = False

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config, self.classes = config, context.classes
        self.encoder = encoder
        self.head = classifier(encoder.dim, context.classes)
        self.best = Shadow(self._tensors()) if config.patience else None

    def _tensors(self) -> list[Tensor]:
        """What the best weights are of: parameters, and statistics of batch norms."""
        state = self.state_dict(keep_vars=True).items()
        return [t for name, t in state if t.is_floating_point() and not name.startswith("best.")]

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        images, targets, weights = labelled_views.examples(batch, len(self.classes), self.config)
        count = collectives.mean(weights.sum())
        pooled = F.dropout(self.encoder(images).pooled, self.config.dropout, self.training)
        logits = self.head(pooled).float()
        hinge = self.config.loss == "hinge"
        loss_of = classification.multiclass_hinge if hinge else classification.soft_cross_entropy
        loss = loss_of(logits, targets, weights, count)
        correct = logits.detach().argmax(-1) == targets.argmax(-1)  # of a mixed image: the larger share's
        return StepOutput(loss, {"accuracy": labelled_views.share(correct, weights, count)})

    def logits(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.head(self.encoder(images).pooled).float()

    def classifier(self) -> Classifier:
        return Classifier(classes=self.classes, weight=self.head.weight, bias=self.head.bias)

    def keep(self) -> None:
        assert self.best is not None, "there are readings with patience only"
        self.best.take(self._tensors())

    def settle(self, best: bool) -> None:
        if best and self.best is not None:
            self.best.put(self._tensors())

    def extras(self) -> Extras:
        """The classifier."""
        tensors = {f"classifier.{name}": p.detach() for name, p in self.head.named_parameters()}
        return Extras(tensors, {"classes": list(self.classes)})

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "classifier")
