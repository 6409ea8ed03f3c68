"""A trained encoder for use: images in, feature vectors out, with its provenance."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from omma import backbones
from omma.core.protocols import NO_EXTRAS, Backbone, BadImage, Extras, Features, Images, Preprocess
from omma.data.batches.preprocess import load_batch
from omma.data.sources.decode import as_channels, as_values, decode, pillow_values
from omma.weights.digest import digest

Picture = str | Path | np.ndarray | Image.Image


class Model(nn.Module):
    """An encoder, its preprocessing and its provenance.

    `model.embed(["a.jpg", array])` prepares the images itself; `model(tensor)` takes images prepared as
    `model.preprocess` describes. `extras` holds what the method keeps beside the encoder, such as a
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
        self.preprocess = preprocess
        self.provenance = dict(provenance or {})
        self.extras = extras
        self.eval()

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the weights at the time of the first access."""
        return digest(self.encoder)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Features:
        """Features of normalised images."""
        return self.encoder(images)

    def embed(
        self, images: Images | Sequence[Picture], batch: int = 64, threads: int = 4
    ) -> Float[np.ndarray, "n d"]:
        """Pooled features, float32, one row for each image in order.

        images: paths, arrays [h, w] or [h, w, c] (uint8, or raw values), PIL images, or an opened collection.
        Raises ValueError that names the first image that cannot be read. For whole folders use `omma embed`,
        which skips and lists such images, and decodes while the network computes.
        """
        if isinstance(images, str | Path | np.ndarray | Image.Image):
            raise ValueError("embed takes a list of images: model.embed([image])")
        collection = images if isinstance(images, Images) else _PictureList(images, self.preprocess.channels)
        first = next(self.encoder.parameters())
        rows = [np.zeros((0, self.encoder.dim), np.float32)]
        for start in range(0, len(collection), batch):
            indices = np.arange(start, min(start + batch, len(collection)))
            tensor, _, bad = load_batch(collection, indices, self.preprocess, threads)
            _raise_if_bad(collection, bad)
            with torch.inference_mode():
                pooled = self(tensor.to(first.device, first.dtype)).pooled
            rows.append(pooled.float().cpu().numpy())
        return np.concatenate(rows)

    @torch.inference_mode()
    def attention(
        self, images: Float[Tensor, "b c h w"] | Sequence[Picture], layers: Sequence[int] = (-1,)
    ) -> list[Float[Tensor, "b heads n m"]]:
        """Attention weights of the given layers (`Backbone.attention`), for normalised images or pictures.

        Raises NoAttention for a network without attention, ValueError for an unknown layer or a bad image.
        """
        first = next(self.encoder.parameters())
        if not isinstance(images, Tensor):
            collection = _PictureList(images, self.preprocess.channels)
            images, _, bad = load_batch(collection, np.arange(len(collection)), self.preprocess, 4)
            _raise_if_bad(collection, bad)
        return self.encoder.attention(images.to(first.device, first.dtype), layers)

    def untrained(self, seed: int = 0) -> "Model":
        """The same architecture and preprocessing with new random weights, as a baseline."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoder = backbones.build(**self.encoder.spec())
        return Model(encoder, self.preprocess, {"untrained": True, "seed": seed})


def _raise_if_bad(images: Images, bad: Sequence[tuple[int, str]]) -> None:
    if bad:
        index, reason = bad[0]
        raise ValueError(f"{images.path(index)}: {reason}; leave it out or replace it")


class _PictureList:
    """A list of pictures with the interface of `Images`."""

    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    splits: np.ndarray | None = None

    def __init__(self, pictures: Sequence[Picture], channels: int) -> None:
        self.pictures, self.channels = list(pictures), channels

    def __len__(self) -> int:
        return len(self.pictures)

    def path(self, i: int) -> str:
        picture = self.pictures[i]
        return str(picture) if isinstance(picture, str | Path) else f"image {i} of the list"

    def read(self, i: int, at_least: int | None = None) -> np.ndarray:
        picture = self.pictures[i]
        if isinstance(picture, str | Path):
            try:
                data = Path(picture).read_bytes()
            except OSError as error:
                raise BadImage(error.strerror or "cannot be read") from error
            return decode(data, channels=self.channels, at_least=at_least, name=str(picture))
        if isinstance(picture, Image.Image):
            picture = pillow_values(picture)
        array = picture[:, :, None] if picture.ndim == 2 else picture
        if array.ndim != 3:
            raise BadImage(f"array of shape {picture.shape}, expected [height, width, {self.channels}]")
        return as_channels(as_values(array), self.channels)

    def subset(self, indices: np.ndarray) -> "_PictureList":
        return _PictureList([self.pictures[i] for i in indices], self.channels)
