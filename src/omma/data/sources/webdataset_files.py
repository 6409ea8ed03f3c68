"""WebDataset shards: .tar files, local or at any fsspec address, whose members of one name are one sample.

`000.tar` holds `a.jpg`, `a.cls`, `a.txt`, `a.json`, `b.jpg`, ...: what follows the first dot says what a
member is of sample `a`. Local shards are read in place; remote ones are fetched whole into a folder of
bounded size, whose oldest go first, or asked for single images where few are wanted.
"""

import glob as globbing
import hashlib
import itertools
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import fsspec
import numpy as np
from filelock import FileLock

from omma.core import files
from omma.core.errors import line
from omma.core.protocols import BadImage
from omma.data.sources.decode import decode
from omma.data.sources.listing import IMAGES
from omma.data.sources.readers import Archive

TRIES = 3  # to fetch something, with a pause between
PAUSE = 2.0  # seconds, twice as long each time
MANY = 8  # images asked for one by one, after which a remote shard is fetched whole
OPEN = 32  # shards held open in each process
FETCHERS = 4  # shards fetched at a time
_CHANGES = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created", "generation")  # of fsspec's
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
        return decode(self.content(path, where), channels, at_least)

    def content(self, path: str, where: np.ndarray | None) -> bytes:
        """What `load` decodes."""
        assert where is not None
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
                with files.atomic_write(file) as partial:
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
