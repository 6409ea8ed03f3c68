"""The number that an explanation explains: the logit of a class, or the likeness to the whole image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from omma.backbones.layers import text
from omma.core.protocols import Features
from omma.evaluation.job import text_reader
from omma.weights import Model
from omma.weights.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Target:
    """A score for each of n images; `names` says which, for people.

    With a classifier, logit `classes[i]` of image i (for CLIP's texts a cosine, since both are of unit
    length). Without, the cosine of the pooled feature to `own[i]`, that of the whole image; then nothing
    scores higher than the image itself.
    """

    names: tuple[str, ...]
    unit: str  # "logit" or "cosine"
    classes: Int[Tensor, "n"] | None = None
    classifier: Classifier | None = None
    own: Float[Tensor, "n d"] | None = None

    def __call__(self, features: Features, which: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Scores of some features; which: the number of the image that each is of."""
        if self.classifier is None:
            assert self.own is not None, "one of the two is given"
            return F.cosine_similarity(features.pooled.float(), self.own[which], dim=-1)
        assert self.classes is not None, "a classifier comes with the classes that are asked for"
        logits = self.classifier.logits(features.pooled, features.prefix)
        return logits.gather(1, self.classes[which][:, None])[:, 0]

    def share(self, features: Features, which: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The same where 1 is the most: the class's calibrated probability, or the cosine."""
        if self.unit == "cosine" or self.classifier is None or self.classes is None:
            return self(features, which)
        return self.classifier(features).gather(1, self.classes[which][:, None])[:, 0]

    def linear(self, features: Features, which: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The same where the gradient at the image itself is wanted, which is 0 for the cosine, at its peak.

        The pooled feature's component along the image's own stands in for it [Stylianou 2019, 1901.00536].
        """
        if self.own is None:
            return self(features, which)
        return (features.pooled.float() * F.normalize(self.own[which], dim=-1)).sum(-1)

    def for_model(self, model: Model, pixels: Float[Tensor, "n c h w"]) -> "Target":
        """The same question to another model of the same classes."""
        if self.own is not None:
            return replace(self, own=pooled(model, pixels))
        return self if self.unit == "cosine" else replace(self, classifier=model.classifier)

    def only(self, rows: Sequence[int]) -> "Target":
        """The same for some of the images."""
        chosen = list(rows)
        return replace(
            self,
            names=tuple(self.names[i] for i in chosen),
            classes=None if self.classes is None else self.classes[chosen],
            own=None if self.own is None else self.own[chosen],
        )


def choose(
    model: Model, pixels: Float[Tensor, "n c h w"], class_name: str | None = None
) -> tuple[Target, tuple[str, ...]]:
    """What is explained, and what the model's classifier answers to each image, in words; () without one.

    class_name: a class of the model's classifier, or without one words for its text tower; without it, each
    image's likeliest class. Raises ValueError for a class that the model does not have.
    """
    classifier = model.classifier
    if classifier is None and class_name is not None:
        return _text(model, class_name, len(pixels), pixels.device), ()
    if classifier is None:
        name = "likeness to the whole image"
        return Target(names=(name,) * len(pixels), unit="cosine", own=pooled(model, pixels)), ()
    rows = []
    with torch.no_grad():
        for part in pixels.split(16):
            features = model.encoder(part)
            rows.append(classifier.logits(features.pooled, features.prefix))
    logits = torch.cat(rows)
    classes = logits.argmax(1)
    if class_name is not None:
        classes = torch.full_like(classes, number(classifier.classes, class_name))
    names = tuple(classifier.classes[c] for c in classes.tolist())
    likeliest, numbers = classifier.probabilities(logits).max(1)
    answers = zip((classifier.classes[c] for c in numbers.tolist()), likeliest.tolist())
    target = Target(names=names, unit="logit", classes=classes, classifier=classifier)
    return target, tuple(f"{name} {probability:.2f}" for name, probability in answers)


def _text(model: Model, words: str, n: int, device: torch.device) -> Target:
    """The cosine to a text, by the model's text tower; ValueError for a model that has none."""
    if text.TABLE not in model.extras.tensors:
        raise ValueError(
            f"--class {words}: the model has neither classifier nor text tower: leave it out, and each "
            "image's likeness to itself is explained, or train a classifier: omma finetune MODEL LABELLED"
        )
    reader = text_reader(model, "the model")
    weight = torch.from_numpy(reader.vectors([words], device)).to(device)
    classifier = Classifier(classes=(words,), weight=weight, projection=reader.paired.projection.T.to(device))
    classes = torch.zeros(n, dtype=torch.int64, device=device)
    return Target(names=(words,) * n, unit="cosine", classes=classes, classifier=classifier)


def number(classes: Sequence[str], name: str) -> int:
    """The number of the class of this name, or of the only one that contains it. Raises ValueError."""
    if name in classes:
        return list(classes).index(name)
    found = [i for i, each in enumerate(classes) if name.lower() in each.lower()]
    if len(found) == 1:
        return found[0]
    some = ", ".join(classes[i] for i in (found or range(len(classes)))[:5])
    which = "several classes contain it" if found else "the model has no such class"
    raise ValueError(f"--class {name}: {which}: choose one, such as {some}")


@torch.no_grad()
def pooled(model: Model, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """Pooled features in fp32."""
    return torch.cat([model.encoder(part).pooled.float() for part in pixels.split(16)])
