"""A trained encoder for use: images in, feature vectors out, with its provenance."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from omma import backbones
from omma.core import notebook
from omma.core.protocols import NO_EXTRAS, Backbone, Extras, Features, Preprocess
from omma.data.sources import clips
from omma.data.sources.clips import Clips
from omma.weights.classifier import Classifier
from omma.weights.digest import digest
from omma.weights.pictures import Pictures, Transform


class Classified(NamedTuple):
    """What a classifier makes of images."""

    classes: tuple[str, ...]
    probabilities: Float[np.ndarray, "n k"]  # calibrated, float32

    @property
    def names(self) -> list[str]:
        """The likeliest class of each image."""
        return [self.classes[c] for c in self.probabilities.argmax(1)]


class Model(nn.Module):
    """An encoder, its preprocessing and its provenance.

    `model.embed(["a.jpg", array])` prepares the images itself; `model(tensor)` takes what
    `model.preprocess(images)` returns. `extras` holds what the method keeps beside the encoder, such as a
    classifier.
    The model is in evaluation mode; `model.to("cuda")` works as for any module.
    """

    def __init__(
        self,
        encoder: Backbone,
        preprocess: Preprocess,
        provenance: Mapping[str, Any] | None = None,
        extras: Extras = NO_EXTRAS,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.preprocess = Transform.of(preprocess)
        self.provenance = dict(provenance or {})
        self.extras = Extras(dict(extras.tensors), dict(extras.facts))  # can be pickled
        self.eval()

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the weights at the time of the first access."""
        return digest(self.encoder)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Features:
        """Features of normalised images."""
        return self.encoder(self._checked(images))

    def embed(self, images: Pictures, batch: int = 64, threads: int = 4) -> Float[np.ndarray, "n d"]:
        """Pooled features, float32, one row for each image in order.

        images: one image, a list or generator of them, or an opened collection. An image is a path, the
        bytes of a file, a PIL image (EXIF orientation is applied), an array [h, w] or [h, w, c], or a tensor
        [c, h, w]; arrays [n, h, w, c] and tensors [n, c, h, w] are batches. Arrays and tensors hold uint8,
        raw values, or floats in [0, 1].
        Raises ValueError that names the first image that cannot be read. For whole folders use `omma embed`,
        which skips and lists such images, and decodes while the network computes. A collection of sounds by
        clip has a row for each clip, the mean over its tiles.
        """
        if isinstance(images, Clips):
            tiles, owner = clips.tiles(images)
            return clips.means(self.embed(tiles, batch, threads), owner)
        first = next(self.encoder.parameters())
        rows = [np.zeros((0, self.encoder.dim), np.float32)]
        for prepared in self.preprocess.batches(images, batch, threads):
            with torch.inference_mode():
                pooled = self(prepared.to(first.device, first.dtype)).pooled
            rows.append(pooled.float().cpu().numpy())
        return np.concatenate(rows)

    @property
    def classifier(self) -> Classifier | None:
        """The classifier saved beside the encoder, or None. Raises ValueError if it does not fit."""
        return Classifier.of(self)

    def classify(self, images: Pictures, batch: int = 64, threads: int = 4) -> "Classified":
        """Calibrated probabilities of the classes, one row for each image in order.

        images: as for `embed`, and so are errors; ValueError, too, for a model without a classifier.
        """
        if isinstance(images, Clips):
            tiles, owner = clips.tiles(images)
            answered = self.classify(tiles, batch, threads)
            return answered._replace(probabilities=clips.means(answered.probabilities, owner))
        classifier = self.classifier
        if classifier is None:
            raise ValueError("this model has no classifier: omma.finetune makes one from labelled images")
        first = next(self.encoder.parameters())
        rows = [np.zeros((0, len(classifier.classes)), np.float32)]
        for prepared in self.preprocess.batches(images, batch, threads):
            with torch.inference_mode():
                probabilities = classifier(self(prepared.to(first.device, first.dtype)))
            rows.append(probabilities.cpu().numpy())
        return Classified(classifier.classes, np.concatenate(rows))

    @torch.inference_mode()
    def attention(
        self, images: Float[Tensor, "b c h w"] | Pictures, layers: Sequence[int] = (-1,)
    ) -> list[Float[Tensor, "b heads n m"]]:
        """Attention weights of the given layers (`Backbone.attention`).

        images: a float tensor [b, c, h, w] of prepared images, as for `forward`, or anything else that
        `embed` takes. Raises NoAttention for a network without attention, ValueError for an unknown layer or
        a bad image.
        """
        first = next(self.encoder.parameters())
        prepared = isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point()
        tensor = images if prepared else self.preprocess(images)
        assert isinstance(tensor, Tensor)
        return self.encoder.attention(self._checked(tensor.to(first.device, first.dtype)), layers)

    def untrained(self, seed: int = 0) -> "Model":
        """The same architecture and preprocessing with new random weights, as a baseline."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoder = backbones.build(**self.encoder.spec())
        return Model(encoder, self.preprocess, {"untrained": True, "seed": seed})

    def _repr_html_(self) -> str:
        """What it is and where it is from, for a notebook."""
        size, described = self.preprocess.size, dict(self.provenance)
        network = f"{self.encoder.name} at {size} px, {self.encoder.channels} channels"
        classes = self.extras.facts.get("classes", ())
        return notebook.facts(
            "Model",
            {"network": network, "features": self.encoder.dim, "digest": self.digest, "classes": classes}
            | described,
        )

    def _checked(self, images: Tensor) -> Tensor:
        """Prepared images, in the precision of the weights."""
        channels = self.encoder.channels
        prepared = isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point()
        if not prepared or images.shape[1] != channels:
            what = (
                f"{images.dtype} {list(images.shape)}"
                if isinstance(images, Tensor)
                else type(images).__name__
            )
            raise ValueError(
                f"the model takes prepared images, floats [b, {channels}, h, w], not {what}: "
                "model.preprocess(images) makes them, model.embed(images) takes images as they are"
            )
        return images.to(next(self.encoder.parameters()).dtype)
