"""Save and load an encoder; whatever is wrong with the files is said in one line with a remedy.

`model.safetensors` holds fp32 weights under timm's parameter names, so that other tools read it without omma;
`model.json` says how to rebuild the network and prepare its images.
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

    What is kept beside the encoder goes into extras.safetensors, so that other tools are not in doubt what
    the encoder is.
    """
    folder = Path(folder)
    state = _kept(encoder.state_dict())
    description = {
        "schema": SCHEMA,
        "spec": encoder.spec(),
        "preprocess": as_dict(preprocess),
        "provenance": dict(provenance or {}),
        **({"extras": dict(extras.facts)} if extras.facts else {}),
        "omma": files.omma_version(),
    }
    if extras.tensors:
        beside = _kept(extras.tensors)
        data = safetensors.torch.save(beside, metadata={"format": "pt", "digest": digest(beside)})
        _write(folder / EXTRAS, data)
    data = safetensors.torch.save(state, metadata={"format": "pt", "digest": digest(state)})
    _write(folder / WEIGHTS, data)
    _write(folder / DESCRIPTION, (json.dumps(description, indent=2) + "\n").encode())
    return folder / WEIGHTS


def load(model: str | Path) -> Model:
    """The encoder of a run folder, or of a .safetensors file with its .json beside it, on the CPU in fp32.

    The .json is `model.json`, or named as the weights. Raises ValueError in one line: what, where, remedy.
    """
    weights, description = _files(Path(model))
    said = _described(description)
    try:
        encoder = backbones.unfilled(**said["spec"])
        preprocess = from_dict(said["preprocess"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{description}: cannot rebuild the network ({line(error)}); "
            f"it was written by omma {said.get('omma', '?')}, this is {files.omma_version()}"
        ) from error
    state = _state(weights)
    wanted = encoder.state_dict()
    for problem, names in (
        ("lacks", wanted.keys() - state.keys()),
        ("has unknown", state.keys() - wanted.keys()),
        (
            "has another shape of",
            {n for n in wanted.keys() & state.keys() if wanted[n].shape != state[n].shape},
        ),
    ):
        if names:
            raise ValueError(
                f"{weights} {problem} {len(names)} of the parameters that {description.name} describes "
                f"({min(names)}, ...); put the two files of one run together"
            )
    encoder.load_state_dict(state, assign=True)
    beside = weights.with_name(EXTRAS)
    extras = Extras(_state(beside) if beside.is_file() else {}, said.get("extras", {}))
    return Model(encoder, preprocess, said.get("provenance"), extras)


def _kept(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as files hold them: floats in fp32, on the CPU, each its own."""
    return {
        name: (x.float() if x.is_floating_point() else x).detach().cpu().contiguous().clone()
        for name, x in state.items()
    }


def _files(model: Path) -> tuple[Path, Path]:
    """The weights and their description."""
    if model.is_dir():
        weights = model / WEIGHTS
        if not weights.is_file():
            unfinished = (model / "checkpoints").is_dir()
            remedy = "the run has not saved a model yet; resume it" if unfinished else "is it a run folder?"
            raise ValueError(f"{model} holds no {WEIGHTS}: {remedy}")
    elif model.is_file():
        weights = model
        if model.suffix != ".safetensors":
            raise ValueError(f"{model} is no .safetensors file; give a run folder or its {WEIGHTS}")
    else:
        raise ValueError(f"{model} does not exist; give a run folder or its {WEIGHTS}")
    for description in (weights.with_suffix(".json"), weights.with_name(DESCRIPTION)):
        if description.is_file():
            return weights, description
    raise ValueError(f"{weights} has no {DESCRIPTION} beside it; copy it there from the run folder")


def _described(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({line(error)}); copy it again from the run folder") from error
    if not isinstance(said, dict) or said.get("schema") != SCHEMA:
        found = said.get("schema") if isinstance(said, dict) else None
        raise ValueError(f"{file}: schema {found}, this omma reads {SCHEMA}; use the omma that wrote it")
    return said


def _state(file: Path) -> dict[str, Tensor]:
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            promised = (opened.metadata() or {}).get("digest")  # absent from files of other tools
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{file} is damaged ({line(error)}); copy it again from the run folder") from error
    if promised is not None and promised != digest(state):
        raise ValueError(f"{file} is damaged (its digest differs); copy it again from the run folder")
    return {name: x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for name, x in state.items()}


def _write(file: Path, data: bytes) -> None:
    with files.atomic_write(file, durable=True) as partial:
        partial.write_bytes(data)
