"""The formats of `omma export`: one function each, which writes an encoder and reopens it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from omma.core.errors import need
from omma.core.protocols import Backbone, Preprocess
from omma.weights import source, store
from omma.weights.export import hf, timm_, traced
from omma.weights.export.check import Reopened

Writer = Callable[[Backbone, Preprocess, Path, dict[str, Any]], Reopened]


def _safetensors(encoder: Backbone, preprocess: Preprocess, at: Path, provenance: dict[str, Any]) -> Reopened:
    store.save(at, encoder, preprocess, provenance)
    read = source.load(at).encoder

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        features = read(images)
        return features.pooled, features.patches

    return Reopened(run, "any", ("read with omma.load; the parameters have timm's names",))


def _timm(encoder: Backbone, preprocess: Preprocess, at: Path, provenance: dict[str, Any]) -> Reopened:
    timm_.write(encoder, preprocess, at)
    return timm_.reopen(encoder, preprocess, at)


def _hf(encoder: Backbone, preprocess: Preprocess, at: Path, provenance: dict[str, Any]) -> Reopened:
    hf.write(encoder, preprocess, at)
    return hf.reopen(encoder, preprocess, at)


def _onnx(encoder: Backbone, preprocess: Preprocess, at: Path, provenance: dict[str, Any]) -> Reopened:
    return traced.reopen_onnx(encoder, preprocess, at, traced.write_onnx(encoder, preprocess, at))


def _torch(encoder: Backbone, preprocess: Preprocess, at: Path, provenance: dict[str, Any]) -> Reopened:
    return traced.reopen_torch(encoder, preprocess, at, traced.write_torch(encoder, preprocess, at))


class Format(NamedTuple):
    """How an encoder is written for another library."""

    name: str  # default name of the file or folder; a file must have its suffix
    limit: float  # largest difference of features, relative to the largest feature
    write: Writer
    packages: tuple[str, ...] = ()  # that write and read it
    extra: str = ""  # of omma, which brings them

    def need_packages(self) -> None:
        """Raise ValueError, which says how to install it, if a package is missing."""
        for package in self.packages:
            need(package, self.extra)


FORMATS: dict[str, Format] = {
    "safetensors": Format("safetensors", 1e-4, _safetensors),
    "timm": Format("timm", 1e-4, _timm, ("timm",), "timm"),
    "hf": Format("hf", 1e-4, _hf, ("transformers",), "hf"),
    "onnx": Format("model.onnx", 1e-3, _onnx, ("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "torch": Format("model.pt2", 1e-4, _torch),
}
