"""`omma export`: a trained encoder for other libraries, reopened by them and compared before it is kept."""

from dataclasses import dataclass, field
from pathlib import Path

from omma import weights
from omma.backbones import adapters
from omma.core import files, outputs
from omma.core.explain import translated
from omma.core.notebook import Displayed
from omma.core.protocols import ImageSource
from omma.features.extract import with_channels
from omma.reporting import model_card
from omma.weights import Model
from omma.weights.classifier import Classifier
from omma.weights.export import push as hub
from omma.weights.export import real_images, target
from omma.weights.export.check import compare
from omma.weights.export.formats import FORMATS, Exporting, Format


@dataclass(frozen=True)
class Exported(Displayed):
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
    images: ImageSource | None = None,
    *,
    architecture: str | None = None,
    allow_partial: bool = False,
    push: str | None = None,
) -> Exported:
    """Write a model for another library, let that reopen it, and keep it only if it computes the same.

    format: "safetensors" (a folder: model.safetensors, model.json), "timm" (a folder for
    `timm.create_model("local-dir:FOLDER", pretrained=True)`), "hf" (a folder for transformers' AutoModel),
    "onnx" (a file for onnxruntime: "images" in, "pooled" and "patches" out), "torch" (a .pt2 file for
    torch.export.load). LoRA is merged. A classifier goes with the encoder: onnx and torch have its "logits",
    with class names and temperature in their metadata, timm and hf a head where theirs is a linear layer on
    the same feature (`notes` say where it is left out); "openvino" (.xml and .bin, as onnx). timm and hf have
    a model card, README.md. push: upload that folder to this repository of the Hugging Face hub, USER/NAME,
    with your own token; a new one is private. out: by default in the run folder. images: up to
    eight are compared; by default those that the model was trained on. allow_partial: as in `omma.load`.

    `out` appears only when it is complete; an existing file is replaced, a folder that is not empty is not.
    Raises ValueError in one line: an unknown format, a network that the other library does not have, features
    that differ by more than 1e-4 of the largest (ONNX: 1e-3), no images to compare.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown: choose {', '.join(FORMATS)}")
    form = FORMATS[format]
    if push is not None:
        hub.check(push, format)
    out = target.checked(_default_out(model, form) if out is None else Path(out), format, form)
    form.need_packages()
    loaded = weights.load(model, architecture=architecture, allow_partial=allow_partial)
    encoder, preprocess = adapters.merged(loaded.encoder).cpu().float().eval(), loaded.preprocess
    classifier = Classifier.of(loaded)
    pictures = with_channels(real_images.open_for(loaded, images), preprocess.channels)
    with outputs.temporary_folder(out) as folder:
        partial = folder / out.name  # under its final name: a file may name one beside it
        what = Exporting(encoder, preprocess, loaded.provenance, loaded.extras, classifier)
        reopened = form.write(what, partial)
        batches = real_images.batches(encoder, pictures, preprocess, reopened)
        result = compare(encoder, reopened, batches, classifier)
        if not result.within(form.limit):
            raise ValueError(
                f"{encoder.name} as {format}: features differ by {result.difference:.2g} of "
                f"{result.scale:.2g}, logits by {result.logits[0]:.2g} of {result.logits[1]:.2g}, more than "
                f"{form.limit:g} of it: not written; try another format"
            )
        if form.library:
            run = None if isinstance(model, Model) else Path(model)
            model_card.write(
                partial, form.library, encoder, preprocess, loaded.provenance, classifier=classifier,
                measured=[] if run is None else model_card.evaluations(run, loaded.digest),
                pooling=reopened.pooling, notes=reopened.notes,
                difference=f"{result.difference:.2g}, where features reach {result.scale:.2g}",
            )  # fmt: skip
        files.set_default_modes(folder)
        names = target.move(folder, out)
    facts = {name: getattr(result, name) for name in ("difference", "scale", "images", "sizes")}
    pushed = () if push is None else (f"pushed to {hub.push(out, push)}",)
    return Exported(path=out, format=format, files=names, notes=(*reopened.notes, *pushed), **facts)


def _default_out(model: str | Path | Model, form: Format) -> Path:
    """A path in the run folder."""
    if isinstance(model, Model):
        raise ValueError("the model is in memory and has no folder of its own: say where to write it")
    if not Path(model).is_dir():
        raise ValueError(f"{model} is no run folder: say where to write with --out")
    return Path(model) / form.name
