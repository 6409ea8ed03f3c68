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
from omma.backbones import external
from omma.core.errors import message
from omma.core.explain import translated
from omma.core.protocols import Backbone, Extras
from omma.weights import hub, published, read_file, store
from omma.weights.model import Model
from omma.weights.published import clip, dalle
from omma.weights.published.recognise import Recognised
from omma.weights.published.report import grouped


def load(model: str | Path, *, allow_partial: bool = False) -> Model:
    """Load an encoder, on the CPU in fp32.

    model: a run folder or its model.safetensors; a published file (.safetensors, .pth, .pt, .npz ...),
    recognised by its content, or one of its networks, FILE:student; a folder that transformers or timm
    wrote; `timm:NAME`; `hf:NAME` (docs/weights.md).
    allow_partial: accept files with less than 95 % of the encoder's parameters. `provenance["loaded"]`
    reports what became of a published file's tensors. Raises a one-line ValueError: what, where, remedy.
    """
    with translated(str(model)):
        return _load(model, allow_partial)


def _load(model: str | Path, allow_partial: bool) -> Model:
    name, (path, entry) = str(model), _split_entry(model)
    if name.startswith("timm:"):
        return _load_timm(hub.fetch_timm(name), name, allow_partial)
    if name.startswith("hf:") or _is_hf_folder(path):
        folder = hub.fetch_hf(name)
        return _load_folder(folder, read_file.read(folder).tensors, name, allow_partial)
    if _is_omma_model(path) and entry is None:
        return store.load(path)
    content = read_file.read(path, entry)
    notes = [f"taken from its entry {content.container!r}"] if content.container else []
    if path.name in read_file.WEIGHTS and _is_hf_folder(path.parent):
        return _load_folder(path.parent, content.tensors, name, allow_partial, notes)
    return _load_published(
        content.tensors, name, allow_partial, notes, path.parent, other_entries=content.others
    )


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
    with published.readable(source):
        timm_weights = hub.as_timm_weights(tensors, config)
    if timm_weights is None:
        try:
            return _load_published(tensors, source, allow_partial, notes, folder, **settings)
        except ValueError as error:
            architecture = config.get("architecture")
            if not isinstance(architecture, str) or find_spec("timm") is not None:
                raise
            raise ValueError(
                f"{source} is timm's {architecture}: pip install 'omma[timm]' to use it"
            ) from error
    try:
        with published.readable(source):
            return _load_timm(timm_weights, source, allow_partial)
    except ValueError as error:
        notes = [*notes, f"not compared with timm's own network: {message(error)[:300]}"]
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


def _load_timm(weights: hub.TimmWeights, source: str, allow_partial: bool) -> Model:
    """A timm network as omma's own backbone if that computes the same features, else timm's, wrapped."""
    size = int((weights.config.get("input_size") or (3, 224, 224))[-1])
    spec: dict[str, Any] = {"name": f"timm:{weights.architecture}", "image_size": weights.image_size or size}
    spec |= {"channels": weights.channels, "arguments": weights.arguments}
    expected = backbones.outline(**spec).state_dict()
    heads = {
        name for name in weights.tensors if name not in expected and name.split(".")[0] in external.HEADS
    }
    tensors = {name: x for name, x in weights.tensors.items() if name not in heads}
    unfit = expected.keys() ^ tensors.keys() or {
        name for name, x in tensors.items() if x.shape != expected[name].shape
    }
    if unfit:
        few = ", ".join(sorted(unfit)[:3])
        raise ValueError(
            f"{source} does not fit timm's {weights.architecture} ({len(unfit)} tensors: {few}, ...)"
        )
    wrapped = backbones.build(**spec).eval()
    wrapped.load_state_dict(tensors)
    fits = "weight" in weights.classifier and weights.classifier["weight"].shape[1] == wrapped.dim
    extras = Extras({f"classifier.{name}": x for name, x in weights.classifier.items()} if fits else {})
    try:
        own = _load_published(weights.tensors, source, allow_partial, timm_cfg=weights.config)
        why = "omma's backbone computes other features from these weights"
        if _same_features(own.encoder, wrapped, size, pooled=bool(weights.arguments)):
            own.extras = extras
            return own
    except ValueError as error:
        why = str(error)
    preprocess, note = published.preprocess(
        None, size=size, channels=weights.channels, timm_cfg=weights.config
    )
    lines = [f"{source}: timm's own network, all parameters unchanged ({why})", note]
    if heads:
        lines.append(f"in the file, not used: {grouped(heads)}")
    return Model(wrapped, preprocess, {"source": source, "loaded": lines}, extras)


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
