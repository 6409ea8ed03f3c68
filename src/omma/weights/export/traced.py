"""Export as graphs: ONNX for onnxruntime, torch.export's .pt2; batch and image size stay dynamic if possible.

Both take normalised images and return "pooled" [batch, d], the class token's feature or the patches' mean,
"patches" [batch, n, d] and, of a model with a classifier, its "logits" [batch, k]. These are not divided by
the temperature, which the metadata have, with the names of the classes.
"""

import contextlib
import json
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from omma.backbones.external import Encoder as External
from omma.core.errors import line, need
from omma.core.protocols import Backbone, Preprocess
from omma.weights.classifier import Classifier
from omma.weights.export.check import Reopened, Run, Sizes, compare, outputs
from omma.weights.export.plain import plain

NAMES = ("pooled", "patches", "logits")  # of outputs
LIMIT = 1e-3  # largest relative difference on noise
PATIENCE = 90.0  # CPU seconds that tracing with dynamic image sizes may take, each attempt


class Traced(nn.Module):
    """An encoder with named outputs. pads: pad images to multiples of the patch before the encoder."""

    def __init__(self, encoder: Backbone, pads: bool, classifier: Classifier | None = None) -> None:
        super().__init__()
        self.encoder, self.pads, self.classifier = encoder, pads, classifier

    def forward(self, images: Float[Tensor, "b c h w"]) -> dict[str, Tensor]:
        if self.pads:  # as the encoder does, but in a form that tracing recognises as a multiple
            patch, (height, width) = self.encoder.patch, images.shape[-2:]
            rows, columns = ((side + patch - 1) // patch for side in (height, width))
            images = F.pad(images, (0, columns * patch - width, 0, rows * patch - height))
        made = outputs(self.encoder(images), self.classifier)
        return dict(zip(NAMES, made, strict=False))


def _dims(sizes: Sizes, patch: int) -> dict[int, Any]:
    """The dynamic dimensions of the images; at least two patches a side, since one is a special case."""
    if sizes == "fixed":
        return {0: Dim("batch")}
    if sizes == "any":
        return {0: Dim("batch"), 2: Dim("height", min=patch + 1), 3: Dim("width", min=patch + 1)}
    return {0: Dim("batch"), 2: patch * Dim("rows", min=2), 3: patch * Dim("columns", min=2)}


ATTEMPTS: tuple[tuple[Sizes, bool], ...] = (  # dynamic sizes, and whether a size of 1 may be specialised
    ("any", False),
    ("any", True),
    ("multiples", False),
    ("multiples", True),
    ("fixed", True),
)


def _attempts(encoder: Backbone) -> tuple[tuple[Sizes, bool], ...]:
    """The attempts that can succeed.

    A network of timm or torchvision decides by the size whether it pads: no graph of it holds for any size.
    Multiples of its stride keep the size of each stage a multiple; otherwise it is a floor of a floor. Where
    layers compute their padding from the size (timm's "Same", as TensorFlow's networks have), even those are
    not simplified in reasonable time.
    """
    if any(type(m).__name__.endswith("Same") for m in encoder.modules()):
        return ATTEMPTS[-1:]
    strided = isinstance(encoder, External) and 1 < encoder.patch < encoder.image_size
    return ATTEMPTS[2:] if strided else ATTEMPTS


@contextlib.contextmanager
def _limited(dynamic: bool) -> Iterator[None]:
    """End a trace with dynamic sizes after `PATIENCE`: simplifying sizes has no bound.

    Outside the main thread, and on Windows, nothing can interrupt it.
    """
    timed = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not (dynamic and timed):
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise TimeoutError(f"dynamic image sizes take longer than {PATIENCE:g} CPU seconds to trace")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(
        signal.ITIMER_VIRTUAL, PATIENCE, 0.5
    )  # again where the error was caught within the trace
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def trace(
    encoder: Backbone,
    image_size: int,
    convert: Callable[[ExportedProgram, Sizes], Run],
    classifier: Classifier | None = None,
) -> Sizes:
    """Write the graph with sizes as dynamic as the network allows; returns which.

    convert: writes the graph and returns a function that runs the file. Each attempt is checked on noise of
    several sizes. Raises ValueError if not even a graph for images of `image_size` can be made.
    """
    network, patch, reason = plain(encoder), encoder.patch, ""
    for sizes, special_cases_one in _attempts(encoder):
        # unusual and unequal sides, since tracing would identify equal ones
        height, width = (image_size, image_size) if sizes == "fixed" else (4 * patch, 6 * patch)
        images = torch.zeros(2, encoder.channels, height, width)
        module = Traced(network, pads=encoder.plain and sizes == "any", classifier=classifier)
        dims = _dims(sizes, patch)
        try:
            # A dimension may be 1 (a window, a patch) for some images. torch specialises on 1, so that the
            # graph would hold for 1 only or for all others; "oblivious" makes it trace the general case.
            # Fused attention kernels return layouts that converters do not support.
            with (
                _limited(sizes != "fixed"),
                _config.patch(backed_size_oblivious=not special_cases_one),  # pyright: ignore[reportAttributeAccessIssue]
                sdpa_kernel(SDPBackend.MATH),
                warnings.catch_warnings(),
                torch.no_grad(),
            ):
                warnings.simplefilter("ignore")
                program = torch.export.export(module, (images,), dynamic_shapes=(dims,), strict=False)
                for run in (
                    _runner(program.module()),
                    convert(program, sizes),
                ):  # the first checks constraints
                    _check(encoder, Reopened(run, sizes), image_size, classifier)
                return sizes
        except Exception as error:  # tracing fails in many ways
            reason = line(error)
    raise ValueError(f"{encoder.name} cannot be traced ({reason}): export it as safetensors instead")


def _runner(module: Any) -> Run:
    def run(images: Tensor) -> tuple[Tensor, ...]:
        out = module(images)
        return tuple(out[name] for name in NAMES if name in out)

    return run


def _check(encoder: Backbone, reopened: Reopened, size: int, classifier: Classifier | None) -> None:
    """Check the graph on one image and several, at the usual size and, where dynamic, at others."""
    patch, seeded = encoder.patch, torch.Generator().manual_seed(0)
    shapes = [(1, size, size), (2, size, size)]
    if reopened.sizes != "fixed":
        shapes.append((3, size + patch, size + 2 * patch))
    if reopened.sizes == "any":
        shapes.append((1, size + patch // 2, size + patch - 1))
    noise = (torch.randn(b, encoder.channels, h, w, generator=seeded) for b, h, w in shapes)
    comparison = compare(encoder, reopened, noise, classifier)
    if not comparison.within(LIMIT):
        raise ValueError(f"features differ by {comparison.difference:.2g} of {comparison.scale:.2g}")


def notes(
    encoder: Backbone, preprocess: Preprocess, sizes: Sizes, classifier: Classifier | None
) -> tuple[str, ...]:
    size = preprocess.size
    accepted = {
        "any": "any batch and image size",
        "multiples": f"any batch; image sizes that are multiples of {encoder.patch}",
        "fixed": f"any batch; images of {size}x{size} px only",
    }[sizes]
    if sizes == "any" and encoder.plain:
        accepted += f" from {encoder.patch + 1} px on, padded with zeros to multiples of {encoder.patch}"
    pooled = "class token's feature" if encoder.pool == "token" else "mean of the patches' features"
    logits = (
        "" if classifier is None else ", logits (probabilities are those over the metadata's temperature)"
    )
    given = f"out: pooled ({pooled}), patches{logits}"
    return (f"{accepted}; in: images scaled to [0, 1], then (x - mean) / std; {given}",)


def description(encoder: Backbone, preprocess: Preprocess, classifier: Classifier | None) -> str:
    """What users of the graph need to prepare images and to read logits, as JSON."""
    facts = {"name": encoder.name, "patch": encoder.patch, "pool": encoder.pool, "size": preprocess.size}
    facts |= {name: getattr(preprocess, name) for name in ("low", "high", "mean", "std", "crop_share")}
    return json.dumps(facts if classifier is None else {**facts, **classifier.extras().facts})


# ---------------------------------------------------------------- torch.export
def write_torch(
    encoder: Backbone, preprocess: Preprocess, file: Path, classifier: Classifier | None = None
) -> Sizes:
    """Write a .pt2 file, whose `extra_files` "omma.json" says how images are prepared."""

    def save(program: ExportedProgram, sizes: Sizes) -> Run:
        torch.export.save(
            program, file, extra_files={"omma.json": description(encoder, preprocess, classifier)}
        )
        return reopen_torch(encoder, preprocess, file, sizes, classifier).run

    return trace(encoder, preprocess.size, save, classifier)


def reopen_torch(
    encoder: Backbone, preprocess: Preprocess, file: Path, sizes: Sizes, classifier: Classifier | None = None
) -> Reopened:
    """Load the file with torch.export.load."""
    about = (*notes(encoder, preprocess, sizes, classifier), f"read with torch {torch.__version__}")
    return Reopened(_runner(torch.export.load(file).module()), sizes, about)


# ---------------------------------------------------------------- ONNX
def write_onnx(
    encoder: Backbone, preprocess: Preprocess, file: Path, classifier: Classifier | None = None
) -> Sizes:
    """Write an .onnx file (weights in a second file above 2 GB); metadata "omma" describes preprocessing."""

    def save(program: ExportedProgram, sizes: Sizes) -> Run:
        graph = onnx_graph(program, sizes, classifier)
        graph.model.metadata_props["omma"] = description(encoder, preprocess, classifier)
        graph.save(file)
        return reopen_onnx(encoder, preprocess, file, sizes, classifier).run

    return trace(encoder, preprocess.size, save, classifier)


def onnx_graph(program: ExportedProgram, sizes: Sizes, classifier: Classifier | None) -> Any:
    """The program as torch's ONNXProgram, with named inputs, outputs and dynamic dimensions."""
    names = {0: "batch", 2: "height", 3: "width"} if sizes != "fixed" else {0: "batch"}
    if any(len(shape) != 4 for shape in _attention_shapes(program)):  # ONNX's operator needs four dimensions
        program = program.run_decompositions()
    names_out = list(NAMES if classifier is not None else NAMES[:2])
    graph = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=["images"], output_names=names_out,
        dynamic_shapes=(names,),
    )  # fmt: skip
    assert graph is not None
    return graph


def _attention_shapes(program: ExportedProgram) -> Iterator[tuple[int, ...]]:
    """Shapes of the queries in all fused attention calls."""
    for node in program.graph.nodes:
        if node.target == torch.ops.aten.scaled_dot_product_attention.default:
            yield node.args[0].meta["val"].shape


def reopen_onnx(
    encoder: Backbone, preprocess: Preprocess, file: Path, sizes: Sizes, classifier: Classifier | None = None
) -> Reopened:
    """Load the file with onnxruntime, on the CPU."""
    runtime = need("onnxruntime", "onnx")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 4  # errors are raised anyway
    session = runtime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {"images": images.numpy()})))

    about = (*notes(encoder, preprocess, sizes, classifier), f"run by onnxruntime {runtime.__version__}")
    return Reopened(run, sizes, about)
