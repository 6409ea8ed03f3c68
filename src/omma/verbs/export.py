"""`omma export`: a trained encoder for other libraries, reopened by them and compared before it is kept."""

import copy
from dataclasses import dataclass, field
from pathlib import Path

from omma import weights
from omma.core import files, outputs
from omma.core.explain import translated
from omma.core.protocols import Images
from omma.features.extract import with_channels
from omma.weights import Model
from omma.weights.export import real_images, target
from omma.weights.export.check import compare
from omma.weights.export.formats import FORMATS, Format


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its features are from omma's."""

    path: Path  # a folder, or for onnx and torch a file
    format: str
    files: tuple[str, ...]  # names of the files in the folder, or of the file and those beside it
    difference: float  # the largest, absolute, of pooled and patch features
    scale: float  # the largest feature, absolute
    images: int  # real ones that were compared
    sizes: tuple[tuple[int, int], ...]  # height and width of the compared images, in pixels
    notes: tuple[str, ...] = field(default=(), repr=False)  # what its user must know

    @property
    def compared(self) -> str:
        """On which images the difference was measured, in words."""
        sizes = " and ".join(f"{height}x{width}" for height, width in self.sizes)
        return f"compared on {self.images} image{'s' * (self.images != 1)} at {sizes} px"


@translated()
def export(
    model: str | Path | Model,
    format: str,
    out: str | Path | None = None,
    images: str | Path | Images | None = None,
    *,
    architecture: str | None = None,
    allow_partial: bool = False,
) -> Exported:
    """Write an encoder for another library, let that reopen it, and keep it only if it computes the same.

    format: "safetensors" (a folder: model.safetensors, model.json), "timm" (a folder for
    `timm.create_model("local-dir:FOLDER", pretrained=True)`), "hf" (a folder for transformers' AutoModel),
    "onnx" (a file for onnxruntime: "images" in, "pooled" and "patches" out), "torch" (a .pt2 file for
    torch.export.load). out: by default in the run folder. images: up to eight are compared; by default
    those that the model was trained on. architecture, allow_partial: as in `omma.load`.

    `out` appears only when it is complete; an existing file is replaced, a folder that is not empty is not.
    Raises ValueError in one line: an unknown format, a network that the other library does not have, features
    that differ by more than 1e-4 of the largest (ONNX: 1e-3), no images to compare.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown: choose {', '.join(FORMATS)}")
    form = FORMATS[format]
    out = target.checked(_default_out(model, form) if out is None else Path(out), format, form)
    form.need_packages()
    loaded = (
        model
        if isinstance(model, Model)
        else weights.load(model, architecture=architecture, allow_partial=allow_partial)
    )
    encoder, preprocess = copy.deepcopy(loaded.encoder).cpu().float().eval(), loaded.preprocess
    pictures = with_channels(real_images.open_for(loaded, images), preprocess.channels)
    with outputs.temporary_folder(out) as folder:
        partial = folder / out.name  # under its final name: a file may name one beside it
        reopened = form.write(encoder, preprocess, partial, loaded.provenance)
        result = compare(encoder, reopened, real_images.batches(encoder, pictures, preprocess, reopened))
        if not result.within(form.limit):
            raise ValueError(
                f"{encoder.name} as {format}: features differ by {result.difference:.2g} of "
                f"{result.scale:.2g}, more than {form.limit:g} of it: not written; try another format"
            )
        files.set_default_modes(folder)
        names = target.move(folder, out)
    facts = {name: getattr(result, name) for name in ("difference", "scale", "images", "sizes")}
    return Exported(path=out, format=format, files=names, notes=reopened.notes, **facts)


def _default_out(model: str | Path | Model, form: Format) -> Path:
    """A path in the run folder."""
    if isinstance(model, Model):
        raise ValueError("the model is in memory and has no folder of its own: say where to write it")
    if not Path(model).is_dir():
        raise ValueError(f"{model} is no run folder: say where to write with --out")
    return Path(model) / form.name
