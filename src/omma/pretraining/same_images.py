"""A run's images from one start to the next: are they the same, and if not, what changed?"""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from omma.core import dist
from omma.core.words import count
from omma.data.sources import identity
from omma.data.sources.indexed import IndexedImages
from omma.pretraining.choose import Facts
from omma.pretraining.data import Data
from omma.pretraining.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a run that has begun knows of its images; everything is empty before it begins."""

    facts: Mapping[str, Any] = field(
        default_factory=dict
    )  # `images`, `shorter_side`, by which it was planned
    preprocess: Mapping[str, Any] | None = None  # measured when it began
    changes: str = ""  # since then, accepted by the user
    notes: tuple[str, ...] = ()

    def planned(self, facts: Facts) -> Facts:
        """The facts by which the run was planned, where they are recorded."""
        return dataclasses.replace(facts, **self.facts)


def recall(folder: RunFolder, images: IndexedImages, accept_changed: bool) -> Known:
    """Compare the images with those that the run in this folder began with, if one did; all processes call.

    Raises ValueError that names what changed, unless the user accepts it.
    """
    return dist.on_first(lambda: _recall(folder, images, accept_changed))


def _recall(folder: RunFolder, images: IndexedImages, accept_changed: bool) -> Known:
    config = folder.config()
    if "fingerprint" not in config:
        return Known()
    stored = identity.read(folder.path / identity.RECORD)
    facts = stored[1] if stored else {}
    known = Known(facts=facts.get("planned", {}), preprocess=facts.get("preprocess"))
    if config["fingerprint"] in (images.fingerprint, images.fingerprint_of_0_1):
        return known
    changes, touched = _changes(stored, images, config)
    if changes and not accept_changed:
        raise ValueError(
            f"{folder.path}: since this run began, {changes}: go on with the images as they are now with "
            f"--accept-changed-data, or start a new run from its weights with --init {folder.path} --out NEW"
        )
    note = f"since the run began, {changes}: it goes on with the images as they are now"
    if not changes:
        note = (
            f"{count(touched, 'file was', 'files were')} saved again with the same content" if touched else ""
        )
    return dataclasses.replace(known, changes=changes, notes=(note,) if note else ())


def _changes(
    stored: tuple[pa.Table, dict[str, Any]] | None, images: IndexedImages, config: Mapping[str, Any]
) -> tuple[str, int]:
    """What changed, "" if nothing that matters; and the number of files that only have another time."""
    if stored is None:
        return "its images changed (which ones was not recorded when it began)", 0
    record, facts = stored
    if facts["channels"] != images.channels:
        raise ValueError(
            f"the run's images have {facts['channels']} channels and these have {images.channels}: "
            "choose another --out"
        )
    changes = identity.compare(record, images.identity)
    parts = [str(changes)] if changes else []
    used = {"splits": True, "labels": "labels" in config, "captions": "tokenizer" in config}
    if not changes.added and not changes.removed:
        now = _annotations(images)
        parts += [f"their {kind} changed" for kind in now if used[kind] and now[kind] != facts[kind]]
    return ", ".join(parts), changes.touched


def _annotations(images: IndexedImages) -> dict[str, str]:
    """Hashes of what is known of the images beside their pixels."""
    labels = images.labels
    named = None if labels is None else [images.classes[k] if k >= 0 else None for k in labels.tolist()]
    if images.label_sets is not None:
        named = [images.classes, images.label_sets.tolist()]
    columns = {
        "labels": named,
        "splits": None if images.splits is None else images.splits.tolist(),
        "captions": None if images.text is None else images.text.to_pylist(),
    }
    return {name: hashlib.sha256(repr(column).encode()).hexdigest() for name, column in columns.items()}


def remember(folder: RunFolder, used: Data, known: Known, facts: Facts, preprocess: Any) -> None:
    """Record the images where that is not done, or where they changed; hold the run's lock."""
    images = used.source
    config = folder.config()
    same = config["fingerprint"] == images.fingerprint and config["images"] == images.source
    if same and (folder.path / identity.RECORD).exists():
        return
    planned = {"images": facts.images, "shorter_side": facts.shorter_side}
    identity.write(
        folder.path / identity.RECORD,
        images.identity.record(used.training),
        {
            "planned": dict(known.facts) or planned,
            "preprocess": known.preprocess or preprocess,
            "channels": images.channels,
            **_annotations(images),
        },
    )
    history = {"data_changes": [*config.get("data_changes", ()), known.changes]} if known.changes else {}
    folder.revise({"images": images.source, "fingerprint": images.fingerprint, **history})


# ---------------------------------------------------------------- default names
def default_folder(default: Path, images: IndexedImages) -> RunFolder:
    """The first of NAME, NAME-2, NAME-3, ... that is free or holds a run on these images."""
    with dist.propagate_errors():
        names = (default if n == 1 else default.with_name(f"{default.name}-{n}") for n in itertools.count(1))
        path = next(filter(lambda path: _is_of(RunFolder(path), images), names))
    return RunFolder(dist.broadcast(path))


def _is_of(folder: RunFolder, images: IndexedImages) -> bool:
    config = folder.config()
    if not config:
        return True
    if config.get("fingerprint") in (images.fingerprint, images.fingerprint_of_0_1):
        return True
    before, now = str(config.get("images", "")), images.source
    if "://" in before or "://" in now:
        return before == now
    return os.path.realpath(os.path.expanduser(before)) == os.path.realpath(os.path.expanduser(now))
