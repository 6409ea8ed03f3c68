"""The images that a run's report shows, and their features, computed once for all its sections."""

from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from omma.core import words
from omma.core.progress import StageProgress
from omma.core.protocols import Images
from omma.data.batches.preprocess import load_batch
from omma.features.extract import FeatureSet, extract, with_channels
from omma.weights import Model

SIZE = 2000  # images that neighbours and duplicates are searched in
SHOWN = 8  # images that maps and reconstructions are drawn of


@dataclass(frozen=True)
class Gallery:
    """A seeded sample of a collection."""

    model: Model
    whole: Images
    seed: int
    progress: StageProgress | None = None

    @cached_property
    def images(self) -> Images:
        """The sample, in order."""
        rows = np.sort(np.random.default_rng(self.seed).permutation(len(self.whole))[:SIZE])
        return with_channels(self.whole, self.model.preprocess.channels).subset(rows)

    @cached_property
    def features(self) -> FeatureSet:
        """Of the sample. Raises ValueError if none can be read."""
        progress = partial(self.progress, "features for the report") if self.progress else None
        return extract(self.model.encoder, self.images, self.model.preprocess, progress=progress)

    @cached_property
    def shown(self) -> tuple[Float[Tensor, "n c s s"], Int[np.ndarray, "n"]]:
        """Inputs of the few images that are drawn, and their rows in the sample."""
        rows = np.random.default_rng(self.seed + 1).permutation(len(self.images))[: 4 * SHOWN]
        pixels, good = self.read(rows)  # some may be damaged
        if not good.any():
            raise ValueError(f"none of a sample of {words.count(len(rows), 'image')} can be read")
        return pixels[torch.from_numpy(good)][:SHOWN], rows[good][:SHOWN]

    def read(self, rows: Int[np.ndarray, "n"]) -> tuple[Tensor, Bool[np.ndarray, "n"]]:
        """The network's inputs, as for features, and which of them could be read."""
        return load_batch(self.images, rows, self.model.preprocess)[:2]

    def paths(self, rows: Int[np.ndarray, "n"]) -> tuple[str, ...]:
        """Names of the images."""
        return tuple(self.images.path(int(row)) for row in rows)
