"""Nearest images of an index, as rows of JSON."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from omma.retrieval.store import Index
from omma.serving.refusals import Refused


class Lookup:
    """An index of the served model's vectors. Its images' names are answered, never their files."""

    def __init__(self, path: str | Path, digest: str, name: str, device: torch.device) -> None:
        self.index, self.device = Index.open(path), device
        self.index.model.require(digest, name, path)

    def __call__(self, vectors: list[np.ndarray], k: int, where: str | None) -> list[list[dict[str, Any]]]:
        """For each vector its k nearest rows: cosine similarity and columns. Raises Refused (400)."""
        try:
            found = self.index.search(np.stack(vectors), k, where, self.device)
        except ValueError as error:  # of the condition
            raise Refused(400, str(error).replace("--where", "where")) from None
        return [
            [
                {**row, "similarity": float(similarity)}
                for row, similarity in zip(self._rows(rows), similarities)
            ]
            for similarities, rows in zip(found.similarities, found.indices)
        ]

    def _rows(self, rows: np.ndarray) -> list[dict[str, Any]]:
        columns = list(self.index.columns)
        table = self.index.table.select(columns).take(pa.array(rows, pa.int64()))
        return [{name: _plain(value) for name, value in row.items()} for row in table.to_pylist()]


def _plain(value: Any) -> Any:
    """A value that JSON has: no NaN, and what it has no type for as text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)
