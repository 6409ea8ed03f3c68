"""LoRA in peft's files, adapter_config.json and adapter_model.safetensors.

`peft.PeftModel.from_pretrained(network, folder)` reads them for a network with the same names of layers, such
as timm's ViT with the weights that the adapter was trained on.
"""

import copy
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from omma.backbones import adapters
from omma.backbones.adapters import lora
from omma.core import files
from omma.core.errors import line
from omma.core.protocols import Backbone
from omma.weights.model import Model

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of peft's names
PLAIN = {"bias": "none", "use_rslora": False, "use_dora": False, "lora_bias": False}  # what omma has


def save(folder: str | Path, encoder: Backbone, base: str | None = None) -> list[Path]:
    """Write the encoder's LoRA into the folder, which is made; [] for an encoder without.

    base: name or path of the model that was adapted, for the reader's information.
    """
    found = lora.layers(encoder)
    if not found:
        return []
    options = encoder.built_from[adapters.OPTION]
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": options["rank"],
        "lora_alpha": options["alpha"],
        "lora_dropout": options["dropout"],
        "target_modules": list(found),
        "fan_in_fan_out": False,
        "inference_mode": True,
        **PLAIN,
    }
    tensors = {
        f"{PREFIX}{name}.{part}.weight": getattr(layer, part).weight.detach().cpu().float().contiguous()
        for name, layer in found.items()
        for part in ("lora_A", "lora_B")
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(folder / TENSORS, durable=True) as file:
        file.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    with files.atomic_write(folder / CONFIG, durable=True) as file:
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return [folder / TENSORS, folder / CONFIG]


def adapted(base: Model, folder: str | Path) -> Model:
    """The base model with the LoRA of a folder that peft or `save` wrote; not merged, the base is unchanged.

    Layers that peft names differently from omma cannot be matched. Raises a one-line ValueError for files
    that are missing or damaged, another kind of adapter, and layers that the base lacks or has otherwise.
    """
    folder = Path(folder)
    config = files.read_json(folder / CONFIG, "copy the folder again from where it was written")
    options = _options(folder, config)
    tensors = _tensors(folder)
    options["targets"] = tuple(sorted({name.rpartition(".lora_")[0] for name in tensors}))
    encoder = copy.deepcopy(base.encoder)
    adapters.insert(encoder, "lora", options)
    wanted = {name: p for name, p in encoder.named_parameters() if ".lora_" in name}
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in wanted or name not in tensors or wanted[name].shape != tensors[name].shape:
            given = tuple(tensors[name].shape) if name in tensors else "missing"
            has = tuple(wanted[name].shape) if name in wanted else "no such layer"
            raise ValueError(
                f"{folder / TENSORS}: {name} is {given}, {base.encoder.name} has {has}: give the model that "
                "the adapter was trained on"
            )
    encoder.load_state_dict(tensors, strict=False)
    return Model(encoder, base.preprocess, {**base.provenance, "adapter": str(folder)}, base.extras)


def _options(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """LoRA's options from peft's config; ValueError for what omma does not have."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{folder / CONFIG}: the adapter is {kind!r}, and only LORA can be read")
    unlike = {name: config[name] for name, value in PLAIN.items() if config.get(name, value) != value}
    patterns = {name: config[name] for name in ("rank_pattern", "alpha_pattern") if config.get(name)}
    for name, value in (unlike | patterns).items():
        raise ValueError(f"{folder / CONFIG}: {name}={value!r} cannot be read: merge the adapter with peft")
    try:
        return {
            "rank": config["r"],
            "alpha": float(config["lora_alpha"]),
            "dropout": float(config.get("lora_dropout") or 0),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / CONFIG} is no config of peft's ({line(error)}): copy it again"
        ) from error


def _tensors(folder: Path) -> dict[str, Tensor]:
    try:
        read = safetensors.torch.load_file(folder / TENSORS)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{folder / TENSORS} cannot be read ({line(error)}): copy it again from where it was written"
        ) from error
    tensors = {name.removeprefix(PREFIX): x.float() for name, x in read.items() if ".lora_" in name}
    if not tensors:
        raise ValueError(f"{folder / TENSORS} holds no LoRA: is it peft's adapter_model.safetensors?")
    return tensors
