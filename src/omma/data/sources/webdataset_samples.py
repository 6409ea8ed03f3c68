"""List the samples in WebDataset shards: images with their labels and captions."""

import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from omma.core.errors import line
from omma.data.sources.labels import Annotations, from_folders, from_table
from omma.data.sources.listing import IMAGES, Listing
from omma.data.sources.readers import LARGEST
from omma.data.sources.webdataset_files import FETCHERS, Shards

_LARGEST_TEXT = 1 << 20  # bytes of a member that holds a label, captions or JSON
_FURTHER = "a further image of its sample"
_TEXTS = ("txt", "text", "caption")
_KEYS = {
    "label": "label",
    "cls": "label",
    "class": "class",
    "class_name": "class",
    "split": "split",
}  # of JSON


def list_shards(store: Shards, tell: Callable[[str], None]) -> Listing:
    """One pass over all shards: images in the shards' order, with their samples' labels and captions.

    A shard that cannot be read to its end is listed as skipped; the images before the damage are kept.
    """
    total = sum(shard.size for shard in store.shards)
    download = "fetching each, " * any(shard.remote for shard in store.shards)
    tell(f"{len(store.shards):,} shards ({total / 1e9:.1f} GB): {download}listing their contents, once")
    samples: list[_Sample] = []
    skipped: list[tuple[str, str]] = []
    with ThreadPoolExecutor(FETCHERS) as pool:
        for first in range(0, len(store.shards), FETCHERS):
            numbers = range(first, min(first + FETCHERS, len(store.shards)))
            list(pool.map(store.fetch, numbers))
            for number in numbers:
                samples += _samples(store, number, skipped)
    return Listing(
        store=store,
        paths=pa.array([sample.path for sample in samples], pa.large_string()),
        where=np.array([sample.where for sample in samples], np.int64).reshape(-1, 6),
        annotations=_annotations(samples),
        skipped=skipped,
    )


@dataclass
class _Sample:
    """The members of one name in a shard."""

    path: str = ""
    folder: str = ""  # the shard's folder, then the one within the shard
    where: tuple[int, ...] = ()
    simple: bool = False  # whether the name is like a.jpg, rather than a.seg.jpg
    fields: dict[str, Any] = field(default_factory=dict)
    texts: list[bytes] = field(default_factory=list)


def _samples(store: Shards, number: int, skipped: list[tuple[str, str]]) -> Iterator[_Sample]:
    shard, samples = store.shards[number], {}
    try:
        with tarfile.open(store.local(number), "r:") as archive:
            for member in archive:
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # tarfile would keep all of them
                if member.isreg() and (
                    reason := _take(samples, skipped, number, shard.name, member, archive)
                ):
                    path = f"{shard.name}/{member.name.removeprefix('./')}"
                    skipped.append((path.encode(errors="replace").decode(), reason))
    except (tarfile.TarError, OSError, EOFError) as error:
        skipped.append((shard.name, f"not a readable tar from somewhere on ({line(error)})"))
    return (sample for sample in samples.values() if sample.where)


def _take(
    samples: dict[str, _Sample],
    skipped: list[tuple[str, str]],
    number: int,
    shard: str,
    member: tarfile.TarInfo,
    archive: tarfile.TarFile,
) -> str | None:
    """Add a member to its sample; returns why it was skipped, or None."""
    name = member.name.removeprefix("./")
    folder, _, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    if not stem or folder.startswith("__MACOSX"):  # hidden
        return None
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    sample = samples.setdefault(f"{folder}/{stem}", _Sample())
    extension = extension.lower()
    kind = extension.rpartition(".")[2]
    if kind in IMAGES:
        simple = kind == extension
        if sample.where and (sample.simple or not simple):
            return _FURTHER
        if member.issparse() or member.size > LARGEST:
            return "sparse" if member.issparse() else f"unpacks to {member.size / 1e9:.1f} GB"
        if sample.where:
            skipped.append((sample.path, _FURTHER))
        sample.where = (number, member.offset_data, member.size, member.size, -1, -1)
        sample.path, sample.simple = f"{shard}/{name}", simple
        sample.folder = "/".join(part for part in (shard.rpartition("/")[0], folder) if part)
        return None
    if extension not in ("cls", "json", *_TEXTS):
        return "not an image"
    stream = archive.extractfile(member)
    if stream is None or member.size > _LARGEST_TEXT:
        return "over 1 MB"
    data = stream.read()
    if extension in _TEXTS:
        sample.texts.append(data)
    elif extension == "cls":
        sample.fields["label"] = data.decode("utf-8-sig", "replace").strip()
    else:
        return _read_json(sample, data)
    return None


def _read_json(sample: _Sample, data: bytes) -> str | None:
    try:
        content = json.loads(data)
    except ValueError:
        return "not readable as JSON"
    if not isinstance(content, dict):
        return None  # an array of boxes, say
    for name, key in _KEYS.items():
        value = content.get(name)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(value, str | int | float) and key not in sample.fields:
            sample.fields[key] = str(value)
    for name in ("text", "texts", "caption", "captions"):
        texts = content.get(name)
        texts = texts if isinstance(texts, list) else [texts]
        sample.texts += [text.encode(errors="replace") for text in texts if isinstance(text, str)]
    return None


def _annotations(samples: Sequence[_Sample]) -> Annotations:
    """Labels, splits and captions from the samples' members; else labels and splits from folder names."""
    columns: dict[str, Any] = {}
    for key in ("label", "class", "split"):
        if any(key in sample.fields for sample in samples):
            columns[key] = pa.array([sample.fields.get(key) for sample in samples], pa.large_string())
    if any(sample.texts for sample in samples):
        # many shards repeat a caption in .txt and .json
        texts = [list(dict.fromkeys(sample.texts)) for sample in samples]
        columns["text"] = pa.array(texts, pa.large_list(pa.large_binary()))
    table = from_table(pa.table(columns)) if columns else Annotations()
    runs = [(name, len(list(same))) for name, same in itertools.groupby(sample.folder for sample in samples)]
    folders = from_folders([name for name, _ in runs], [count for _, count in runs])
    named = folders if table.labels is None else table
    return Annotations(
        labels=named.labels,
        classes=named.classes,
        splits=folders.splits if table.splits is None else table.splits,
        text=table.text,
        notes=(*table.notes, *(folders.notes if named is folders else ())),
    )
