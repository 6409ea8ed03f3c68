"""Atomic file writes, and the folder of caches that can be rebuilt."""

import codecs
import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from omma.core.errors import line
from omma.core.explain import writing
from omma.core.version import __version__

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

YOUNG = 10.0  # seconds for which an unlocked temporary file is taken for that of a living writer
STALE = 24 * 3600.0  # seconds after which a temporary file is taken for that of a writer that was killed


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file to write, which replaces `path` on success and is deleted on failure.

    Readers see either the old file or the new one, never half of one. Missing folders are created. The file
    gets the permissions of any new file, even if a library that writes it sets others.
    durable: flush to disk (fsync) before and after replacing, so that the file survives a crash of the
    machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_abandoned(path)
    # processes of other machines and containers have the same numbers
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    held = contextlib.ExitStack()
    try:
        with writing(path):
            partial.touch()
            held.enter_context(hold(partial))
            mode = stat.S_IMODE(partial.stat().st_mode)
            yield partial
            if stat.S_IMODE(partial.stat().st_mode) != mode:
                partial.chmod(mode)
            if durable:
                with open(partial, "rb+") as file:
                    os.fsync(file.fileno())
            os.replace(partial, path)
            if durable:
                flush_folder(path.parent)
    finally:
        held.close()
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(partial: Path) -> Iterator[None]:
    """Lock a temporary file or folder, which tells others that its writer lives; on POSIX systems only."""
    if fcntl is None:
        yield
        return
    entry = os.open(partial, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(entry)


def clear_abandoned(path: Path) -> None:
    """Delete temporary files and folders of `path` whose writers were killed."""
    if fcntl is None:
        return
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*partial"):
        with contextlib.suppress(OSError):  # its writer lives, or another process has removed it
            if time.time() - partial.lstat().st_mtime < YOUNG:
                continue
            entry = os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(partial)
            finally:
                os.close(entry)


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that files renamed in it survive a crash of the machine."""
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    except OSError as error:  # some network file systems have no such call
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(entry)


def set_default_modes(folder: Path) -> None:
    """Give all files below `folder` the permissions of any new file; some libraries write them private."""
    probe = folder / f".{secrets.token_hex(8)}"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def remove_leftovers(path: Path, older: float = 0.0) -> None:
    """Delete temporary files left by killed writers of `path` (its name may be a pattern).

    No process may be writing it, unless `older` is given: then those last changed that many seconds ago go.
    """
    remove_old(path.parent.glob(f".{path.name}.*partial"), older)


def remove_old(paths: Iterable[Path], older: float) -> None:
    """Delete those of the files and folders that were last changed `older` seconds ago or before."""
    for path in paths:
        with contextlib.suppress(OSError):  # another process removes it
            if older == 0.0 or time.time() - path.lstat().st_mtime > older:
                remove(path)


def remove(path: Path) -> None:
    """Delete a file, or a folder with everything in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError that names the file and the remedy."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({line(error)}): {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (it holds no JSON object): {remedy}")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, atomically; ValueError for numbers that are not finite."""
    with atomic_write(path) as file:
        file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


class SharedFile:
    """A file that several threads and forked processes read from at any place.

    Where it has been cut since it was opened, less is read; a map of it would end the process with SIGBUS.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._lock = threading.Lock()

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # it could be opened
            self._file.close()

    def read(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes, fewer at the end of the file. Raises OSError."""
        left = min(size, os.fstat(self._file.fileno()).st_size - offset)  # a lying size allocates nothing
        parts: list[bytes] = []
        while offset >= 0 and left > 0 and (part := self._read(offset, left)):
            parts.append(part)
            offset, left = offset + len(part), left - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, offset)
        with self._lock:  # Windows
            self._file.seek(offset)
            return self._file.read(size)


_BOMS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes, errors: str = "strict") -> str:
    """The text of a file that a person wrote: UTF-8, or what its byte order mark says; the mark is left out.

    errors: what to do with bytes that are not valid UTF-8. Raises UnicodeDecodeError, a ValueError.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data.decode(encoding, "replace" if errors != "strict" else errors)
    return data.decode("utf-8-sig", errors)


def omma_version() -> str:
    """The version, which files record."""
    return __version__
