"""Supervised: a classifier that learns from labels, as DeiT's do [Dosovitskiy 2020, arXiv 2010.11929].

A linear layer on the pooled feature predicts the class. The augmentation and regularisation of [Touvron 2020,
arXiv 2012.12877, table 9] prevent overfitting: RandAugment, random erasing, mixup or CutMix of pairs of
images, label smoothing, stochastic depth.

    x = s x_i + (1 - s) x_j,  t = s t_i + (1 - s) t_j,  s ~ Beta(alpha, alpha)
    loss = - sum_k t_k log softmax(W f(x) + b)_k

Costs: one forward and backward pass per view; 3 views per image in the paper's recipe, 1 in the small one.
Choose it when most images have the labels that you need, or to train a teacher for deit.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from omma import backbones
from omma.backbones.layers.heads import classifier
from omma.core import collectives, protocols
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
from omma.train import param_groups


@dataclass(frozen=True, kw_only=True)
class Config(labelled_views.Labelled):
    """DeiT's defaults, for ImageNet."""


def needs(config: Config) -> Needs:
    """Labels."""
    return Needs(labels=True)


views = labelled_views.plan


def paper(image_size: int, model: str) -> Recipe:
    """DeiT's: 1,008 views a step; 100 epochs are its 300, since each shows every image three times.

    `omma pretrain IMAGES --method supervised --recipe paper --model vit-s/16 --epochs 100`. The paper's top-1
    on ImageNet: 72.2 (deit-ti), 79.8 (deit-s), 81.8 (deit-b), at 224 px.
    """
    return Recipe(
        config=Config(), batch=336, lr=5e-4 * 1008 / 512, lr_end=1e-5, warmup=5 / 300, weight_decay=0.05,
        clip=None, drop_path=0.1,
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: weaker augmentation, one view per image, mean pooling.

    `omma pretrain cifar10_25k.zip --method supervised --model vit-n/4 --budget 10m` on two cores: k-NN
    69.0 %, the untrained network's 27.9 (docs/benchmarks.md). Smaller views are faster, and no worse after
    the same number of steps.
    """
    return Recipe(
        config=Config(**labelled_views.small(image_size)), batch=128,
        lr=1e-3 if backbones.family(model).plain else 2e-3, lr_end=1e-5, warmup=0.05, weight_decay=0.05,
        clip=3.0, encoder={"pool": "mean"},
    )  # fmt: skip


class Method(protocols.Method):
    """Encoder and linear classifier."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config, self.classes = config, context.classes
        self.encoder = encoder
        self.head = classifier(encoder.dim, context.classes)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        images, targets, weights = labelled_views.examples(batch, len(self.classes), self.config)
        count = collectives.mean(weights.sum())
        logits = self.head(self.encoder(images).pooled).float()
        loss = classification.soft_cross_entropy(logits, targets, weights, count)
        correct = logits.detach().argmax(-1) == targets.argmax(-1)  # of a mixed image: the larger share's
        return StepOutput(loss, {"accuracy": labelled_views.share(correct, weights, count)})

    def extras(self) -> Extras:
        """The classifier."""
        tensors = {f"classifier.{name}": p.detach() for name, p in self.head.named_parameters()}
        return Extras(tensors, {"classes": list(self.classes)})

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "classifier")
