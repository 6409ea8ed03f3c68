"""`omma export`: a trained encoder for other libraries, read back by them and compared before it is kept."""

import copy
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma import weights
from omma.core.protocols import Backbone, Images, Preprocess
from omma.data.batches.preprocess import load_batch
from omma.data.sources import collection
from omma.features.extract import with_channels
from omma.weights import Model
from omma.weights.export import hf, timm_, traced
from omma.weights.export.check import Reopened, compare

Format = Literal["safetensors", "timm", "hf", "onnx", "torch"]
IMAGES = 8  # that are compared, at most


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its features are from omma's."""

    path: Path  # a folder, or for onnx and torch a file
    format: Format
    files: tuple[str, ...]  # names of those in the folder, or of the file and what belongs to it
    difference: float  # the largest, absolute, of pooled and patch features
    scale: float  # the largest feature, absolute
    images: int  # real ones that were compared
    sizes: tuple[tuple[int, int], ...]  # height and width that they were compared at, in pixels
    notes: tuple[str, ...] = field(default=(), repr=False)  # what its user must know

    @property
    def compared(self) -> str:
        """What the difference was taken on, in words."""
        sizes = " and ".join(f"{height}x{width}" for height, width in self.sizes)
        return f"compared on {self.images} image{'s' * (self.images != 1)} at {sizes} px"


def export(
    model: str | Path | Model,
    format: Format,
    out: str | Path | None = None,
    images: str | Path | Images | None = None,
    *,
    allow_partial: bool = False,
) -> Exported:
    """Write an encoder as others read it, have them read it, and keep it only if it computes the same.

    format: "safetensors" (a folder: model.safetensors, model.json), "timm" (a folder for
    `timm.create_model("local-dir:FOLDER", pretrained=True)`), "hf" (a folder for transformers' AutoModel),
    "onnx" (a file for onnxruntime: "images" in, "pooled" and "patches" out), "torch" (a .pt2 file for
    torch.export.load). out: by default in the run folder. images: up to eight are compared; by default
    those that the model was trained on. allow_partial: as in `omma.load`.

    `out` appears when all is done; a file there is replaced, a folder that holds anything is not. Raises
    ValueError in one line: an unknown format, a network that the other library does not have, features that
    differ by more than 1e-4 of the largest (ONNX: 1e-3), no images to compare.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown: choose {', '.join(FORMATS)}")
    kind = FORMATS[format]
    out = _default(model, kind) if out is None else Path(out)
    if not out.name or out.is_symlink():  # what it makes stands beside it first
        out = out.resolve()
    _suits(out, format, kind)
    loaded = model if isinstance(model, Model) else weights.load(model, allow_partial=allow_partial)
    encoder = copy.deepcopy(loaded.encoder).cpu().float().eval()
    preprocess = loaded.preprocess
    pictures = with_channels(_images(loaded, images), preprocess.channels)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"{out} cannot be written ({why}): choose another place with --out") from error
    try:
        written = place / out.name  # under its own name: a file may name one that belongs to it
        reopened = kind.write(encoder, preprocess, written, loaded.provenance)
        found = compare(encoder, reopened, _batches(encoder, pictures, preprocess, reopened))
        if not found.within(kind.limit):
            raise ValueError(
                f"{encoder.name} as {format}: features differ by {found.difference:.2g} of "
                f"{found.scale:.2g}, more than {kind.limit:g} of it: not written; try another format"
            )
        files = _move(place, out)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return Exported(
        path=out,
        format=format,
        files=files,
        difference=found.difference,
        scale=found.scale,
        images=found.images,
        sizes=found.sizes,
        notes=reopened.notes,
    )


# ---------------------------------------------------------------- one function a format
Writer = Callable[[Backbone, Preprocess, Path, dict[str, Any]], Reopened]


def _safetensors(encoder: Backbone, preprocess: Preprocess, at: Path, provenance: dict[str, Any]) -> Reopened:
    weights.save(at, encoder, preprocess, provenance)
    read = weights.load(at).encoder

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


class Kind(NamedTuple):
    """What a format is."""

    name: str  # of the file or folder where none is given; a file's suffix is required
    limit: float  # difference of features, relative to the largest
    write: Writer


FORMATS: dict[str, Kind] = {
    "safetensors": Kind("safetensors", 1e-4, _safetensors),
    "timm": Kind("timm", 1e-4, _timm),
    "hf": Kind("hf", 1e-4, _hf),
    "onnx": Kind("model.onnx", 1e-3, _onnx),
    "torch": Kind("model.pt2", 1e-4, _torch),
}


# ---------------------------------------------------------------- images
def _images(model: Model, images: str | Path | Images | None) -> Images:
    """Those given, or those that the model was trained on."""
    if images is not None:
        return images if isinstance(images, Images) else collection.open_images(images)
    source = model.provenance.get("images")
    if not isinstance(source, str | Path) or not (Path(source).exists() or "://" in str(source)):
        said = f" ({source} is not there)" if source else ""
        raise ValueError(f"the model's own images are unknown{said}: give some with --images to compare on")
    return collection.open_images(source)


def _batches(
    encoder: Backbone, images: Images, preprocess: Preprocess, reopened: Reopened
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Real images: all at the model's size, one alone, and three of another shape where sizes are free."""
    usual = _readable(images, preprocess, IMAGES)
    yield usual
    yield usual[:1]
    if reopened.sizes != "fixed":
        size, patch = preprocess.size, encoder.patch
        other = _readable(images, replace(preprocess, size=size + 2 * patch), 3)
        odd = 1 if reopened.sizes == "any" else 0
        yield other[:, :, : size + patch, : size + 2 * patch - odd]


def _readable(images: Images, preprocess: Preprocess, count: int) -> Float[Tensor, "b c s s"]:
    """Up to `count` images from everywhere in the collection; others take the place of unreadable ones."""
    spread = np.unique(np.linspace(0, len(images) - 1, 4 * count).astype(int))
    rows, reasons = [], []
    for i in np.concatenate([spread[k::4] for k in range(4)]):
        batch, good, bad = load_batch(images, np.array([i]), preprocess)
        rows += [batch] if good.all() else []
        reasons += [f"{images.path(int(i))}: {reason}" for _, reason in bad]
        if len(rows) == count:
            break
    if not rows:
        raise ValueError(f"none of {len(reasons)} images can be read (first: {reasons[0]}): give others")
    return torch.cat(rows)


# ---------------------------------------------------------------- places
def _default(model: str | Path | Model, kind: Kind) -> Path:
    """A place in the run folder."""
    if isinstance(model, Model):
        raise ValueError("the model is in memory and has no folder of its own: say where to write it")
    if not Path(model).is_dir():
        raise ValueError(f"{model} is no run folder: say where to write with --out")
    return Path(model) / kind.name


def _suits(out: Path, format: Format, kind: Kind) -> None:
    """Could `out` become what the format makes?"""
    suffix = Path(kind.name).suffix
    if suffix:
        if out.suffix != suffix or out.is_dir():
            raise ValueError(f"{out}: the format {format} is one file; name it *{suffix}")
    elif out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"{out} exists; the format {format} is a folder of its own: give another place")


def _move(place: Path, out: Path) -> tuple[str, ...]:
    """Everything in `place` beside or to `out`, which comes last."""
    names = sorted((f.name for f in place.iterdir()), key=lambda name: name == out.name)
    for name in names:
        os.replace(place / name, out.with_name(name))
    return tuple(sorted(f.name for f in out.iterdir())) if out.is_dir() else tuple(names)
