"""WebDataset shards: .tar files, local or at any fsspec address, whose members of one name are one sample.

`000.tar` holds `a.jpg`, `a.cls`, `a.txt`, `a.json`, `b.jpg`, ...: what follows the first dot says what a
member is of sample `a`. Local shards are read in place; remote ones are fetched whole into a folder of
bounded size, whose oldest go first, or asked for single images where few are wanted.
"""

import glob as globbing
import hashlib
import itertools
import json
import os
import re
import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
from filelock import FileLock

from omma import files
from omma.data.decode import decode
from omma.data.labels import Known, from_folders, from_table
from omma.data.listing import IMAGES, Listing
from omma.data.stores import LARGEST, Archive
from omma.errors import line
from omma.protocols import BadImage

TRIES = 3  # to fetch something, with a pause between
PAUSE = 2.0  # seconds, twice as long each time
MANY = 8  # images asked for one by one, after which a remote shard is fetched whole
OPEN = 32  # shards held open in each process
FETCHERS = 4  # shards fetched at a time
_NOTE = 1 << 20  # bytes of a member that says something of an image
_CHANGES = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created", "generation")  # of fsspec's
_FURTHER = "a further image of its sample"
_TEXTS = ("txt", "text", "caption")
_KEYS = {
    "label": "label",
    "cls": "label",
    "class": "class",
    "class_name": "class",
    "split": "split",
}  # of JSON
_Got = TypeVar("_Got")


@dataclass(frozen=True)
class Shard:
    """One .tar file: where it is, its size, and what changes when it does."""

    address: str
    name: str  # relative to what all shards have in common
    size: int
    stamp: str

    @property
    def remote(self) -> bool:
        return "://" in self.address


# ---------------------------------------------------------------- which shards
def expand(pattern: str) -> list[str]:
    """Write out `{000..099}` and `{a,b}`, as shells do; numbers keep their leading zeros."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if found is None:
        return [pattern]
    if found[1] is not None:
        first, last = int(found[1]), int(found[2])
        way = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        parts = [f"{number:0{len(found[1])}}" for number in way]
    else:
        parts = found[3].split(",")
    tails = expand(pattern[found.end() :])
    return [pattern[: found.start()] + part + tail for part in parts for tail in tails]


def find(source: str, given: str) -> list[Shard] | None:
    """The shards of a folder or pattern, in order of their names; None for a source of another kind.

    A folder is one of shards if it holds .tar files and no image, at any depth. Raises ValueError.
    """
    if "://" in source:
        if "." in source.rpartition("/")[2] and not source.endswith(".tar"):
            return None
        return _remote(source, given)
    if os.path.isdir(source):
        names = _tars(source)
    elif source.endswith(".tar") and not os.path.exists(source) and re.search(r"[{*?\[]", source):
        names = sorted(
            name for part in expand(source) for name in (globbing.glob(part, recursive=True) or [part])
        )
        if missing := [name for name in names if not os.path.exists(name)]:
            raise ValueError(f"{given}: {missing[0]} is not there; give a pattern of existing .tar files")
    else:
        return None
    stats = [os.stat(name) for name in names]
    found = [(n, s.st_size, f"{s.st_size} {s.st_mtime_ns}") for n, s in zip(names, stats, strict=True)]
    return _shards(found) if names else None


def _tars(root: str) -> list[str]:
    """All .tar files below a folder; none where an image lies beside them, which ends the search."""
    found, todo = [], [root]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    extension = entry.name.rpartition(".")[2].lower()
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    elif extension in IMAGES:
                        return []
                    elif extension == "tar":
                        found.append(entry.path)
        except OSError:  # whoever lists it as a folder says so
            continue
    return sorted(found)


def _shards(found: list[tuple[str, int, str]]) -> list[Shard]:
    levels = zip(*(address.split("/")[:-1] for address, _, _ in found))
    start = sum(
        len(level[0]) + 1 for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels)
    )
    return [Shard(address, address[start:], size, stamp) for address, size, stamp in found]


def _remote(source: str, given: str) -> list[Shard] | None:
    try:
        system, path = fsspec.core.url_to_fs(source)
        if not source.endswith(".tar"):
            infos = {
                name: info for name, info in system.find(path, detail=True).items() if name.endswith(".tar")
            }
            if not infos:
                raise ValueError(
                    f"{given}: no .tar files in it, and other remote folders are not listed; give a manifest "
                    "with a `path` column"
                )
        elif globbing.has_magic(path):
            infos = {
                name: info for part in expand(path) for name, info in system.glob(part, detail=True).items()
            }
        else:
            with ThreadPoolExecutor(16) as pool:
                names = expand(path)
                infos = dict(zip(names, pool.map(system.info, names), strict=True))
    except ValueError:
        raise
    except Exception as error:  # a package that is not installed, whatever a network's library raises
        raise ValueError(f"{given}: cannot be found ({line(error)}); check the address") from None
    if not infos:
        raise ValueError(f"{given}: no such shards; check the address")
    found = []
    for name, info in sorted(infos.items()):
        changes = " ".join(str(info[key]) for key in _CHANGES if info.get(key) is not None)
        found.append((system.unstrip_protocol(name), int(info["size"] or 0), f"{info['size']} {changes}"))
    return _shards(found)


# ---------------------------------------------------------------- the store
@dataclass
class Shards:
    """Images in .tar files; `where` is [shard, offset, stored bytes, size, -1, -1], as `Archive` has them.

    `folder` holds copies of remote shards. All processes and runs share it: half of what would be free on its
    disk without them is theirs, and those that were not asked for for the longest time are given up for
    others.
    """

    shards: list[Shard]
    folder: str
    _open: dict[int, Archive] = field(default_factory=dict, repr=False)
    _asked: Counter[int] = field(default_factory=Counter, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "folder": self.folder, "_open": {}, "_asked": Counter()}

    def load(
        self, path: str, where: np.ndarray | None, channels: int | None, at_least: int | None
    ) -> np.ndarray:
        assert where is not None
        return decode(self.member(where), channels, at_least)

    def member(self, where: np.ndarray) -> bytes:
        """The bytes at `where`."""
        number = int(where[0])
        archive = self._open.get(number)
        if archive is None:
            if not self.here(number):
                self._asked[number] += 1
                if self._asked[number] <= MANY:
                    return self._part(number, int(where[1]), int(where[3]))
                self.fetch(number)
            while len(self._open) >= OPEN:  # threads may both drop one
                self._open.pop(next(iter(self._open)), None)
            self._open[number] = archive = Archive(str(self.local(number)))
        return archive.bytes(where[1:])

    def stamp(self, paths: list[str]) -> str:
        return "\n".join(f"{shard.address} {shard.stamp}" for shard in self.shards)

    def local(self, number: int) -> Path:
        """Where a shard is read."""
        shard = self.shards[number]
        if not shard.remote:
            return Path(shard.address)
        name = hashlib.blake2b(f"{shard.address} {shard.stamp}".encode(), digest_size=16).hexdigest()
        return Path(self.folder) / f"{name}.tar"

    def here(self, number: int) -> bool:
        """Can it be read at once?"""
        return not self.shards[number].remote or self.local(number).exists()

    def fetch(self, number: int) -> None:
        """Have a shard here; it counts as asked for just now. Raises ValueError where that fails."""
        shard, file = self.shards[number], self.local(number)
        if not shard.remote:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.stem}.lock")):
            files.remove_leftovers(file)
            if file.exists():
                os.utime(file)
                return
            self._make_room(shard)
            system, path = fsspec.core.url_to_fs(shard.address)

            def copy() -> None:
                with files.whole(file) as partial:
                    system.get_file(path, str(partial))
                    if shard.size and partial.stat().st_size != shard.size:
                        raise OSError(f"{partial.stat().st_size} of {shard.size} bytes came")

            try:
                _tried(copy)
            except OSError as error:
                raise ValueError(
                    f"{shard.address}: cannot be fetched ({line(error)}); the same command goes on from here"
                ) from None

    def _part(self, number: int, start: int, size: int) -> bytes:
        shard = self.shards[number]
        system, path = fsspec.core.url_to_fs(shard.address)
        try:
            data = _tried(lambda: system.cat_file(path, start=start, end=start + size))
        except OSError as error:
            raise BadImage(f"{shard.name}: {line(error)}") from None
        if len(data) != size:
            raise BadImage(f"{shard.name}: wrong length")
        return data

    def _make_room(self, shard: Shard) -> None:
        folder = Path(self.folder)
        with FileLock(folder / ".room.lock"):
            held = {file: stat for file in folder.glob("*.tar") if (stat := _stat(file))}
            total = sum(stat.st_size for stat in held.values())
            limit = (shutil.disk_usage(folder).free + total) // 2
            if shard.size > limit:
                raise ValueError(
                    f"{shard.address}: {shard.size / 1e9:.1f} GB, and shards may take {limit / 1e9:.1f} GB "
                    f"at {folder}; make room or set OMMA_CACHE to a folder on another disk"
                )
            for file, stat in sorted(held.items(), key=lambda item: item[1].st_mtime_ns):
                if total + shard.size <= limit:
                    break
                file.unlink(missing_ok=True)  # whoever has it open goes on reading it
                total -= stat.st_size


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:  # just given up
        return None


def _tried(what: Callable[[], _Got]) -> _Got:
    """What that gives, after some tries; OSError for whatever a network's library raises."""
    for attempt in range(1, TRIES):
        try:
            return what()
        except FileNotFoundError:
            raise
        except Exception:
            time.sleep(PAUSE * 2 ** (attempt - 1))
    try:
        return what()
    except Exception as error:
        raise OSError(line(error)) from error


# ---------------------------------------------------------------- what is in them
def list_shards(store: Shards, tell: Callable[[str], None]) -> Listing:
    """One pass over all shards: images in the shards' order, with labels and captions from beside them.

    A shard that cannot be read to its end is listed as skipped, and what came before stays.
    """
    total = sum(shard.size for shard in store.shards)
    fetched = "fetching each, " * any(shard.remote for shard in store.shards)
    tell(f"{len(store.shards):,} shards ({total / 1e9:.1f} GB): {fetched}listing what is in them, once")
    found: list[_Sample] = []
    skipped: list[tuple[str, str]] = []
    with ThreadPoolExecutor(FETCHERS) as pool:
        for first in range(0, len(store.shards), FETCHERS):
            some = range(first, min(first + FETCHERS, len(store.shards)))
            list(pool.map(store.fetch, some))
            for number in some:
                found += _samples(store, number, skipped)
    return Listing(
        store=store,
        paths=pa.array([sample.path for sample in found], pa.large_string()),
        where=np.array([sample.where for sample in found], np.int64).reshape(-1, 6),
        known=_known(found),
        skipped=skipped,
    )


@dataclass
class _Sample:
    """What is known of one image."""

    path: str = ""
    folder: str = ""  # of the shard, then within it
    where: tuple[int, ...] = ()
    simple: bool = False  # a.jpg, rather than a.seg.jpg?
    said: dict[str, Any] = field(default_factory=dict)
    texts: list[bytes] = field(default_factory=list)


def _samples(store: Shards, number: int, skipped: list[tuple[str, str]]) -> Iterator[_Sample]:
    shard, samples = store.shards[number], {}
    try:
        with tarfile.open(store.local(number), "r:") as archive:
            for member in archive:
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # or it keeps them all
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
    """Take a member for its sample, or say why not."""
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
    if stream is None or member.size > _NOTE:
        return "over 1 MB"
    data = stream.read()
    if extension in _TEXTS:
        sample.texts.append(data)
    elif extension == "cls":
        sample.said["label"] = data.decode(errors="replace").strip()
    else:
        return _read_json(sample, data)
    return None


def _read_json(sample: _Sample, data: bytes) -> str | None:
    try:
        said = json.loads(data)
    except ValueError:
        return "not readable as JSON"
    if not isinstance(said, dict):
        return None  # an array of boxes, say
    for name, key in _KEYS.items():
        if isinstance(said.get(name), str | int) and key not in sample.said:
            sample.said[key] = str(said[name])
    for name in ("text", "texts", "caption", "captions"):
        texts = said.get(name)
        texts = texts if isinstance(texts, list) else [texts]
        sample.texts += [text.encode(errors="replace") for text in texts if isinstance(text, str)]
    return None


def _known(found: Sequence[_Sample]) -> Known:
    """From what lies beside the images, and where that is silent from the names of folders."""
    columns: dict[str, Any] = {}
    for key in ("label", "class", "split"):
        if any(key in sample.said for sample in found):
            columns[key] = pa.array([sample.said.get(key) for sample in found], pa.large_string())
    if any(sample.texts for sample in found):
        # many a shard says the same in .txt and .json
        texts = [list(dict.fromkeys(sample.texts)) for sample in found]
        columns["text"] = pa.array(texts, pa.large_list(pa.large_binary()))
    said = from_table(pa.table(columns)) if columns else Known()
    runs = [(name, len(list(same))) for name, same in itertools.groupby(sample.folder for sample in found)]
    folders = from_folders([name for name, _ in runs], [count for _, count in runs])
    named = folders if said.labels is None else said
    return Known(
        labels=named.labels,
        classes=named.classes,
        splits=folders.splits if said.splits is None else said.splits,
        text=said.text,
    )
