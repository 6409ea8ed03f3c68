"""Export to OpenVINO: the ONNX graph, converted to its .xml and .bin and run by its runtime on the CPU."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.export import ExportedProgram

from omma.core.errors import need
from omma.core.protocols import Backbone, Preprocess
from omma.weights.classifier import Classifier
from omma.weights.export import traced
from omma.weights.export.check import Reopened, Run, Sizes


def write(
    encoder: Backbone, preprocess: Preprocess, file: Path, classifier: Classifier | None = None
) -> Sizes:
    """Write an .xml file and its weights, a .bin beside it, in float32; its "omma" entry is as ONNX's."""
    openvino = need("openvino", "openvino")
    description = traced.description(encoder, preprocess, classifier)

    def save(program: ExportedProgram, sizes: Sizes) -> Run:
        with TemporaryDirectory() as folder:
            graph = Path(folder) / "model.onnx"
            traced.onnx_graph(program, sizes, classifier).save(graph)
            model = openvino.Core().read_model(str(graph))
            model.set_rt_info(description, "omma")
            openvino.save_model(model, str(file), compress_to_fp16=False)
            del model  # it may hold the file open
        return reopen(encoder, preprocess, file, sizes, classifier).run

    return traced.trace(encoder, preprocess.size, save, classifier)


def reopen(
    encoder: Backbone, preprocess: Preprocess, file: Path, sizes: Sizes, classifier: Classifier | None = None
) -> Reopened:
    """Load the file with OpenVINO, on the CPU in float32 (its default may be bfloat16)."""
    openvino = need("openvino", "openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    names = traced.NAMES if classifier is not None else traced.NAMES[:2]

    def run(images: Tensor) -> tuple[Tensor, ...]:
        out = compiled({"images": images.numpy()})
        return tuple(torch.from_numpy(out[name].copy()) for name in names)

    notes = traced.notes(encoder, preprocess, sizes, classifier)
    return Reopened(run, sizes, (*notes, f"run by OpenVINO {openvino.__version__}"))
