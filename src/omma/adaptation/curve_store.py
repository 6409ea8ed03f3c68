"""Fits of a curve that are done: one line of JSON each, so that a killed curve goes on where it was."""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

FORMAT = 1  # of the lines, and of how fits are made; raise it when the same key gives other answers


class Store:
    """Correct answers of fits, by what identifies them; `file` None: kept in memory alone."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._known: dict[str, np.ndarray] = {}
        if file is not None and file.exists():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            bits = np.frombuffer(base64.b64decode(entry["correct"], validate=True), np.uint8)
            self._known[entry["key"]] = np.unpackbits(bits, count=entry["images"]).astype(bool)
        except (ValueError, KeyError, TypeError):
            pass  # a line that was cut short: its fit is made again

    def get(self, key: str) -> Bool[np.ndarray, "m"] | None:
        """Which test images that fit got right, or None."""
        return self._known.get(key)

    def put(self, key: str, correct: Bool[np.ndarray, "m"], facts: Mapping[str, Any]) -> None:
        """Remember a fit; facts: what a reader of the file wants to know of it. Raises OSError."""
        self._known[key] = correct
        if self.file is None:
            return
        packed = base64.b64encode(np.packbits(correct).tobytes()).decode()
        line = json.dumps({"key": key, **facts, "images": len(correct), "correct": packed})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as out:
            out.write(f"\n{line}\n")  # on a line of its own, whatever was cut short before


def key(**facts: Any) -> str:
    """A hash of everything that a fit's answers depend on."""
    text = json.dumps({"format": FORMAT, **facts}, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
