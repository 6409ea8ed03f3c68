"""Export to transformers: a folder that AutoModel reads, with the names and layouts of published files."""

import contextlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from omma.core.errors import need
from omma.core.protocols import Backbone, Preprocess
from omma.weights.classifier import Classifier
from omma.weights.export.check import Reopened, Run, full_scale, in_full_scale, left_out, range_note
from omma.weights.export.hf_forms import HfNetwork, hf_network

COMPUTED = "relative_position_index"  # of Swin; older versions of transformers save it


def _head(encoder: Backbone, network: HfNetwork, classifier: Classifier) -> Tensor:
    """The weight of the head in `KINDForImageClassification`.

    Raises ValueError, why, where transformers has none that computes the same.
    """
    if not classifier.plain:
        raise ValueError("has no such head")
    if network.kind in (
        "Dinov2",
        "Dinov2WithRegisters",
    ):  # its head reads the class token and the patches' mean
        pair = (classifier.weight, torch.zeros_like(classifier.weight))
        return torch.cat(pair if encoder.pool == "token" else pair[::-1], dim=1)
    takes_token = network.kind in ("ViT", "DeiT") and encoder.pool == "token"
    if takes_token or network.kind == "Swin" or (network.kind == "Beit" and encoder.pool != "mean"):
        return classifier.weight
    raise ValueError("classifies other features of this network")


def write(
    encoder: Backbone, preprocess: Preprocess, folder: Path, classifier: Classifier | None = None
) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json.

    With the classifier, for AutoModelForImageClassification, where transformers has such a head: `reopen`
    notes where it has not.
    """
    transformers = need("transformers", "hf")
    network = hf_network(encoder)
    config = getattr(transformers, f"{network.kind}Config")(**network.config)
    config.architectures = [f"{network.kind}Model"]
    state = {name: x.contiguous().clone() for name, x in network.state.items()}
    if classifier is not None:
        with contextlib.suppress(ValueError):
            head = _head(encoder, network, classifier)
            classes = getattr(transformers, f"{network.kind}ForImageClassification")
            config.architectures = [classes.__name__]
            config.id2label = dict(enumerate(classifier.classes))
            config.label2id = {name: i for i, name in enumerate(classifier.classes)}
            config.problem_type = f"{'multi' if classifier.multi_label else 'single'}_label_classification"
            bias = torch.zeros(len(head)) if classifier.bias is None else classifier.bias
            prefix = classes.base_model_prefix
            # the classes of these networks have no pooler
            state = {f"{prefix}.{n}": x for n, x in state.items() if not n.startswith("pooler.dense")}
            state |= {"classifier.weight": head.contiguous(), "classifier.bias": bias.contiguous()}
    config.save_pretrained(folder)
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


def reopen(
    encoder: Backbone, preprocess: Preprocess, folder: Path, classifier: Classifier | None = None
) -> Reopened:
    """Load the folder with transformers. Raises ValueError if tensors are missing or unexpected."""
    transformers = need("transformers", "hf")
    network = hf_network(encoder)
    bars = transformers.utils.logging
    bars_enabled = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        classifies = config.architectures[0].endswith("ForImageClassification")
        loader = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
        model, info = loader.from_pretrained(folder, output_loading_info=True)
    finally:
        if bars_enabled:
            bars.enable_progress_bar()
    listed = {
        kind: sorted(each for each in map(str, names) if not each.endswith(COMPUTED))
        for kind, names in info.items()
    }
    if problems := {kind: names for kind, names in listed.items() if names}:
        kind, names = next(iter(problems.items()))
        raise ValueError(
            f"transformers {transformers.__version__} read {encoder.name} with {kind} "
            f"({', '.join(names[:3])}): export it as timm, onnx or torch instead"
        )
    notes = (*network.notes, *range_note(preprocess), f"read with transformers {transformers.__version__}")
    pooled = _pooled(encoder, network, classifies)
    if network.kind != "Swin":
        notes = (f"omma's pooled feature is {pooled}", *notes)
    if classifier is not None and not classifies:
        try:
            _head(encoder, network, classifier)
        except ValueError as error:
            notes += (left_out("transformers", str(error)),)
    elif classifies:
        notes = ("read with AutoModelForImageClassification: logits, not divided by the temperature", *notes)
    return Reopened(
        _runner(model.eval(), network, encoder.pool, classifies),
        network.sizes,
        notes,
        f"model(images).{pooled}",
    )


def _pooled(encoder: Backbone, network: HfNetwork, classifies: bool) -> str:
    """omma's pooled feature, of the output of AutoModel.

    It is `pooler_output` where the network's own pooler gives it. ViT and DeiT with a head have no pooler in
    their file, and AutoModel then makes a random one.
    """
    if encoder.pool == "mean" and network.kind != "Swin":
        return f"last_hidden_state[:, {network.prefix}:].mean(1)"
    return "last_hidden_state[:, 0]" if classifies and network.kind in ("ViT", "DeiT") else "pooler_output"


def _runner(model: Any, network: HfNetwork, pool: str, classifies: bool) -> Run:
    trunk = model.base_model if classifies else model

    def run(images: Tensor) -> tuple[Tensor, ...]:
        out = trunk(pixel_values=images)
        tokens = out.last_hidden_state
        if network.kind == "CLIPVision":
            tokens = getattr(trunk, "vision_model", trunk).post_layernorm(tokens)
        patches = tokens[:, network.prefix :]
        if pool == "mean" and network.kind != "Swin":
            pooled = patches.mean(1)
        else:  # a network with a head has no pooler
            pooled = tokens[:, 0] if out.pooler_output is None else out.pooler_output
        return (pooled, patches, model(pixel_values=images).logits) if classifies else (pooled, patches)

    return run
