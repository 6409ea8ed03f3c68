"""Embedding 224 px images from memory: omma's bf16 inference, other libraries and runtimes, taking turns.

    python benchmarks/embed.py [--model vit-s/16] [--batch 16] [--rounds 9] [--json FILE]

All have the same random weights (omma's state loads strictly into timm's VisionTransformer, and is exported
for transformers' AutoModel and as ONNX) and the same images; nothing is decoded or resized. omma runs as
`omma.features` does: a copy of the encoder in bf16, in inference mode, pooled features returned in fp32.
timm and transformers: their fp32 models and `model.bfloat16()`, in inference mode. onnxruntime: the ONNX
file, in fp32, because its x86 kernels have no bf16. OpenVINO: the same file, in fp32 and with its hint for
bf16. Both know batch and image size beforehand, return only pooled features, and use as many threads as
torch; they are omitted if they are not installed. The table also has torch's operations, their share of
this machine's best matrix product in that precision, and the cosine of each image's features to timm's in
fp32.
"""

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common
import torch
from common import Contender, contender_name
from torch import Tensor, nn

from omma import backbones
from omma.core.protocols import Backbone, Preprocess
from omma.weights.export import hf, timm_twin, traced

SIZE = 224


def runner(
    network: nn.Module, images: Tensor, dtype: torch.dtype, pooled: Callable[[Any], Tensor]
) -> Callable[[], Tensor]:
    """Features of the images in fp32; `pooled` extracts them from the network's output."""
    network = copy.deepcopy(network).to(dtype=dtype).eval()

    def run() -> Tensor:
        with torch.inference_mode():
            return pooled(network(images.to(dtype=dtype))).float()

    return run


def preprocess(size: int) -> Preprocess:
    return Preprocess(
        size=size, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.5,) * 3
    )


def transformers_twin(encoder: Backbone, size: int) -> nn.Module:
    """The same network, loaded by transformers."""
    from transformers import AutoModel

    with tempfile.TemporaryDirectory() as folder:
        hf.write(encoder, preprocess(size), Path(folder))
        return AutoModel.from_pretrained(folder)


def by_onnxruntime(file: Path, images: Tensor) -> Callable[[], Tensor]:
    """Features computed by onnxruntime in fp32."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    # its threads wait for work in a busy loop: not in the others' turns
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    for name, side in zip(("batch", "height", "width"), (images.shape[0], *images.shape[2:])):
        settings.add_free_dimension_override_by_name(name, side)
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(["pooled"], {"images": images.numpy()})[0])


def by_openvino(file: Path, images: Tensor, bf16: bool) -> Callable[[], Tensor]:
    """Features computed by OpenVINO in fp32, or with its hint for bf16."""
    import openvino

    core = openvino.Core()
    graph = core.read_model(file)
    graph = openvino.Model([graph.output("pooled")], graph.get_parameters())
    graph.reshape({"images": list(images.shape)})
    chosen = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(graph, "CPU", chosen).create_infer_request()
    return lambda: torch.from_numpy(request.infer({"images": images.numpy()})["pooled"].copy())


def runtimes(encoder: Backbone, images: Tensor) -> Iterator[Contender]:
    """The installed runtimes for the network as ONNX."""
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        print(f"onnxruntime and OpenVINO are left out: {', '.join(missing)} not installed (omma[onnx])")
        return
    batch = len(images)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "encoder.onnx"
        traced.write_onnx(encoder.eval(), preprocess(images.shape[-1]), file)
        yield Contender(
            contender_name("onnxruntime", False), by_onnxruntime(file, images), batch, torch=False
        )
        if find_spec("openvino") is None:
            print("OpenVINO is left out: not installed (pip install openvino)")
            return
        for bf16 in (True, False):
            run = by_openvino(file, images, bf16)
            yield Contender(contender_name("OpenVINO", bf16), run, batch, bf16=bf16, torch=False)


def contenders(model: str, batch: int, size: int = SIZE) -> list[Contender]:
    torch.manual_seed(0)
    encoder = backbones.build(name=model, image_size=size, channels=3)
    # a fresh network's features hardly tell images apart: larger weights, as training leaves them, do
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.startswith("blocks.") and weight.ndim == 2:
                weight.mul_(3.0)
    images = torch.randn(batch, 3, size, size)
    reference = timm_twin(encoder)
    reference.load_state_dict(encoder.state_dict())
    subjects: dict[str, tuple[nn.Module, Callable[[Any], Tensor]]] = {
        "omma": (encoder, lambda features: features.pooled),
        "timm": (reference, lambda features: features),
        "transformers": (transformers_twin(encoder, size), lambda out: out.last_hidden_state[:, 0]),
    }
    by_torch = [
        Contender(
            contender_name(library, bf16),
            runner(network, images, torch.bfloat16 if bf16 else torch.float32, pooled),
            batch,
            ours=library == "omma",
            bf16=bf16,
        )
        for library, (network, pooled) in subjects.items()
        for bf16 in (True, False)
    ]
    return [*by_torch, *runtimes(encoder, images)]


def cosines(subjects: list[Contender]) -> dict[str, Tensor]:
    """Cosine of each image's features, of every contender, with timm's in fp32."""
    features = {subject.name: subject.run() for subject in subjects}
    reference = features["timm fp32"]
    return {name: nn.functional.cosine_similarity(x, reference, dim=-1) for name, x in features.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="vit-s/16")
    parser.add_argument("--batch", type=int, default=16, help="images a pass [16, as omma.features]")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    subjects = contenders(args.model, args.batch)
    seconds = common.take_turns(subjects, args.rounds)
    result = common.summary(subjects, seconds)
    common.add_work(result, subjects)
    common.show(f"embedding, {args.model} at {SIZE} px, batch {args.batch}", result, args.rounds)
    speed = {name: s["median"] for name, s in result["images_per_second"].items()}
    for name in filter(lambda name: name != "omma bf16", speed):
        ratios = [theirs / ours for ours, theirs in zip(seconds["omma bf16"], seconds[name], strict=True)]
        print(
            f"omma bf16 / {name}: {speed['omma bf16'] / speed[name]:.2f} of medians, "
            f"{min(ratios):.2f} to {max(ratios):.2f} by round"
        )
        result[f"omma bf16 / {name}"] = ratios
    result["cosine"] = {}
    for name, cosine in cosines(subjects).items():
        result["cosine"][name] = {"min": cosine.min().item(), "mean": cosine.mean().item()}
        print(f"cosine of {name} to timm fp32: min {cosine.min():.5f}, mean {cosine.mean():.5f}")
    common.save(args.json, "embed", __doc__, [{"model": args.model, "batch": args.batch, **result}])


if __name__ == "__main__":
    main()
