"""Load MODEL: a run folder, a weights file, `timm:NAME`, `hf:NAME`, or a folder of timm or transformers."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omma import backbones
from omma.core.errors import install_command, message
from omma.core.explain import translated
from omma.core.protocols import Backbone
from omma.weights import hub, library, misfit, published, read_file, store
from omma.weights.model import Model
from omma.weights.published import clip, dalle
from omma.weights.published.recognise import NO_NETWORK, Recognised
from omma.weights.published.report import grouped


def load(model: str | Path | Model, *, architecture: str | None = None, allow_partial: bool = False) -> Model:
    """Load an encoder, on the CPU in fp32; one that is loaded already is returned as it is.

    model: a run folder or its model.safetensors; a published file (.safetensors, .pth, .pt, .npz ...),
    recognised by its content, or one of its networks, FILE:student; a folder that transformers or timm
    wrote; `timm:NAME`; `hf:NAME` (docs/weights.md).
    architecture: the network that a file or folder holds, `timm:NAME` or `torchvision:NAME`, where omma does
    not recognise it.
    allow_partial: accept files with less than 95 % of the encoder's parameters. `provenance["loaded"]`
    reports what became of a published file's tensors. Raises a one-line ValueError: what, where, remedy.
    """
    if isinstance(model, Model):
        return model
    with translated(str(model)):
        if architecture is not None:
            return _load_as(model, architecture, allow_partial)
        return _load(model, allow_partial)


def named(
    model: str | Path | Model, *, architecture: str | None = None, allow_partial: bool = False
) -> tuple[Model, str]:
    """A model that is loaded if it is not yet, and what it is called; raises as `load` does."""
    if isinstance(model, Model):
        return model, str(getattr(model, "name", "model"))
    return load(model, architecture=architecture, allow_partial=allow_partial), str(model)


def _load(model: str | Path, allow_partial: bool) -> Model:
    name, (path, entry) = str(model), _split_entry(model)
    if name.startswith("timm:"):
        return _load_library(hub.fetch_timm(name), name, allow_partial)
    if name.startswith("hf:") or _is_hf_folder(path):
        folder = hub.fetch_hf(name)
        return _load_folder(folder, read_file.read(folder).tensors, name, allow_partial)
    if _is_omma_model(path) and entry is None:
        return store.load(path)
    content = read_file.read(path, entry)
    notes = [f"taken from its entry {content.container!r}"] if content.container else []
    if path.name in read_file.WEIGHTS and _is_hf_folder(path.parent):
        return _load_folder(path.parent, content.tensors, name, allow_partial, notes)
    try:
        return _load_published(
            content.tensors, name, allow_partial, notes, path.parent, other_entries=content.others
        )
    except ValueError as error:
        fitting = misfit.alike(content.tensors, path.stem) if NO_NETWORK in str(error) else []
        if not fitting:
            raise
        raise ValueError(
            f"{name} does not say which network it holds; it fits {' and '.join(fitting)}: name the right "
            f"one, --as {fitting[0]}"
        ) from error


def _load_as(model: str | Path, architecture: str, allow_partial: bool) -> Model:
    """Load a file or folder as the named network of timm or torchvision."""
    name, (path, entry) = str(model), _split_entry(model)
    ours = path.is_dir() and ((path / store.DESCRIPTION).is_file() or (path / "checkpoints").is_dir())
    if name.startswith("timm:") or ours or (path.name == store.WEIGHTS and _is_omma_model(path)):
        raise ValueError(f"{name} says which network it is: leave out --as {architecture}")
    path = hub.fetch_hf(name) if name.startswith("hf:") else path
    if not path.exists():
        raise ValueError(f"{name} does not exist; give a file of weights, or a folder with one")
    content = read_file.read(path, entry)
    folder = path if path.is_dir() else path.parent
    config = hub.read_config(folder) if (folder / hub.CONFIG).is_file() else {}
    with published.readable(name):
        unpacked = library.unpack(architecture, content.tensors, config, name)
        if content.container:
            note = f"taken from its entry {content.container!r}"
            unpacked = unpacked._replace(notes=(note, *unpacked.notes))
        try:
            return _load_library(unpacked, name, allow_partial)
        except misfit.Misfit as error:
            fitting = misfit.alike(content.tensors, unpacked.architecture, path.stem)
            fitting = ", ".join(each for each in fitting if each != architecture)
            raise ValueError(
                f"{error}; {f'it fits {fitting}' if fitting else 'name the right one'}"
            ) from error


def fit(model: Model, encoder: Backbone, allow_partial: bool = False) -> list[str]:
    """Load a model's weights into another encoder of the same family; returns lines that report conversions.

    Image size, patch and channels may differ: positions are interpolated, the first layer's kernel is
    resampled and converted. Raises a one-line ValueError if less than 95 % of the parameters would be filled.
    """
    own = model.encoder
    state = own.state_dict()
    size = getattr(own, "image_size", model.preprocess.size)
    grid, prefix_rows = None, 0
    if "pos_embed" in state:
        rows, columns = own.grid(size, size)
        prefix_rows = state["pos_embed"].shape[1] - rows * columns
        grid = (rows, columns) if prefix_rows in (0, own.prefix) else None  # else an unknown layout
    recognised = Recognised(
        source=own.name,
        dialect="omma",
        spec=own.spec(),
        tensors=state,
        origin={name: (name,) for name in state},
        conversions={},
        grid=grid,
        prefix_rows=prefix_rows,
        unused=(),
        settings={},
        notes=(),
    )
    return published.fit(recognised, encoder, allow_partial).lines()


def _split_entry(model: str | Path) -> tuple[Path, str | None]:
    """Split FILE:student into the file and the entry; other paths have no entry."""
    file, _, entry = str(model).rpartition(":")
    if Path(model).exists() or not Path(file).is_file():
        return Path(model), None
    return Path(file), entry


def _is_omma_model(path: Path) -> bool:
    """Did omma write it? Missing paths count too, so that `store.load` reports what is wrong."""
    if path.is_dir() or not path.exists():
        return True
    candidates = (path.with_suffix(".json"), path.with_name(store.DESCRIPTION))
    file = next((file for file in candidates if file.is_file()), None)
    if path.suffix != ".safetensors" or file is None:
        return False
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return file.name == store.DESCRIPTION
    return isinstance(description, dict) and "spec" in description


def _is_hf_folder(path: Path) -> bool:
    """Is it a folder that transformers or timm wrote: config.json, but nothing of omma's?"""
    if not path.is_dir() or not (path / hub.CONFIG).is_file() or (path / store.DESCRIPTION).is_file():
        return False
    return not (path / "checkpoints").is_dir()


def _load_folder(
    folder: Path, tensors: Mapping[str, Tensor], source: str, allow_partial: bool, notes: Sequence[str] = ()
) -> Model:
    """Load weights with the config.json, and preprocessor_config.json if any, in their folder."""
    config, preprocessor = hub.read_config(folder), None
    if (folder / hub.PREPROCESSOR).is_file():
        preprocessor = hub.read_config(folder, hub.PREPROCESSOR)
    cfg = config.get("pretrained_cfg")
    settings: dict[str, Any] = {"config": config, "preprocessor": preprocessor, "timm_cfg": cfg}
    network = library.named_in(config)
    if network is None:
        try:
            return _load_published(tensors, source, allow_partial, notes, folder, **settings)
        except ValueError as error:
            architecture = config.get("architecture")
            if not isinstance(architecture, str) or find_spec("timm") is not None:
                raise
            raise ValueError(
                f"{source} is timm's {architecture}: {install_command('timm')} to use it"
            ) from error
    try:
        with published.readable(source):
            unpacked = library.unpack(network, tensors, config, source)
            return _load_library(unpacked._replace(notes=(*notes, *unpacked.notes)), source, allow_partial)
    except ValueError as error:
        notes = [*notes, f"not compared with timm's own network: {message(error)[:300].strip()}"]
        try:
            return _load_published(tensors, source, allow_partial, notes, folder, **settings)
        except ValueError:
            raise error from None


def _load_published(
    tensors: Mapping[str, Tensor],
    source: str,
    allow_partial: bool,
    notes: Sequence[str] = (),
    folder: Path | None = None,
    **settings: Any,
) -> Model:
    """Load a published network into omma's form. settings: further arguments of `published.into_model`."""
    encoder, preprocess, report = published.into_model(
        tensors, source=source, allow_partial=allow_partial, **settings
    )
    extras = dalle.extras_of(tensors, encoder.dim)
    if extras.tensors:
        notes = [*notes, "its output layer of codes is kept beside the encoder"]
    else:
        extras, used, lines = clip.extras_of(tensors, encoder, source, settings.get("config"))
        extras = extras if folder is None else clip.with_merges(extras, folder)
        report = dataclasses.replace(report, unused=tuple(name for name in report.unused if name not in used))
        notes = [*lines, *notes]
    return Model(encoder, preprocess, {"source": source, "loaded": [*report.lines(), *notes]}, extras)


def _load_library(weights: hub.LibraryWeights, source: str, allow_partial: bool) -> Model:
    """A library's network: omma's own backbone if that computes the same features, else theirs, wrapped."""
    spec = weights.spec()
    size = int((weights.config.get("input_size") or (3, spec["image_size"]))[-1])
    outline = backbones.outline(**spec)
    expected = outline.state_dict()
    unused = library.beside(weights, expected)
    weights = weights._replace(tensors={n: x for n, x in weights.tensors.items() if n not in unused})
    if (problem := misfit.reasons(weights, expected)) and not allow_partial:
        raise misfit.Misfit(f"{source} does not fit {weights.name}: {problem}")
    tensors = {n: x for n, x in weights.tensors.items() if n in expected and x.shape == expected[n].shape}
    if bad := next((n for n, x in tensors.items() if x.is_floating_point() and not x.isfinite().all()), None):
        raise ValueError(f"{source} is damaged: {bad} has values that are not finite")
    wrapped = backbones.build(**spec).eval()
    wrapped.load_state_dict(tensors, strict=False)
    preprocess, note = published.preprocess(
        None, size=size, channels=weights.channels, timm_cfg=weights.config
    )
    why, encoder, lines = "omma's backbone computes other features from these weights", wrapped, ()
    try:
        own = _load_published(weights.tensors, source, allow_partial, timm_cfg=weights.config)
        if _same_features(own.encoder, wrapped, size, pooled=bool(weights.arguments)):
            encoder, lines, preprocess = own.encoder, own.provenance["loaded"], own.preprocess
    except ValueError as error:
        why = "omma has none of this kind" if NO_NETWORK in str(error) else str(error)
    if encoder is wrapped:
        state = (
            f"{len(expected) - len(tensors)} tensors new ({problem})"
            if problem
            else "all parameters unchanged"
        )
        lines = [f"{source}: {weights.library}'s own network, {state} ({why})", note]
    extras, heads = library.classifier(weights, encoder)
    if weights.assumed:
        lines = [text for text in lines if text != note]
        lines = [
            *lines,
            f"no settings lie beside it: {weights.assumed} are assumed, {library.normalisation(preprocess)}",
        ]
    if unused or heads:
        lines = [*lines, f"in the file, not used: {grouped({*unused, *heads})}"]
    return Model(encoder, preprocess, {"source": source, "loaded": [*weights.notes, *lines]}, extras)


@torch.inference_mode()
def _same_features(one: Backbone, other: Backbone, size: int, pooled: bool) -> bool:
    """Do both compute the same features? Equal parameter names do not guarantee it. pooled: those, too."""
    if one.channels != other.channels:
        return False
    noise = torch.randn(1, one.channels, size, size, generator=torch.Generator().manual_seed(0))
    a, b = one(noise), other(noise)
    pairs = [(a.patches, b.patches), *([(a.pooled, b.pooled)] if pooled else [])]
    return all(
        x.shape == y.shape and bool((x - y).abs().max() <= 1e-3 * y.abs().max().clamp(min=1))
        for x, y in pairs
    )
