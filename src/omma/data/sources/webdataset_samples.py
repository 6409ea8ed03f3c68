"""List the samples in WebDataset shards: images with their labels and captions."""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from omma.core.errors import line
from omma.core.protocols import BadImage
from omma.data.sources.labels import Annotations
from omma.data.sources.layout import from_folders
from omma.data.sources.listing import Listing
from omma.data.sources.members import Member, tar_members
from omma.data.sources.names import IMAGES, NO_TEXT, inaccessible, is_text, printable
from omma.data.sources.readers import Archive
from omma.data.sources.table_labels import from_table
from omma.data.sources.webdataset_files import FETCHERS, Shards

_LARGEST_TEXT = 1 << 20  # bytes of a member that holds a label, captions or JSON
_FURTHER = "a further image of its sample"
_TEXTS = ("txt", "text", "caption")
_KEYS = {
    "label": "label",
    "cls": "label",
    "labels": "label",
    "class": "class",
    "class_name": "class",
    "split": "split",
}  # of JSON


def list_shards(store: Shards, tell: Callable[[str], None]) -> Listing:
    """One pass over all shards: images in the shards' order, with their samples' labels and captions.

    A damaged shard is listed as skipped, with what is lost; the images before and behind the damage are read.
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
class _Fields:
    """What the members of one name say of its images."""

    values: dict[str, Any] = field(default_factory=dict)
    texts: list[bytes] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # that say it


class _Sample(NamedTuple):
    """An image with its annotations."""

    path: str
    folder: str  # the shard's folder, then the one within the shard
    where: tuple[int, ...]
    values: dict[str, Any]
    texts: list[bytes]


def _samples(store: Shards, number: int, skipped: list[tuple[str, str]]) -> list[_Sample]:
    """The images of a shard, in its order.

    Of a.jpg and a.seg.jpg the first is the image of sample a. Without it all images of that name are images:
    a.1.jpg and a.2.jpg, each with a.cls and with the members that bear its own name, such as a.1.cls.
    """
    shard, file = store.shards[number].name, str(store.local(number))
    try:
        members, damages = tar_members(file)
    except OSError as error:
        skipped.append((shard, str(inaccessible(error))))
        return []
    except ValueError as error:
        skipped.append((shard, line(error).removeprefix(f"{file}: ")))
        return []
    skipped += [(shard, damage) for damage in damages]
    images: defaultdict[str, list[tuple[str, Member]]] = defaultdict(
        list
    )  # [(name up to the last dot, member)]
    fields: defaultdict[str, _Fields] = defaultdict(_Fields)
    archive = Archive(file)
    for member in members:
        if reason := _sort(member, images, fields, archive):
            skipped.append((printable(f"{shard}/{member.name}"), reason))
    samples, used = [], set[str]()
    for key, candidates in images.items():
        plain = [image for image in candidates if image[0] == key][:1]
        for stem, member in plain or candidates:
            own = [fields[name] for name in dict.fromkeys((key, stem)) if name in fields]
            used |= {key, stem}
            folders = (shard.rpartition("/")[0], member.name.rpartition("/")[0])
            samples.append(
                _Sample(
                    path=f"{shard}/{member.name}",
                    folder="/".join(folder for folder in folders if folder),
                    where=(number, *member.where),
                    values={key: value for each in own for key, value in each.values.items()},
                    texts=[text for each in own for text in each.texts],
                )
            )
        skipped += [
            (f"{shard}/{member.name}", _FURTHER)
            for _, member in candidates
            if plain and member is not plain[0][1]
        ]
    skipped += [
        (f"{shard}/{file}", "of no image")
        for name in fields
        if name not in used
        for file in fields[name].files
    ]
    return samples


def _sort(
    member: Member,
    images: defaultdict[str, list[tuple[str, Member]]],
    fields: defaultdict[str, _Fields],
    archive: Archive,
) -> str:
    """Add a member to the images or to their annotations; returns why it cannot be used, or ""."""
    key, stem, kind = _split(member.name)
    if not key or member.reason:
        return member.reason if key else ""
    if not is_text(member.name):
        return NO_TEXT
    if kind in IMAGES:
        images[key].append((stem, member))
        return ""
    if kind not in ("cls", "json", *_TEXTS):
        return "not an image"
    return _read_field(fields[stem], kind, member, archive)


def _split(name: str) -> tuple[str, str, str]:
    """The name up to the first dot of the file and up to the last, and the extension; "" if hidden."""
    folder, _, file = name.rpartition("/")
    key, stem, kind = file.partition(".")[0], *(file.rpartition(".")[::2] if "." in file else (file, ""))
    if not key or any(part.startswith((".", "__MACOSX")) for part in folder.split("/")):
        return "", "", ""
    start = f"{folder}/" if folder else ""
    return start + key, start + stem, kind.lower()


def _read_field(fields: _Fields, kind: str, member: Member, archive: Archive) -> str:
    """Add what a member says; returns why it cannot be used, or ""."""
    if member.where[2] > _LARGEST_TEXT:
        return "over 1 MB"
    try:
        data = archive.bytes(np.array(member.where))
    except BadImage as error:
        return str(error)
    fields.files.append(member.name)
    if kind in _TEXTS:
        fields.texts.append(data)
    elif kind == "cls":
        fields.values["label"] = data.decode("utf-8-sig", "replace").strip()
    else:
        return _read_json(fields, data)
    return ""


def _read_json(fields: _Fields, data: bytes) -> str:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return "not readable as JSON"
    if not isinstance(content, dict):
        return ""  # an array of boxes, say
    for name, key in _KEYS.items():
        value = content.get(name)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if key in fields.values:
            continue
        if isinstance(value, str | int | float):
            fields.values[key] = str(value)
        elif (
            key == "label"
            and isinstance(value, list)
            and all(isinstance(x, str | int | float) for x in value)
        ):
            fields.values[key] = value  # several labels, or none of them
    for name in ("text", "texts", "caption", "captions"):
        texts = content.get(name)
        texts = texts if isinstance(texts, list) else [texts]
        fields.texts += [text.encode(errors="replace") for text in texts if isinstance(text, str)]
    return ""


def _column(values: list[Any]) -> pa.Array:
    """Texts, or lists of texts if any value is a list of several."""
    if not any(isinstance(value, list) and len(value) > 1 for value in values):
        return pa.array([None if isinstance(value, list) else value for value in values], pa.large_string())
    lists = [value if isinstance(value, list) or value is None else [value] for value in values]
    if any(isinstance(x, str) for value in lists for x in value or ()):
        lists = [None if value is None else [str(x) for x in value] for value in lists]
    return pa.array(lists)


def _annotations(samples: Sequence[_Sample]) -> Annotations:
    """Labels, splits and captions from the samples' members; else labels and splits from folder names."""
    columns: dict[str, Any] = {}
    for key in ("label", "class", "split"):
        if any(key in sample.values for sample in samples):
            columns[key] = _column([sample.values.get(key) for sample in samples])
    if any(sample.texts for sample in samples):
        # many shards repeat a caption in .txt and .json
        texts = [list(dict.fromkeys(sample.texts)) for sample in samples]
        columns["text"] = pa.array(texts, pa.large_list(pa.large_binary()))
    table = from_table(pa.table(columns)) if columns else Annotations()
    runs = [(name, len(list(same))) for name, same in itertools.groupby(sample.folder for sample in samples)]
    folders = from_folders([name for name, _ in runs], [count for _, count in runs])
    named = folders if table.labels is None and table.label_sets is None else table
    return Annotations(
        labels=named.labels,
        label_sets=named.label_sets,
        classes=named.classes,
        splits=folders.splits if table.splits is None else table.splits,
        text=table.text,
        notes=(*table.notes, *(folders.notes if named is folders else ())),
    )
