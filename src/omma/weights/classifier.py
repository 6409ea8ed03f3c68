"""The classifier saved beside an encoder: logits of its features, and calibrated probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from omma.core.protocols import Extras, Features, Trained
from omma.losses.classification import mean_probabilities


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What is chosen on held-out images: how sure a classifier is."""

    temperature: float = 1.0  # logits are divided by it [Guo 2017, arXiv 1706.04599]; below 1 sharpens them
    thresholds: tuple[float, ...] | None = None  # with several labels an image: probability of each class
    images: int = 0  # that these were chosen on


class HeldOut(NamedTuple):
    """Answers for the images that a calibration was chosen on (evaluation/calibration.py: `abstention`)."""

    confidence: Float[Tensor, "n"]  # the first class's calibrated probability
    correct: Bool[Tensor, "n"]


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A linear layer on the encoder's pooled feature, with the names of its classes.

    logits = W f + b, with f the pooled feature; with `projection` f is that of CLIP, P f / |P f|. `distilled`
    is the second head of a DeiT, which reads the distillation token: probabilities are then the mean of both.
    """

    classes: tuple[str, ...]
    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, "k"] | None = None
    projection: Float[Tensor, "d e"] | None = None
    distilled: tuple[Float[Tensor, "k d"], Float[Tensor, "k"]] | None = None
    multi_label: bool = False
    calibration: Calibration = Calibration()
    held_out: HeldOut | None = None

    @classmethod
    def of(cls, model: Trained) -> "Classifier | None":
        """The model's classifier; None if it has none.

        Classes without names are numbered. Raises ValueError for tensors that do not fit each other.
        """
        tensors, facts = model.extras.tensors, model.extras.facts
        weight = tensors.get("classifier.weight")
        if weight is None:
            return None
        projection = tensors.get("classifier.projection")
        width = model.encoder.dim if projection is None else projection.shape[1]
        names = tuple(facts.get("classes") or map(str, range(len(weight))))
        if weight.ndim != 2 or weight.shape[1] != width or len(names) != len(weight):
            raise ValueError(
                f"the classifier is {tuple(weight.shape)} for {len(names)} classes and features of {width}: "
                "the files do not belong together, copy them again"
            )
        pair = (tensors.get("distilled.weight"), tensors.get("distilled.bias"))
        confidence, correct = tensors.get("held_out.confidence"), tensors.get("held_out.correct")
        return cls(
            classes=names,
            weight=weight,
            bias=tensors.get("classifier.bias"),
            projection=projection,
            distilled=pair if pair[0] is not None and pair[1] is not None else None,  # pyright: ignore
            multi_label=bool(facts.get("multi_label", False)),
            calibration=_calibration(facts.get("calibration", {})),
            held_out=None if confidence is None or correct is None else HeldOut(confidence, correct.bool()),
        )

    def extras(self) -> Extras:
        """The inverse of `of`: what is saved beside the encoder."""
        tensors = {"classifier.weight": self.weight}
        optional = {"classifier.bias": self.bias, "classifier.projection": self.projection}
        tensors |= {name: x for name, x in optional.items() if x is not None}
        if self.distilled is not None:
            tensors |= {"distilled.weight": self.distilled[0], "distilled.bias": self.distilled[1]}
        if self.held_out is not None:
            answers = self.held_out
            tensors |= {"held_out.confidence": answers.confidence, "held_out.correct": answers.correct.byte()}
        c = self.calibration
        calibration = {name: value for name, value in vars(c).items() if value is not None}
        facts: dict[str, Any] = {"classes": list(self.classes), "calibration": calibration}
        facts |= {"multi_label": True} if self.multi_label else {}
        return Extras({name: x.detach() for name, x in tensors.items()}, facts)

    def calibrated(self, **changes: Any) -> "Classifier":
        """The same with other values of `Calibration`."""
        return replace(self, calibration=replace(self.calibration, **changes))

    def logits(
        self, pooled: Float[Tensor, "b d"], prefix: Float[Tensor, "b p d"] | None = None
    ) -> Float[Tensor, "b k"]:
        """Logits in fp32, not divided by the temperature. prefix: tokens before the patches, for `distilled`.

        With a second head they are the logarithms of the mean of both heads' probabilities.
        """
        f = pooled.float()
        if self.projection is not None:
            f = F.normalize(f @ self.projection.to(f), dim=-1)
        first = F.linear(f, self.weight.to(f), None if self.bias is None else self.bias.to(f))
        if self.distilled is None:
            return first
        assert prefix is not None, "a model with two heads has a distillation token"
        second = F.linear(prefix[:, 1].float(), self.distilled[0].to(f), self.distilled[1].to(f))
        return mean_probabilities(first, second).clamp(min=torch.finfo(torch.float32).tiny).log()

    @property
    def plain(self) -> bool:
        """Is it a linear layer on the pooled feature and no more?"""
        return self.projection is None and self.distilled is None

    def probabilities(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Calibrated: they sum to 1 over the classes, or with several labels an image each lies in [0, 1]."""
        scaled = logits.float() / self.calibration.temperature
        return scaled.sigmoid() if self.multi_label else scaled.softmax(-1)

    def __call__(self, features: Features) -> Float[Tensor, "b k"]:
        """Calibrated probabilities of features."""
        return self.probabilities(self.logits(features.pooled, features.prefix))

    def order(self, classes: Sequence[str]) -> list[int]:
        """For each of these names its number here, or -1: data sets number their classes in their own way."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        return [numbers.get(name, -1) for name in classes]


def _calibration(facts: Mapping[str, Any]) -> Calibration:
    """As it was saved, in JSON's types."""
    known = {name: value for name, value in facts.items() if name in Calibration.__dataclass_fields__}
    if known.get("thresholds") is not None:
        known["thresholds"] = tuple(known["thresholds"])
    return Calibration(**known)
