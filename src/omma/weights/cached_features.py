"""Vectors of a collection by a model, cached by the content of both."""

from pathlib import Path

import torch

from omma.core.caches import features_folder
from omma.core.progress import Progress
from omma.core.protocols import Images
from omma.features.extract import FeatureSet, extract
from omma.weights.model import Model


def cached_features(
    model: Model,
    images: Images,
    device: torch.device,
    precision: torch.dtype,
    *,
    source: str | Path | None = None,
    progress: Progress | None = None,
) -> FeatureSet:
    """Pooled features of all images that can be read; source: what names the model, whose cache is used."""
    return extract(
        model.encoder,
        images,
        model.preprocess,
        device,
        precision,
        cache=None if source is None else features_folder(source),
        model_digest=model.digest,
        progress=progress,
    )
