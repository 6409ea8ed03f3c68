"""Export to transformers: a folder that AutoModel reads, with the names and layouts of published files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from omma.core.errors import need
from omma.core.protocols import Backbone, Preprocess
from omma.weights.export.check import Reopened, full_scale, in_full_scale, range_note
from omma.weights.export.hf_forms import HfNetwork, hf_network


def write(encoder: Backbone, preprocess: Preprocess, folder: Path) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json."""
    transformers = need("transformers", "hf")
    network = hf_network(encoder)
    config = getattr(transformers, f"{network.kind}Config")(**network.config)
    config.architectures = [f"{network.kind}Model"]
    config.save_pretrained(folder)
    state = {name: x.contiguous().clone() for name, x in network.state.items()}
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    mean, std = in_full_scale(preprocess)
    size = preprocess.size
    preprocessor = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": max(size, round(size / preprocess.crop_share))},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / full_scale(preprocess),
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": preprocess.channels == 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def reopen(encoder: Backbone, preprocess: Preprocess, folder: Path) -> Reopened:
    """Load the folder with transformers. Raises ValueError if tensors are missing or unexpected."""
    transformers = need("transformers", "hf")
    network = hf_network(encoder)
    bars = transformers.utils.logging
    bars_enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    finally:
        if bars_enabled:
            bars.enable_progress_bar()
    problems = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if problems:
        kind, names = next(iter(problems.items()))
        raise ValueError(
            f"transformers {transformers.__version__} read {encoder.name} with {kind} "
            f"({', '.join(names[:3])}): export it as timm, onnx or torch instead"
        )
    notes = (*network.notes, *range_note(preprocess), f"read with transformers {transformers.__version__}")
    if network.kind != "Swin":
        pooled = (
            "pooler_output" if encoder.pool != "mean" else f"last_hidden_state[:, {network.prefix}:].mean(1)"
        )
        notes = (f"omma's pooled feature is {pooled}", *notes)
    return Reopened(_runner(model.eval(), network, encoder.pool), network.sizes, notes)


def _runner(model: Any, network: HfNetwork, pool: str) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        out = model(pixel_values=images)
        tokens = out.last_hidden_state
        if network.kind == "CLIPVision":
            tokens = getattr(model, "vision_model", model).post_layernorm(tokens)
        patches = tokens[:, network.prefix :]
        by_hand = pool == "mean" and network.kind != "Swin"
        return (patches.mean(1) if by_hand else out.pooler_output), patches

    return run
