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
from omma.core.errors import exhausted, line
from omma.core.protocols import NO_EXTRAS, Backbone, Extras, Preprocess
from omma.data.batches.preprocess import as_dict, from_dict
from omma.weights.description import check
from omma.weights.digest import digest
from omma.weights.model import Model
from omma.weights.safetensors_file import open_tensors

SCHEMA = 1
WEIGHTS, DESCRIPTION, EXTRAS = "model.safetensors", "model.json", "extras.safetensors"
REMEDY = "copy it again from where it was written, or repeat the run's command, which writes it again"


def save(
    folder: str | Path,
    encoder: Backbone,
    preprocess: Preprocess,
    provenance: Mapping[str, Any] | None = None,
    extras: Extras = NO_EXTRAS,
) -> Path:
    """Write the three files into `folder`, each atomically; returns the weights' path.

    The weights come last: where they are those that model.json names, the model is whole. Extras go into
    extras.safetensors, so that model.safetensors holds the encoder alone, for other tools.
    """
    folder = Path(folder)
    contents = {WEIGHTS: _as_saved(encoder.state_dict())}
    if extras.tensors:
        contents[EXTRAS] = _as_saved(extras.tensors)
    digests = {name: digest(tensors) for name, tensors in contents.items()}
    description = {
        "schema": SCHEMA,
        "spec": encoder.spec(),
        "preprocess": as_dict(preprocess),
        "provenance": dict(provenance or {}),
        **({"extras": dict(extras.facts)} if extras.facts else {}),
        "digests": digests,
        "omma": files.omma_version(),
    }
    if EXTRAS in contents:
        _write_tensors(folder / EXTRAS, contents[EXTRAS], digests[EXTRAS])
    _write(folder / DESCRIPTION, (json.dumps(description, indent=2) + "\n").encode())
    _write_tensors(folder / WEIGHTS, contents[WEIGHTS], digests[WEIGHTS])
    if EXTRAS not in contents:  # of a model that lay here before
        (folder / EXTRAS).unlink(missing_ok=True)
    return folder / WEIGHTS


def provenance(folder: Path, thorough: bool = False) -> dict[str, Any] | None:
    """What model.json says of the model's origin; None unless it and the weights are whole, of one model.

    thorough: all bytes of the weights are read and compared with their digest.
    """
    weights, file = folder / WEIGHTS, folder / DESCRIPTION
    if not (weights.is_file() and file.is_file()):
        return None
    try:
        description = _read_description(file)
        _check_pair(weights, _stored_digest(weights), file, description)
        if thorough:
            _read_tensors(weights, file, description)
    except ValueError:
        return None
    origin = description.get("provenance")
    return origin if isinstance(origin, dict) else {}


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
        writer = description.get("omma", "?")
        other = f"; it was written by omma {writer}, this is {files.omma_version()}"
        raise ValueError(
            f"{description_file}: cannot rebuild the network ({line(error)})"
            f"{other if writer != files.omma_version() else ''}"
        ) from error
    state = _read_tensors(weights, description_file, description)
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
    has_extras = extras_file.is_file() and EXTRAS in description.get("digests", {EXTRAS: None})
    extra_tensors = _read_tensors(extras_file, description_file, description) if has_extras else {}
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
    description = files.read_json(file, REMEDY)
    if (schema := description.get("schema")) != SCHEMA:
        raise ValueError(f"{file}: schema {schema}, this omma reads {SCHEMA}; use the omma that wrote it")
    return description


def _read_tensors(file: Path, description_file: Path, description: Mapping[str, Any]) -> dict[str, Tensor]:
    expected = _stored_digest(file)
    _check_pair(file, expected, description_file, description)
    try:
        with open_tensors(file) as opened:
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        if exhausted(error):
            raise
        raise ValueError(f"{file} is damaged ({line(error)}); {REMEDY}") from error
    if expected is not None and expected != digest(state):
        raise ValueError(f"{file} is damaged (its digest differs); {REMEDY}")
    return {name: x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for name, x in state.items()}


def _stored_digest(file: Path) -> str | None:
    """The digest in the file's header; None in files of other tools. Raises ValueError if it is damaged."""
    try:
        with open_tensors(file) as opened:
            return (opened.metadata() or {}).get("digest")
    except (OSError, safetensors.SafetensorError) as error:
        if exhausted(error):
            raise
        raise ValueError(f"{file} is damaged ({line(error)}); {REMEDY}") from error


def _check_pair(
    file: Path, stored: str | None, description_file: Path, description: Mapping[str, Any]
) -> None:
    """Raise ValueError if the description is that of other weights."""
    name = EXTRAS if file.name == EXTRAS else WEIGHTS
    digests = description.get("digests")  # absent from files of omma 0.1
    named = digests.get(name) if isinstance(digests, dict) else None
    if named and stored and named != stored:
        raise ValueError(
            f"{file} and {description_file.name} are of two models; put the files of one run together, or "
            "repeat the run's command, which writes them again"
        )


def _write_tensors(file: Path, tensors: dict[str, Tensor], own_digest: str) -> None:
    _write(file, safetensors.torch.save(tensors, metadata={"format": "pt", "digest": own_digest}))


def _write(file: Path, data: bytes) -> None:
    with files.atomic_write(file, durable=True) as partial:
        partial.write_bytes(data)
