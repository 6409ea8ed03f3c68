"""A frozen classifier that teaches the second head of a distillation token [Touvron 2020, arXiv 2012.12877].

hard = (CE(z_class, t) + CE(z_distilled, argmax z_teacher)) / 2                                 [eq. 3]
soft = (1 - l) CE(z_class, t) + l T^2 KL(softmax(z_teacher / T) || softmax(z_distilled / T))    [eq. 2]
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from omma.backbones.layers import frozen
from omma.core.checks import one_of
from omma.core.protocols import Backbone, Context, Trained
from omma.losses import classification

WEIGHTS = {"hard": 0.5, "soft": 0.1}  # of the distillation loss, in the paper
TEACHER = (
    "a teacher that classifies (train one: omma pretrain IMAGES --method supervised --model timm:regnety_016)"
)
TOKEN = {"distilled": "carry a distillation token"}  # option of the backbone, and what for


@dataclass(frozen=True, kw_only=True)
class Taught:
    """Options of a method that learns from a teacher; the defaults are the paper's."""

    teacher: str | None = None  # a model that classifies
    distillation: str = "hard"  # or "soft"
    weight: float | None = None  # of the distillation loss; None: .5 for hard, .1 for soft
    temperature: float = 3.0  # of the soft loss
    per_class: bool = True  # divide the soft loss by the number of classes, as in the published code
    teacher_size: int | None = None  # pixels of the teacher's input; None: those it was trained at

    def __post_init__(self) -> None:
        one_of("method.distillation", self.distillation, WEIGHTS)
        if self.weight is not None and not 0 <= self.weight <= 1:
            raise ValueError(f"method.weight={self.weight}: must lie in [0, 1] (the paper's: .5 or .1)")
        if self.temperature <= 0:
            raise ValueError(f"method.temperature={self.temperature}: must be above 0 (the paper's: 3)")
        if self.teacher_size is not None and self.teacher_size < 1:
            raise ValueError(f"method.teacher_size={self.teacher_size}: must be at least 1 pixel")


def require_token(method: str, encoder: Backbone) -> None:
    """Raise ValueError for a network without distillation token, or whose feature is not the class token."""
    if encoder.pool != "token" or getattr(encoder, "dist_token", None) is None:
        raise ValueError(
            f"{method} needs a distillation token and the class token as feature; {encoder.name} lacks them: "
            "choose --model deit-s/16, or a ViT with --model.distilled true and --model.pool token"
        )


def take(owner: Any, config: Taught, context: Context) -> None:
    """Give a method `teacher` and `teacher_head`, frozen. Raises ValueError for one that does not fit."""
    assert context.model is not None, "guaranteed by Needs.model"
    assert context.preprocess is not None
    frozen.require_channels(f"the teacher {config.teacher}", context.model, context.preprocess)
    owner.teacher = context.model.encoder
    owner.teacher_head = _classifier_of(context.model, context.classes, str(config.teacher))
    owner.teacher.requires_grad_(False)
    owner.teacher_head.requires_grad_(False)
    owner.prepared = (context.preprocess, context.model.preprocess)


@torch.no_grad()
def logits(owner: Any, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
    """The teacher's logits of the student's views, normalised and resized as the teacher was trained."""
    own, theirs = owner.prepared
    size = owner.config.teacher_size or theirs.size
    images = frozen.prepared(images, own, theirs, (size, size))
    return owner.teacher_head(owner.teacher(images).pooled).float()


def mixed_loss(
    config: Taught,
    supervised: Float[Tensor, ""],
    distilled: Float[Tensor, "b k"],
    teacher: Float[Tensor, "b k"],
    weights: Float[Tensor, "b"],
    count: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """The loss of the labels mixed with that of the distilled head's logits."""
    if config.distillation == "hard":
        distillation = classification.hard_distillation(distilled, teacher, weights, count)
    else:
        distillation = classification.soft_distillation(
            distilled, teacher, config.temperature, weights, count
        )
        distillation = distillation / teacher.shape[1] if config.per_class else distillation
    weight = WEIGHTS[config.distillation] if config.weight is None else config.weight
    return (1 - weight) * supervised + weight * distillation


def _classifier_of(model: Trained, classes: tuple[str, ...], name: str) -> nn.Linear:
    """The teacher's linear classifier with its rows in the order of `classes`.

    Raises ValueError if its classes differ, or if it does not fit its encoder's features.
    """
    weight, bias = model.extras.tensors["classifier.weight"], model.extras.tensors.get("classifier.bias")
    remedy = "train one on these images: omma pretrain IMAGES --method supervised"
    if len(weight) != len(classes):
        raise ValueError(
            f"the teacher {name} has {len(weight)} classes, and these images have {len(classes)}: {remedy}"
        )
    if weight.shape[1] != model.encoder.dim:
        raise ValueError(
            f"the classifier of the teacher {name} reads {weight.shape[1]} numbers, its encoder gives "
            f"{model.encoder.dim}: the files do not belong together, copy them again"
        )
    rows = torch.arange(len(classes))
    theirs = model.extras.facts.get("classes")
    if theirs is not None and tuple(theirs) != classes:
        if other := sorted(set(theirs) - set(classes)):
            raise ValueError(
                f"the teacher {name} has a class {other[0]!r}, which these images lack: {remedy}"
            )
        if len(set(theirs)) < len(theirs):
            raise ValueError(
                f"classes of the teacher {name} share a name and are ordered otherwise: {remedy}"
            )
        rows = torch.tensor([list(theirs).index(each) for each in classes])
    head = nn.Linear(weight.shape[1], len(classes), bias=bias is not None)
    with torch.no_grad():
        head.weight.copy_(weight[rows])
        if bias is not None:
            head.bias.copy_(bias[rows])
    return head
