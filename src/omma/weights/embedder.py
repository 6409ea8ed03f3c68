"""A model's features as a step of scikit-learn: make_pipeline(Embedder(MODEL), LogisticRegression())."""

import copy
import math
import warnings
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from omma.core import device as devices
from omma.data.sources.pictures import pictures
from omma.weights.model import Model
from omma.weights.source import load


class Embedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Pooled features of images, float32 [n, d], by a trained network that stays as it is.

    model: whatever `omma.load` takes. X: images in any form that `Model.embed` takes (paths, PIL images, a
    batch [n, h, w, c], a data set), or, as scikit-learn's own image data are, a table [n, values] of
    flattened images. A table is read as `shape` (height, width or height, width, channels; None: the square,
    grey or RGB, of as many values), and its values from the lowest to the highest that `fit` saw as black to
    white.
    For images as such `fit` learns nothing.
    """

    def __init__(
        self,
        model: str | Path | Model | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        batch: int = 16,
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.shape = shape
        self.batch = batch
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the model; of a table, learn the range of its values. Raises ValueError."""
        if self.model is None:
            raise ValueError("model=None: give a run folder, a weights file, timm:NAME or a loaded Model")
        model = copy.deepcopy(self.model) if isinstance(self.model, Model) else load(self.model)
        self.model_ = model.to(devices.pick_device(self.device))
        self._n_features_out = self.model_.encoder.dim
        for name in ("n_features_in_", "feature_names_in_", "shape_"):
            self.__dict__.pop(name, None)  # of an earlier fit
        if _is_table(X):
            rows: Any = validate_data(self, X, dtype="numeric")
            self.shape_ = self.shape or _shape(rows.shape[1])
            if math.prod(self.shape_) != rows.shape[1]:
                raise ValueError(f"shape={self.shape_}: rows of {rows.shape[1]} values do not fit it")
            self.low_, self.high_ = float(rows.min()), float(rows.max())
        return self

    def transform(self, X: Any) -> Float[np.ndarray, "n d"]:
        """The features, one row for each image in order. Raises ValueError that names an unreadable image."""
        check_is_fitted(self, "model_")
        if hasattr(self, "shape_"):
            rows: Any = validate_data(self, X, dtype="numeric", reset=False)
            return self._embedded(self._unflattened(rows))
        if _is_table(X):
            raise ValueError("a table of flattened images: fit on one, too, or give images as such")
        return self._embedded(pictures(_listed(X)))

    def _embedded(self, images: Iterable[Any]) -> Float[np.ndarray, "n d"]:
        """Features of whole batches, the last one filled up, so that they do not depend on how many come."""
        rows, rest = [np.zeros((0, self._n_features_out), np.float32)], iter(images)
        while chunk := list(islice(rest, self.batch)):
            filled = chunk + chunk[-1:] * (self.batch - len(chunk))
            rows.append(self.model_.embed(filled, batch=self.batch)[: len(chunk)])
        return np.concatenate(rows)

    def _unflattened(self, rows: np.ndarray) -> UInt8[np.ndarray, "n h w c"]:
        span = (self.high_ - self.low_) or 1.0
        values = np.rint((rows.astype(np.float64) - self.low_) * (255 / span)).clip(0, 255).astype(np.uint8)
        height, width, *channels = self.shape_
        return values.reshape(len(rows), height, width, channels[0] if channels else 1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # features are float32
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


def _is_table(X: Any) -> bool:
    """Is it a table of numbers, an image in each row, as scikit-learn has them?"""
    if hasattr(X, "iloc") or hasattr(X, "__dataframe__"):  # of pandas or polars
        return len(getattr(X, "shape", ())) == 2 and not (
            X.shape[1] == 1 and X.to_numpy().dtype.kind in "OSU"
        )
    if hasattr(X, "toarray"):  # sparse: refused by validate_data
        return True
    if isinstance(X, np.ndarray):
        return X.ndim < 3 and X.dtype.kind not in "SU" and not (X.dtype.kind == "O" and X.ndim == 1)
    is_rows = isinstance(X, list | tuple) and len(X) > 0 and isinstance(X[0], list | tuple | float | int)
    like_array = hasattr(X, "__array__") and not isinstance(X, torch.Tensor | Image.Image)
    return is_rows or (like_array and np.asarray(X).ndim < 3)


def _listed(X: Any) -> Any:
    """A column of a table, as a list."""
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    return list(X.ravel()) if isinstance(X, np.ndarray) and X.ndim < 3 else X


def _shape(values: int) -> tuple[int, ...]:
    for channels in (1, 3):
        side = math.isqrt(values // channels)
        if channels * side * side == values:
            return side, side, channels
    warnings.warn(
        f"rows of {values} values are no square image: they are read as one line of grey pixels; give shape=",
        stacklevel=3,
    )
    return 1, values, 1
