"""DeiT: a transformer that learns from labels and from a teacher's answers [Touvron 2020, arXiv 2012.12877].

A distillation token stands beside the class token, with a head of its own. The class token learns the labels,
the distillation token what a trained network, best a convolutional one, takes the same mixed view for. To
classify, both heads' probabilities are averaged.

    hard = (CE(z_class, t) + CE(z_distilled, argmax z_teacher)) / 2                                 [eq. 3]
    soft = (1 - l) CE(z_class, t) + l T^2 KL(softmax(z_teacher / T) || softmax(z_distilled / T))    [eq. 2]

Augmentation, mixing and targets are those of `omma methods supervised`. The published code, which is
followed, divides the soft loss by the number of classes (per_class false is the equation). It averages logits
to classify; here as in the paper probabilities are averaged.

Costs: one forward and backward pass a view, and the teacher's forward pass.
Choose it when images are labelled and some classifier of them does better than a transformer would.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from omma.backbones.layers.heads import classifier
from omma.core import collectives, protocols
from omma.core.checks import one_of
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
    Trained,
)
from omma.losses import classification
from omma.methods.shared import labelled_views
from omma.train import param_groups

WEIGHTS = {"hard": 0.5, "soft": 0.1}  # of what the teacher says, in the paper


@dataclass(frozen=True, kw_only=True)
class Config(labelled_views.Labelled):
    """The paper's defaults, for ImageNet."""

    teacher: str | None = None  # a model that classifies
    distillation: str = "hard"  # or "soft"
    weight: float | None = None  # of the teacher's part of the loss; None: .5 where hard, .1 where soft
    temperature: float = 3.0  # of the soft loss
    per_class: bool = True  # is the soft loss divided by the number of classes, as in the published code?
    teacher_size: int | None = None  # pixels at which the teacher looks; None: those it was trained at

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("method.distillation", self.distillation, WEIGHTS)
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise ValueError(f"method.weight={self.weight}: must lie in [0, 1] (the paper's: .5 or .1)")
        if self.temperature <= 0:
            raise ValueError(f"method.temperature={self.temperature}: must be above 0 (the paper's: 3)")
        if self.teacher_size is not None and self.teacher_size < 1:
            raise ValueError(f"method.teacher_size={self.teacher_size}: must be at least 1 pixel")


def needs(config: Config) -> Needs:
    """Labels, a distillation token, and a teacher."""
    return Needs(
        labels=True,
        backbone_options={"distilled": "carry a distillation token"},
        model="teacher",
        kind="a teacher that classifies (train one: omma pretrain IMAGES --method supervised --model "
        "timm:regnety_016)",
        beside=("classifier.weight",),
    )


def views(config: Config, image_size: int) -> tuple[Crop, ...]:
    """Crops with RandAugment and random erasing."""
    return labelled_views.plan(config, image_size)


def paper(image_size: int, model: str) -> Recipe:
    """1,008 views a step, 300 of the paper's epochs, which are 100 here, for each shows an image three times.

    `omma pretrain IMAGES --method deit --recipe paper --model deit-b/16 --epochs 100 --method.teacher RUN`
    The paper's top-1 on ImageNet with a RegNetY-16GF (82.9) as teacher: 74.5 (deit-ti), 81.2 (deit-s), 83.4
    (deit-b), at 224 px, by the published code; without a teacher 72.2, 79.8, 81.8.
    """
    return Recipe(
        config=Config(), batch=336, lr=5e-4 * 1008 / 512, lr_end=1e-5, warmup=5 / 300, weight_decay=0.05,
        clip=None, drop_path=0.1, encoder={"distilled": True},
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: weaker augmentation, one view an image, as for supervised.

    `omma pretrain cifar10_25k.zip --method deit --method.teacher RUN --model vit-n/4 --budget 10m` on two
    cores with a supervised run that took as long (k-NN 69.0 %): 64.5 %, the untrained network's 28.2
    (docs/benchmarks.md).
    """
    return Recipe(
        config=Config(**labelled_views.small(image_size)), batch=128, lr=1e-3, lr_end=1e-5, warmup=0.05,
        weight_decay=0.05, clip=3.0, encoder={"distilled": True},
    )  # fmt: skip


class Method(protocols.Method):
    """Encoder with two tokens and a head for each; the teacher, an encoder and its classifier, is frozen."""

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config, self.classes = config, context.classes
        if encoder.pool != "token" or getattr(encoder, "dist_token", None) is None:
            raise ValueError(
                f"deit needs a class token that is the feature and a distillation token, and {encoder.name} "
                "is built without: choose --model deit-s/16, or a ViT with --model.distilled true and "
                "--model.pool token"
            )
        assert context.model is not None, "Needs.model sees to it"
        assert context.preprocess is not None
        self.encoder = encoder
        self.head = classifier(encoder.dim, context.classes)
        self.distilled = classifier(encoder.dim, context.classes)
        self.preprocess, self.theirs = context.preprocess, context.model.preprocess
        if self.preprocess.channels != self.theirs.channels:
            raise ValueError(
                f"the teacher {config.teacher} was made for {self.theirs.channels} channels, these images "
                f"have {self.preprocess.channels}: choose one that was made for such images"
            )
        self.teacher = context.model.encoder
        self.teacher_head = _classifier_of(context.model, context.classes, str(config.teacher))
        self.teacher.requires_grad_(False)
        self.teacher_head.requires_grad_(False)

    def train(self, mode: bool = True) -> "Method":
        """The teacher stays as it is used: statistics fixed, nothing dropped."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def _answers(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """The teacher's logits of our views, as it was taught to see them."""
        images = self.preprocess.translate(images, self.theirs)
        size = self.config.teacher_size or self.theirs.size
        if images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)
        return self.teacher_head(self.teacher(images).pooled).float()

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c = self.config
        images, targets, weights = labelled_views.examples(batch, len(self.classes), c)
        count = collectives.mean(weights.sum())
        teacher = self._answers(images)
        features = self.encoder(images)
        assert features.prefix is not None, "it has a distillation token"
        own = self.head(features.pooled).float()
        told = self.distilled(features.prefix[:, 1]).float()

        base = classification.soft_cross_entropy(own, targets, weights, count)
        if c.distillation == "hard":
            learned = classification.hard_distillation(told, teacher, weights, count)
        else:
            learned = classification.soft_distillation(told, teacher, c.temperature, weights, count)
            learned = learned / len(self.classes) if c.per_class else learned
        weight = WEIGHTS[c.distillation] if c.weight is None else c.weight

        wanted, said = targets.argmax(-1), teacher.argmax(-1)  # of a mixed image: the larger share's class
        both = classification.together(own.detach(), told.detach()).argmax(-1)
        metrics = {
            "accuracy": labelled_views.share(both == wanted, weights, count),
            "accuracy_teacher": labelled_views.share(said == wanted, weights, count),
            "agreement": labelled_views.share(told.detach().argmax(-1) == said, weights, count),
        }
        return StepOutput((1 - weight) * base + weight * learned, metrics)

    def extras(self) -> Extras:
        """Both heads: `classifier` reads the pooled feature, `distilled` the second of the prefix tokens."""
        heads = {"classifier": self.head, "distilled": self.distilled}
        tensors = {
            f"{n}.{part}": x.detach() for n, head in heads.items() for part, x in head.named_parameters()
        }
        return Extras(tensors, {"classes": list(self.classes)})

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "classifier")
        yield from param_groups.standard(self.distilled, "distilled")


def _classifier_of(model: Trained, classes: tuple[str, ...], name: str) -> nn.Linear:
    """The teacher's linear classifier with its rows in the order of our classes.

    Raises ValueError where it tells other classes apart, or reads other features than its encoder's.
    """
    weight, bias = model.extras.tensors["classifier.weight"], model.extras.tensors.get("classifier.bias")
    remedy = "train one on these images: omma pretrain IMAGES --method supervised"
    if len(weight) != len(classes):
        raise ValueError(
            f"the teacher {name} tells {len(weight)} classes apart, and these images have {len(classes)}: "
            f"{remedy}"
        )
    if weight.shape[1] != model.encoder.dim:
        raise ValueError(
            f"the classifier beside the teacher {name} reads {weight.shape[1]} numbers, its encoder gives "
            f"{model.encoder.dim}: the files do not belong together, copy them anew"
        )
    rows = torch.arange(len(classes))
    known = model.extras.facts.get("classes")
    if known is not None and tuple(known) != classes:
        if other := sorted(set(known) - set(classes)):
            raise ValueError(
                f"the teacher {name} knows a class {other[0]!r}, which these images lack: {remedy}"
            )
        if len(set(known)) < len(known):
            raise ValueError(
                f"classes of the teacher {name} share a name, and come in another order: {remedy}"
            )
        rows = torch.tensor([list(known).index(each) for each in classes])
    head = nn.Linear(weight.shape[1], len(classes), bias=bias is not None)
    with torch.no_grad():
        head.weight.copy_(weight[rows])
        if bias is not None:
            head.bias.copy_(bias[rows])
    return head
