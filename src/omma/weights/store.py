"""Save and load an encoder; damaged or missing files raise a one-line error with a remedy.

`model.safetensors` holds fp32 weights under timm's parameter names, so that other tools can read it without
omma; `model.json` says how to rebuild the network and prepare its images.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from omma import backbones
from omma.core import files
from omma.core.errors import line
from omma.core.protocols import NO_EXTRAS, Backbone, Extras, Preprocess
from omma.data.batches.preprocess import as_dict, from_dict
from omma.weights.description import check
from omma.weights.digest import digest
from omma.weights.model import Model

SCHEMA = 1
WEIGHTS, DESCRIPTION, EXTRAS = "model.safetensors", "model.json", "extras.safetensors"


def save(
    folder: str | Path,
    encoder: Backbone,
    preprocess: Preprocess,
    provenance: Mapping[str, Any] | None = None,
    extras: Extras = NO_EXTRAS,
) -> Path:
    """Write model.safetensors and model.json into `folder`, each atomically; returns the weights' path.

    Extras go into extras.safetensors, so that model.safetensors holds the encoder alone, for other tools.
    """
    folder = Path(folder)
    state = _as_saved(encoder.state_dict())
    description = {
        "schema": SCHEMA,
        "spec": encoder.spec(),
        "preprocess": as_dict(preprocess),
        "provenance": dict(provenance or {}),
        **({"extras": dict(extras.facts)} if extras.facts else {}),
        "omma": files.omma_version(),
    }
    if extras.tensors:
        extra_tensors = _as_saved(extras.tensors)
        metadata = {"format": "pt", "digest": digest(extra_tensors)}
        data = safetensors.torch.save(extra_tensors, metadata=metadata)
        _write(folder / EXTRAS, data)
    data = safetensors.torch.save(state, metadata={"format": "pt", "digest": digest(state)})
    _write(folder / WEIGHTS, data)
    _write(folder / DESCRIPTION, (json.dumps(description, indent=2) + "\n").encode())
    return folder / WEIGHTS


def load(model: str | Path) -> Model:
    """Load the encoder of a run folder, or of a .safetensors file with its .json, on the CPU in fp32.

    The .json is `model.json`, or has the weights' name. Raises a one-line ValueError: what, where, remedy.
    """
    weights, description_file = _find_files(Path(model))
    description = _read_description(description_file)
    check(description, description_file, weights)
    try:
        encoder = backbones.unfilled(**description["spec"])
        preprocess = from_dict(description["preprocess"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{description_file}: cannot rebuild the network ({line(error)}); "
            f"it was written by omma {description.get('omma', '?')}, this is {files.omma_version()}"
        ) from error
    state = _read_tensors(weights)
    expected = encoder.state_dict()
    other_shape = {n for n in expected.keys() & state.keys() if expected[n].shape != state[n].shape}
    for problem, names in (
        ("lacks", expected.keys() - state.keys()),
        ("has unknown", state.keys() - expected.keys()),
        ("has another shape of", other_shape),
    ):
        if names:
            raise ValueError(
                f"{weights} {problem} {len(names)} of the parameters that {description_file.name} describes "
                f"({min(names)}, ...); put the two files of one run together"
            )
    encoder.load_state_dict(state, assign=True)
    extras_file = weights.with_name(EXTRAS)
    extra_tensors = _read_tensors(extras_file) if extras_file.is_file() else {}
    extras = Extras(extra_tensors, description.get("extras", {}))
    return Model(encoder, preprocess, description.get("provenance"), extras)


def _as_saved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, floats in fp32, contiguous, without shared memory."""
    return {
        name: (x.float() if x.is_floating_point() else x).detach().cpu().contiguous().clone()
        for name, x in state.items()
    }


def _find_files(model: Path) -> tuple[Path, Path]:
    """The weights and their description."""
    if model.is_dir():
        weights = model / WEIGHTS
        if not weights.is_file():
            is_run = (model / "checkpoints").is_dir()
            remedy = "the run has not saved a model yet; resume it" if is_run else "is it a run folder?"
            raise ValueError(f"{model} holds no {WEIGHTS}: {remedy}")
    elif model.is_file():
        weights = model
        if model.suffix != ".safetensors":
            raise ValueError(f"{model} is not a .safetensors file; give a run folder or its {WEIGHTS}")
    else:
        raise ValueError(f"{model} does not exist; give a run folder or its {WEIGHTS}")
    for description in (weights.with_suffix(".json"), weights.with_name(DESCRIPTION)):
        if description.is_file():
            return weights, description
    raise ValueError(f"{weights} has no {DESCRIPTION} beside it; copy it there from the run folder")


def _read_description(file: Path) -> dict[str, Any]:
    try:
        description = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({line(error)}); copy it again from the run folder") from error
    if not isinstance(description, dict) or description.get("schema") != SCHEMA:
        schema = description.get("schema") if isinstance(description, dict) else None
        raise ValueError(f"{file}: schema {schema}, this omma reads {SCHEMA}; use the omma that wrote it")
    return description


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            expected = (opened.metadata() or {}).get("digest")  # absent from files of other tools
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file} is damaged ({line(error)}); copy it again from the run folder") from error
    if expected is not None and expected != digest(state):
        raise ValueError(f"{file} is damaged (its digest differs); copy it again from the run folder")
    return {name: x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for name, x in state.items()}


def _write(file: Path, data: bytes) -> None:
    with files.atomic_write(file, durable=True) as partial:
        partial.write_bytes(data)
