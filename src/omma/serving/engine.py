"""The model behind the server: bytes to a network's input, and batches whose size does not change answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma.core.device import to_device
from omma.core.protocols import Backbone, BadImage, Preprocess
from omma.data.batches.preprocess import load_batch, shorter_side
from omma.data.sources.decode import decode
from omma.data.sources.decode_pillow import at_most
from omma.data.sources.values import value_ranges
from omma.evaluation.calibration import Limit
from omma.features.extract import batch_size, prepare
from omma.weights import Model
from omma.weights.classifier import Classifier

LONE = 64  # images a forward pass at most, where nothing else is asked for


class Answer(NamedTuple):
    """What the model makes of one image."""

    vector: Float[np.ndarray, "d"]  # the pooled feature, float32
    probabilities: Float[np.ndarray, "k"] | None  # calibrated, float32; None without a classifier


class _Uploaded:
    """One uploaded file as a collection of one image, as `omma embed` reads it."""

    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    splits: np.ndarray | None = None

    def __init__(self, data: bytes, preprocess: Preprocess, pixels: int) -> None:
        self.data, self.channels, self.pixels = data, preprocess.channels, pixels
        self.side = shorter_side(preprocess)
        self.ranges: dict[str, tuple[float, float]] = {}

    def __len__(self) -> int:
        return 1

    def path(self, i: int) -> str:
        return "image"

    def read(self, i: int, at_least: int | None = None) -> np.ndarray:
        image = decode(self.data, None, at_least)
        height, width, found = image.shape
        if self.side**2 * max(height, width) > self.pixels * min(height, width):
            raise BadImage(f"{width} x {height} pixels, too narrow to be resized: cut it into smaller ones")
        if found != self.channels and {found, self.channels} != {1, 3}:
            raise BadImage(f"{found} channels, where the model takes {self.channels}")
        if image.dtype == np.float32:
            self.ranges = value_ranges([image])
        return image

    def subset(self, indices: np.ndarray) -> "_Uploaded":
        return self


def network_input(data: bytes, preprocess: Preprocess, pixels: int) -> Float[Tensor, "c s s"]:
    """The network's input for the bytes of one file.

    Raises BadImage; before decoding if the file claims more pixels than these.
    """
    with at_most(pixels):
        tensor, _, bad = load_batch(_Uploaded(data, preprocess, pixels), np.zeros(1, int), preprocess)
    if bad:
        raise BadImage(bad[0][1])
    return tensor[0]


@dataclass(frozen=True)
class Engine:
    """A prepared model. `sizes`: of batches; smaller ones are filled up, so that answers stay the same."""

    model: Model  # as loaded, on the CPU in fp32
    name: str
    classifier: Classifier | None
    network: Backbone
    device: torch.device
    precision: torch.dtype
    unsure: Limit  # below which probability a classifier abstains
    sizes: tuple[int, ...]
    same: bool = False  # are answers those of `omma embed` and `omma predict`, bit for bit?
    notes: tuple[str, ...] = ()  # where they are not, or cost more to be so

    @classmethod
    def of(
        cls,
        model: Model,
        name: str,
        device: torch.device,
        precision: torch.dtype,
        unsure: Limit,
        most: int | None = None,
        exact: bool = True,
    ) -> "Engine":
        """Prepare the model, and find the sizes of batches, `most` at most, that do not change its answers.

        exact: False takes batches as they come, which is quicker where few images come at a time.
        """
        network = prepare(model.encoder, device, precision)
        whole = batch_size(model.preprocess, device)
        most = min(whole, LONE) if most is None else most
        if most < 1:
            raise ValueError(f"max-batch={most}: must be at least 1")
        engine = cls(model, name, model.classifier, network, device, precision, unsure, ())
        most = min(most, whole)
        if not exact:
            note = "batches as they come (--no-exact): an answer's last digits depend on other requests"
            return replace(engine, sizes=tuple(range(1, most + 1)), notes=(note,))
        if sizes := engine._steady_sizes(whole, most):
            note = (
                f"batches are filled up to {sizes[0]} images, so that answers are those of omma predict and "
                "embed, bit for bit: --no-exact is quicker where few images come at a time"
            )
            return replace(engine, sizes=sizes, same=True, notes=(note,) if sizes[0] > 1 else ())
        note = (
            f"the commands' batches of {whole} images have other last bits on this device than batches of "
            f"{most}: --max-batch {whole} gives the same, slowly where few images come at a time"
        )
        return replace(engine, sizes=(most,), notes=(note,))

    @property
    def most(self) -> int:
        """Images in the largest batch."""
        return self.sizes[-1]

    def __call__(self, images: Sequence[Float[Tensor, "c s s"]]) -> list[Answer]:
        """Answers for at most `most` images; the same whatever stands beside them, and however many."""
        size = next(size for size in self.sizes if size >= len(images))
        batch = images[0].new_zeros(size, *images[0].shape)
        torch.stack(list(images), out=batch[: len(images)])
        vectors, probabilities = self._forward(batch)
        rows = [None] * len(images) if probabilities is None else probabilities
        return [Answer(vector, row) for vector, row in zip(vectors, rows)][: len(images)]

    def _forward(self, batch: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Vectors and probabilities, as `features.extract.stream` computes them.

        The classifier, whose products are small, always sees as many rows as a command's batch has.
        """
        with torch.inference_mode():
            features = self.network(to_device(batch, self.device, self.precision))
            vectors = features.pooled.float().cpu().numpy()
            if self.classifier is None:
                return vectors, None
            rows = batch_size(self.model.preprocess, self.device) - len(batch)
            pooled, prefix = _filled(features.pooled, rows), features.prefix
            prefix = None if prefix is None else _filled(prefix, rows)
            probabilities = self.classifier.probabilities(self.classifier.logits(pooled, prefix))
            return vectors, probabilities[: len(batch)].float().cpu().numpy()

    def _steady_sizes(self, whole: int, most: int) -> tuple[int, ...]:
        """Powers of two, and `most`, whose batches give the bits of one of `whole` images, as commands use.

        Products are summed in an order that depends on the batch's size, not on its content: noise shows it.
        """
        p = self.model.preprocess
        noise = torch.randn(whole, p.channels, p.size, p.size, generator=torch.Generator().manual_seed(0))
        expected = self._forward(noise)
        powers = [2**n for n in range(most.bit_length()) if 2**n < most]
        return tuple(size for size in (*powers, most) if self._agrees(expected, noise[:size]))

    def _agrees(self, expected: tuple[np.ndarray, np.ndarray | None], images: Tensor) -> bool:
        found = self._forward(images)
        pairs = zip(expected, found)
        return all(a is None or (b is not None and np.array_equal(a[: len(b)], b)) for a, b in pairs)


def _filled(x: Tensor, rows: int) -> Tensor:
    """With so many more rows of zeros."""
    return x if rows <= 0 else torch.cat([x, x.new_zeros(rows, *x.shape[1:])])
