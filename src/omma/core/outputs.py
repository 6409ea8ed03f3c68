"""Where results will be written: checked before the work begins, not after it."""

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from omma.core import files


def check_file(path: str | Path, option: str = "--out") -> None:
    """Raise ValueError, in one line, unless a file can be written at `path`.

    A few bytes are written and removed there, which also finds read-only and full disks. Missing folders may
    be created later, so they must be possible; they are not left behind. option: named in the remedy.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder: name a file with {option}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is no regular file: choose another place with {option}")
    with _refused(path, option):
        _probe(path)


def check_folder(path: str | Path, option: str = "--out") -> None:
    """Raise ValueError, in one line, unless files can be written into the folder `path`.

    It need not exist, if it can be made.
    """
    path = Path(path)
    if os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f"{path} is a file: name a folder with {option}")
    with _refused(path, option):
        _probe(path / "probe")


@contextlib.contextmanager
def _refused(path: Path, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # the name in the error is that of the folder which is in the way
        place = f" at {error.filename}" if error.filename and Path(error.filename) in path.parents else ""
        why = f"{error.strerror or error}{place}"
        raise ValueError(f"{path} cannot be written ({why}): choose another place with {option}") from error


def _probe(path: Path) -> None:
    """Write a temporary file under such a name as an atomic write of `path` uses, and remove all traces."""
    probe = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    created: list[Path] = []
    try:
        for folder in [each for each in reversed(path.parents) if not each.exists()]:
            with contextlib.suppress(FileExistsError):  # another process has just made it
                folder.mkdir()
                created.append(folder)
        try:
            with open(probe, "xb") as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    finally:
        with contextlib.suppress(OSError):  # no longer empty: another process uses it
            for folder in reversed(created):
                folder.rmdir()


@contextlib.contextmanager
def temporary_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, removed at the end; those of killed exports go, too."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.clear_abandoned(out)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"{out} cannot be written ({why}): choose another place with --out") from error
    try:
        with files.hold(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
