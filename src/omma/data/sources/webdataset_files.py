"""WebDataset shards: .tar files, local or at any fsspec address, whose members of one name are one sample.

`000.tar` holds `a.jpg`, `a.cls`, `a.txt`, `a.json`, `b.jpg`, ...: what follows the first dot says which
field of sample `a` a member holds. Local shards are read in place; remote ones are downloaded whole into a
folder of bounded size (least recently used first out), or image by image when few are needed.
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
from omma.core.errors import exhausted, line
from omma.core.protocols import Inaccessible
from omma.data.sources.names import IMAGES, inaccessible
from omma.data.sources.readers import Archive, EncodedStore

TRIES = 3  # attempts at a download, with a pause between them
PAUSE = 2.0  # seconds before the second attempt, doubled each time
MANY = 8  # images downloaded one by one before the whole shard is downloaded
OPEN = 32  # shards that each process keeps open
FETCHERS = 4  # shards downloaded at a time
_VERSION_KEYS = (
    "ETag",
    "etag",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
    "generation",
)  # fsspec's
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Shard:
    """One .tar file: its address, its size, and a stamp that changes with its content."""

    address: str
    name: str  # relative to the shards' common folder
    size: int
    stamp: str

    @property
    def remote(self) -> bool:
        return "://" in self.address


# ---------------------------------------------------------------- which shards
def expand(pattern: str) -> list[str]:
    """Write out `{000..099}` and `{a,b}`, as shells do; numbers keep their leading zeros."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    if match[1] is not None:
        first, last = int(match[1]), int(match[2])
        numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
        choices = [f"{number:0{len(match[1])}}" for number in numbers]
    else:
        choices = match[3].split(",")
    tails = expand(pattern[match.end() :])
    return [pattern[: match.start()] + choice + tail for choice in choices for tail in tails]


def find(source: str, typed: str) -> list[Shard] | None:
    """The shards of a folder or pattern, sorted by name; None if the source is not a set of shards.

    A folder is a set of shards if it holds .tar files and no image, at any depth. `typed`: the source as
    the user wrote it, for messages. Raises ValueError for missing shards.
    """
    if "://" in source:
        if "." in source.rpartition("/")[2] and not source.endswith(".tar"):
            return None
        return _remote(source, typed)
    if os.path.isdir(source):
        names = _tars(source)
    elif source.endswith(".tar") and not os.path.exists(source) and re.search(r"[{*?\[]", source):
        names = sorted(
            name for part in expand(source) for name in (globbing.glob(part, recursive=True) or [part])
        )
        if missing := [name for name in names if not os.path.exists(name)]:
            raise ValueError(f"{typed}: {missing[0]} not found; give a pattern of existing .tar files")
        if odd := [name for name in names if not os.path.isfile(name)]:
            raise ValueError(f"{typed}: {odd[0]} is not a regular file; leave it out of the pattern")
    else:
        return None
    stats = [os.stat(name) for name in names]
    tars = [(n, s.st_size, f"{s.st_size} {s.st_mtime_ns}") for n, s in zip(names, stats, strict=True)]
    return _shards(tars) if names else None


def _tars(root: str) -> list[str]:
    """All .tar files below a folder; an empty list as soon as an image is found."""
    tars, todo = [], [root]
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
                    elif extension == "tar" and entry.is_file():
                        tars.append(entry.path)
        except OSError:  # listing it as a folder reports the error
            continue
    return sorted(tars)


def _shards(tars: list[tuple[str, int, str]]) -> list[Shard]:
    levels = zip(*(address.split("/")[:-1] for address, _, _ in tars))
    start = sum(
        len(level[0]) + 1 for level in itertools.takewhile(lambda level: len(set(level)) == 1, levels)
    )
    return [Shard(address, address[start:], size, stamp) for address, size, stamp in tars]


def _remote(source: str, typed: str) -> list[Shard] | None:
    try:
        system, path = fsspec.core.url_to_fs(source)
        if not source.endswith(".tar"):
            infos = {
                name: info for name, info in system.find(path, detail=True).items() if name.endswith(".tar")
            }
            if not infos:
                raise ValueError(
                    f"{typed}: no .tar files in it, and other remote folders are not listed; give a manifest "
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
    except Exception as error:  # a missing package, or any error of a network library
        if exhausted(error):
            raise
        if isinstance(error, ImportError):
            raise ValueError(f"{typed}: a package is missing for such addresses: {line(error)}") from None
        raise ValueError(f"{typed}: cannot be found ({line(error)}); check the address") from None
    if not infos:
        raise ValueError(f"{typed}: no such shards; check the address")
    tars = []
    for name, info in sorted(infos.items()):
        version = " ".join(str(info[key]) for key in _VERSION_KEYS if info.get(key) is not None)
        tars.append((system.unstrip_protocol(name), int(info["size"] or 0), f"{info['size']} {version}"))
    return _shards(tars)


# ---------------------------------------------------------------- the store
@dataclass
class Shards(EncodedStore):
    """Images in .tar files; `where` is [shard, *the `where` of `Archive`].

    `folder` caches remote shards, for all processes and runs together. The cache may take half of the disk
    space that would be free without it; the least recently used shards are deleted first.
    """

    shards: list[Shard]
    folder: str
    _open: dict[int, Archive] = field(default_factory=dict, repr=False)
    _requests: Counter[int] = field(default_factory=Counter, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "folder": self.folder, "_open": {}, "_requests": Counter()}

    def content(self, path: str, where: np.ndarray | None) -> bytes:
        assert where is not None
        number = int(where[0])
        archive = self._open.get(number)
        if archive is None:
            if not self.available(number):
                self._requests[number] += 1
                if self._requests[number] <= MANY:
                    return self._download_image(number, int(where[1]), int(where[3]))
                self.fetch(number)
            while len(self._open) >= OPEN:  # threads may both drop one
                self._open.pop(next(iter(self._open)), None)
            self._open[number] = archive = Archive(str(self.local(number)))
        return archive.bytes(where[1:])

    def stamp(self, paths: list[str]) -> str:
        return "\n".join(f"{shard.address} {shard.stamp}" for shard in self.shards)

    def local(self, number: int) -> Path:
        """The file from which a shard is read."""
        shard = self.shards[number]
        if not shard.remote:
            return Path(shard.address)
        name = hashlib.blake2b(f"{shard.address} {shard.stamp}".encode(), digest_size=16).hexdigest()
        return Path(self.folder) / f"{name}.tar"

    def available(self, number: int) -> bool:
        """Whether a shard is on this machine."""
        return not self.shards[number].remote or self.local(number).exists()

    def fetch(self, number: int) -> None:
        """Download a shard unless it is on this machine, and mark it as just used. Raises ValueError."""
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
                        raise OSError(f"{partial.stat().st_size} of {shard.size} bytes received")

            try:
                _retry(copy)
            except OSError as error:
                raise ValueError(
                    f"{shard.address}: cannot be fetched ({line(error)}); rerun the command to continue"
                ) from None

    def _download_image(self, number: int, start: int, size: int) -> bytes:
        shard = self.shards[number]
        system, path = fsspec.core.url_to_fs(shard.address)
        try:
            data = _retry(lambda: system.cat_file(path, start=start, end=start + size))
        except OSError as error:
            raise inaccessible(error) from None
        if len(data) != size:
            raise Inaccessible(f"{len(data)} of {size} bytes received from {shard.name}")
        return data

    def _make_room(self, shard: Shard) -> None:
        folder = Path(self.folder)
        with FileLock(folder / ".room.lock"):
            copies = {file: stat for file in folder.glob("*.tar") if (stat := _stat(file))}
            total = sum(stat.st_size for stat in copies.values())
            limit = (shutil.disk_usage(folder).free + total) // 2
            if shard.size > limit:
                raise ValueError(
                    f"{shard.address}: {shard.size / 1e9:.1f} GB, and shards may take {limit / 1e9:.1f} GB "
                    f"at {folder}; make room or set OMMA_CACHE to a folder on another disk"
                )
            for file, stat in sorted(copies.items(), key=lambda item: item[1].st_mtime_ns):
                if total + shard.size <= limit:
                    break
                file.unlink(missing_ok=True)  # processes that have it open can still read it
                total -= stat.st_size


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:  # another process has deleted it
        return None


def _retry(download: Callable[[], _Result]) -> _Result:
    """Call `download`, up to `TRIES` times; raises OSError for any error of a network library."""
    for attempt in range(1, TRIES):
        try:
            return download()
        except FileNotFoundError:
            raise
        except Exception as error:
            if exhausted(error):
                raise
            time.sleep(PAUSE * 2 ** (attempt - 1))
    try:
        return download()
    except Exception as error:
        if exhausted(error):
            raise
        raise OSError(line(error)) from error
