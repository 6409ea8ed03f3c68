"""The run folder: its files, and how they stay whole."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from omma.core import files

EVALUATION = "evaluation.json"  # the last `omma evaluate` of a run


@dataclass(frozen=True)
class RunFolder:
    """One pretraining run on disk."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def finished(self) -> bool:
        """Did training reach its end?"""
        return (self.path / "model.safetensors").exists()

    def config(self) -> dict[str, Any]:
        """config.json; empty if there is none."""
        path = self.path / "config.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def claim(self, config: Mapping[str, Any]) -> None:
        """Make the folder this run's; refuse one whose configuration differs, and show where.

        Raises ValueError.
        """
        config = json.loads(json.dumps(config))
        old = self.config()
        if old:
            before, now = flatten(old), flatten(config)
            different = [
                f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
                for key in sorted({*before, *now})
                if before.get(key) != now.get(key)
            ]
            if different:
                raise ValueError(
                    f"{self.path} holds a run with another configuration ({'; '.join(different)}): "
                    "choose another --out, or repeat the command as it was to resume"
                )
            return
        # hidden files are those of a run that was killed at its very start
        if self.path.exists() and any(not each.name.startswith(".") for each in self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty and holds no run: choose another --out")
        self._write(config)

    def revise(self, config: Mapping[str, Any]) -> None:
        """Replace entries of the configuration by what a trial has decided."""
        self._write({**self.config(), **config})

    def _write(self, config: Mapping[str, Any]) -> None:
        with files.atomic_write(self.path / "config.json") as file:
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @contextmanager
    def locked(self, patience: float = 0.0) -> Iterator[None]:
        """Keep other processes from training here; the lock of a process that died is free.

        Raises ValueError if another still trains here after `patience` seconds. Data-loading workers live a
        few seconds longer than a process that was killed, and keep its lock.
        """
        try:
            with FileLock(self.path / ".lock", timeout=patience):
                yield
        except Timeout:
            raise ValueError(
                f"{self.path} is being trained by another process: wait for it or choose another --out"
            ) from None

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line cut short by a crash is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return lines

    def rewind(self, step: int) -> None:
        """Drop the metrics of steps that will be repeated."""
        lines = [line for line in self.metrics() if line["step"] <= step]
        with files.atomic_write(self.path / "metrics.jsonl") as file:
            file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def log(self, line: Mapping[str, Any]) -> None:
        """Append to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
