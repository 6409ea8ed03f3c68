"""The formats of `omma export`: one function each, which writes an encoder and reopens it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from omma.core.errors import need
from omma.core.protocols import Backbone, Extras, Preprocess
from omma.weights import source, store
from omma.weights.classifier import Classifier
from omma.weights.export import hf, openvino_, timm_, traced
from omma.weights.export.check import Reopened, outputs


class Exporting(NamedTuple):
    """What is written."""

    encoder: Backbone
    preprocess: Preprocess
    provenance: dict[str, Any]
    extras: Extras
    classifier: Classifier | None


Writer = Callable[[Exporting, Path], Reopened]


def _safetensors(what: Exporting, at: Path) -> Reopened:
    store.save(at, what.encoder, what.preprocess, what.provenance, what.extras)
    read = source.load(at)
    classifier = Classifier.of(read)
    notes = ("read with omma.load; the parameters have timm's names",)
    return Reopened(lambda images: outputs(read.encoder(images), classifier), "any", notes)


def _timm(what: Exporting, at: Path) -> Reopened:
    timm_.write(what.encoder, what.preprocess, at, what.classifier)
    return timm_.reopen(what.encoder, what.preprocess, at, what.classifier)


def _hf(what: Exporting, at: Path) -> Reopened:
    hf.write(what.encoder, what.preprocess, at, what.classifier)
    return hf.reopen(what.encoder, what.preprocess, at, what.classifier)


def _onnx(what: Exporting, at: Path) -> Reopened:
    sizes = traced.write_onnx(what.encoder, what.preprocess, at, what.classifier)
    return traced.reopen_onnx(what.encoder, what.preprocess, at, sizes, what.classifier)


def _torch(what: Exporting, at: Path) -> Reopened:
    sizes = traced.write_torch(what.encoder, what.preprocess, at, what.classifier)
    return traced.reopen_torch(what.encoder, what.preprocess, at, sizes, what.classifier)


def _openvino(what: Exporting, at: Path) -> Reopened:
    sizes = openvino_.write(what.encoder, what.preprocess, at, what.classifier)
    return openvino_.reopen(what.encoder, what.preprocess, at, sizes, what.classifier)


class Format(NamedTuple):
    """How an encoder is written for another library."""

    name: str  # default name of the file or folder; a file must have its suffix
    limit: float  # largest difference of features, relative to the largest feature
    write: Writer
    packages: tuple[str, ...] = ()  # that write and read it
    extra: str = ""  # of omma, which brings them
    library: str = ""  # that a model card names; "": the format has no card

    def need_packages(self) -> None:
        """Raise ValueError, which says how to install it, if a package is missing."""
        for package in self.packages:
            need(package, self.extra)


FORMATS: dict[str, Format] = {
    "safetensors": Format("safetensors", 1e-4, _safetensors),
    "timm": Format("timm", 1e-4, _timm, ("timm",), "timm", "timm"),
    "hf": Format("hf", 1e-4, _hf, ("transformers",), "hf", "transformers"),
    "onnx": Format("model.onnx", 1e-3, _onnx, ("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "openvino": Format("model.xml", 1e-3, _openvino, ("openvino", "onnx", "onnxscript"), "openvino"),
    "torch": Format("model.pt2", 1e-4, _torch),
}
