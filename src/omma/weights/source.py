"""MODEL as people name it: a run folder, a weights file, `timm:NAME`, `hf:NAME`, or a folder of theirs."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omma import backbones
from omma.core.errors import line
from omma.core.protocols import Backbone, Extras
from omma.weights import hub, published, read_file, store
from omma.weights.model import Model
from omma.weights.published import clip, dalle
from omma.weights.published.recognise import Recognised


def load(model: str | Path, *, allow_partial: bool = False) -> Model:
    """An encoder ready for use, on the CPU in fp32.

    model: a run folder or its model.safetensors; a published file (.safetensors, .pth, .pt, .npz ...), whose
    content tells what it is, or one of the networks in it by name, FILE:student; a folder that transformers
    or timm wrote; `timm:NAME`; `hf:NAME` (docs/weights.md).
    allow_partial: also where less than 95 % of the encoder's parameters are in the file. What became of a
    published file's tensors is told in `provenance["loaded"]`. Raises ValueError in one line: what, where,
    remedy.
    """
    name, (path, part) = str(model), _part(model)
    if name.startswith("timm:"):
        found = hub.fetch_timm(name)
        return _timm(found, name, allow_partial)
    if name.startswith("hf:") or _is_theirs(path):
        folder = hub.fetch_hf(name)
        return _of_folder(folder, read_file.read(folder).tensors, name, allow_partial)
    if _is_ours(path) and part is None:
        return store.load(path)
    read = read_file.read(path, part)
    notes = [f"taken from its part {read.container!r}"] if read.container else []
    if path.name in read_file.WEIGHTS and _is_theirs(path.parent):
        return _of_folder(path.parent, read.tensors, name, allow_partial, notes)
    return _published(read.tensors, name, allow_partial, notes, path.parent, beside=read.others)


def fit(model: Model, encoder: Backbone, allow_partial: bool = False) -> list[str]:
    """Fill another encoder of the same family with a model's weights; what was converted, in lines.

    Image size, patch and channels may differ: positions are interpolated, the kernel is resampled and spread.
    Raises ValueError in one line where less than 95 % of the parameters would get values.
    """
    own = model.encoder
    state = own.state_dict()
    size = getattr(own, "image_size", model.preprocess.size)
    grid, front = None, 0
    if "pos_embed" in state:
        rows, columns = own.grid(size, size)
        front = state["pos_embed"].shape[1] - rows * columns
        grid = (rows, columns) if front in (0, own.prefix) else None  # else positions of another kind
    recognised = Recognised(
        source=own.name,
        dialect="omma",
        spec=own.spec(),
        tensors=state,
        origin={name: (name,) for name in state},
        how={},
        grid=grid,
        front=front,
        left=(),
        settings={},
        notes=(),
    )
    return published.fit(recognised, encoder, allow_partial).lines()


def _part(model: str | Path) -> tuple[Path, str | None]:
    """FILE:student is the file and which of its networks is meant."""
    before, _, part = str(model).rpartition(":")
    if Path(model).exists() or not Path(before).is_file():
        return Path(model), None
    return Path(before), part


def _is_ours(path: Path) -> bool:
    """Did omma write it? (What is missing or damaged there is omma's to say.)"""
    if path.is_dir() or not path.exists():
        return True
    beside = (path.with_suffix(".json"), path.with_name(store.DESCRIPTION))
    if path.suffix != ".safetensors" or not any(file.is_file() for file in beside):
        return False
    description = next(file for file in beside if file.is_file())
    try:
        said = json.loads(description.read_text())
    except (OSError, ValueError):
        return description.name == store.DESCRIPTION
    return isinstance(said, dict) and "spec" in said


def _is_theirs(path: Path) -> bool:
    """A folder that transformers or timm wrote: config.json and weights, without omma's model.json."""
    if not path.is_dir() or not (path / hub.CONFIG).is_file() or (path / store.DESCRIPTION).is_file():
        return False
    return not (path / "checkpoints").is_dir()


def _of_folder(
    folder: Path, tensors: Mapping[str, Tensor], source: str, allow_partial: bool, notes: Sequence[str] = ()
) -> Model:
    """Weights with config.json, and perhaps preprocessor_config.json, beside them."""
    config, preprocessor = hub.read_config(folder), None
    if (folder / hub.PREPROCESSOR).is_file():
        preprocessor = hub.read_config(folder, hub.PREPROCESSOR)
    cfg = config.get("pretrained_cfg")
    if (found := hub.timms(tensors, config)) is not None:
        try:
            with published.readable(source):
                return _timm(found, source, allow_partial)
        except ValueError as error:
            notes = [*notes, f"not held against timm's own network: {error}"]
    return _published(
        tensors, source, allow_partial, notes, folder,
        config=config, preprocessor=preprocessor, timm_cfg=cfg,
    )  # fmt: skip


def _published(
    tensors: Mapping[str, Tensor],
    source: str,
    allow_partial: bool,
    notes: Sequence[str] = (),
    folder: Path | None = None,
    **said: Any,
) -> Model:
    """folder: where the file lies. said: what else of the network is known (`published.into_model`)."""
    encoder, preprocess, report = published.into_model(
        tensors, source=source, allow_partial=allow_partial, **said
    )
    beside = dalle.beside(tensors, encoder.dim)
    if beside.tensors:
        notes = [*notes, "its layer of codes is kept beside the encoder"]
    else:
        beside, used, told = clip.beside(tensors, encoder, source, said.get("config"))
        beside = beside if folder is None else clip.with_merges(beside, folder)
        report = dataclasses.replace(report, left=tuple(name for name in report.left if name not in used))
        notes = [*told, *notes]
    return Model(encoder, preprocess, {"source": source, "loaded": [*report.lines(), *notes]}, beside)


def _timm(found: hub.Timm, source: str, allow_partial: bool) -> Model:
    """Our own form of one of timm's networks, where that computes the same; else timm's, wrapped."""
    size = int((found.config.get("input_size") or (3, 224, 224))[-1])
    theirs = backbones.build(name=f"timm:{found.architecture}", image_size=size).eval()
    try:
        theirs.load_state_dict(found.tensors)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit timm's {found.architecture} ({line(error)})") from error
    fits = "weight" in found.classifier and found.classifier["weight"].shape[1] == theirs.dim
    extras = Extras({f"classifier.{name}": x for name, x in found.classifier.items()} if fits else {})
    try:
        ours = _published(found.tensors, source, allow_partial, timm_cfg=found.config)
        why = "omma's form of it gives other features"
        if _alike(ours.encoder, theirs, size):
            ours.extras = extras
            return ours
    except ValueError as error:
        why = str(error)
    preprocess, note = published.preprocess(None, size=size, timm_cfg=found.config)
    lines = [f"{source}: timm's own network, all parameters as they are ({why})", note]
    return Model(theirs, preprocess, {"source": source, "loaded": lines}, extras)


@torch.inference_mode()
def _alike(one: Backbone, other: Backbone, size: int) -> bool:
    """Do both give the same patch features? Equal parameter names do not promise equal arithmetic."""
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    a, b = one(noise).patches, other(noise).patches
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-3 * b.abs().max().clamp(min=1))
