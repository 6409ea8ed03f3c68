"""The parts of a long computation in a folder: saved as they are done, so that a killed one continues."""

import contextlib
import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from omma.core import files


class Parts:
    """Arrays by name, each in a file of its own, written atomically; a damaged one counts as missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def within(self, *facts: Any) -> "Parts":
        """Those of a computation that these facts describe, in a folder of its own."""
        text = json.dumps(facts, sort_keys=True).encode()
        return Parts(self.folder / hashlib.sha256(text).hexdigest()[:16])

    def save(self, name: str, **arrays: Any) -> None:
        with (
            files.atomic_write(self.folder / f"{name}.npz", durable=True) as partial,
            open(partial, "wb") as f,
        ):
            np.savez(f, **arrays)

    def load(self, name: str) -> Mapping[str, np.ndarray] | None:
        """The arrays as they were saved, or None."""
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def remove(self, name: str) -> None:
        (self.folder / f"{name}.npz").unlink(missing_ok=True)


class Forgetful(Parts):
    """Keeps nothing: for what takes no time."""

    def __init__(self) -> None:
        super().__init__(Path())

    def within(self, *facts: Any) -> Parts:
        return self

    def save(self, name: str, **arrays: Any) -> None:
        pass

    def load(self, name: str) -> None:
        return None

    def remove(self, name: str) -> None:
        pass


@contextlib.contextmanager
def work(folder: Path, key: Mapping[str, Any], keep: bool = False) -> Iterator[Parts]:
    """The parts of the computation that `key` describes; those of another one there are removed first.

    The folder goes once the work is done, unless it is to be kept; it stays after an error or a kill. Raises
    ValueError if another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            text = json.dumps(key, sort_keys=True)
            note = folder / "key.json"
            if not note.exists() or note.read_text(encoding="utf-8") != text:
                for old in folder.iterdir():
                    if old.name != ".lock":
                        files.remove(old)
                with files.atomic_write(note) as partial:
                    partial.write_text(text, encoding="utf-8")
            files.remove_leftovers(folder / "*")
            yield Parts(folder)
    except Timeout:
        raise ValueError(
            f"{folder} is in use by another process: wait for it, or choose another --out"
        ) from None
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
