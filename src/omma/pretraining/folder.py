"""The run folder: its files, and how they stay whole."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from omma import weights
from omma.core import files

EVALUATION = "evaluation.json"  # the last `omma evaluate` of a run
CURVE = "curve.json"  # its last `omma evaluate --curve`
SHIFT = "shift.json"  # its last `omma shift`
CANDIDATES = "candidates"  # folder of the runs that `omma finetune --adapt auto` compares
# what same_images.py compares, the run's history, and the options that led to what is compared
APART = ("images", "held", "fingerprint", "data_changes", "extended", "options")
# what only the process that holds the lock writes
OWN = (
    "config.json",
    "metrics.jsonl",
    "model.*",
    "adapter/*",
    "extras.*",
    "skipped.csv",
    "profile.json",
    "tracked.json",
    "images.*",
    "rejected-*",
)


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
    def adapter(self) -> Path:
        """LoRA by itself, in peft's files; the model beside it has it merged."""
        return self.path / "adapter"

    @property
    def finetuned(self) -> Path:
        """Figures of a classifier that was fitted rather than trained, or chosen among several."""
        return self.path / "finetune.json"

    @property
    def finished(self) -> bool:
        """Did training reach the end that config.json names, and is its model written, all of it?"""
        return self.result() is not None

    def result(self, thorough: bool = False) -> dict[str, Any] | None:
        """What a finished run's model says of its origin: configuration, `steps`, `seconds`; else None.

        thorough: all bytes of the model are compared with their digest.
        """
        origin = weights.provenance(self.path, thorough)
        return origin if origin is not None and origin.get("end") == self.config().get("end") else None

    def config(self) -> dict[str, Any]:
        """config.json; empty if there is none. Raises ValueError if it is damaged."""
        path = self.path / "config.json"
        remedy = "copy it from a backup or, if the run is finished, use its model.safetensors and model.json"
        return files.read_json(path, remedy) if path.exists() else {}

    def check(self, config: Mapping[str, Any], extend: bool = False) -> None:
        """Raise ValueError unless the folder is this run's or free, and name what differs.

        extend: the end may be another.
        """
        config = json.loads(json.dumps(config))
        old = self.config()
        if old:
            before, now = flatten(old), flatten(config)
            keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
            keys = [k for k in keys if k.partition(".")[0] not in (*APART, *(["end"] if extend else []))]
            different = [f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in keys]
            if different:
                ends = all(key.startswith("end.") for key in keys)
                paper = all(key.startswith("settings.") for key in keys) and old.get("recipe") == "paper"
                version = ", with the version of omma that began it if this one has another recipe"
                raise ValueError(
                    f"{self.path} holds a run with another configuration ({'; '.join(different)}): "
                    "choose another --out, or repeat the command as it was to resume"
                    + (", or add --extend to continue to a later end" if ends else "")
                    + version * paper
                )
        # hidden files are those of a run that was killed at its very start
        elif self.path.exists() and any(not each.name.startswith(".") for each in self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty and holds no run: choose another --out")

    def claim(self, config: Mapping[str, Any], extend: bool = False) -> None:
        """Make the folder this run's, and clear what killed processes left half-written; hold the lock.

        Raises ValueError as `check` does.
        """
        self.check(config, extend)
        if not self.config():
            self._write(config)
        for name in OWN:
            files.remove_leftovers(self.path / name)
        for folder in (self.path, self.path / "features"):  # of commands that do not take the lock
            files.remove_leftovers(folder / "*", files.STALE)

    def revise(self, config: Mapping[str, Any]) -> None:
        """Replace entries of the configuration by what a trial has decided."""
        self._write({**self.config(), **config})

    def restore_config(self, config: Mapping[str, Any]) -> bool:
        """Write config.json again if it vanished, without which there is no run; whether it did."""
        if vanished := not (self.path / "config.json").exists():
            self._write(config)
        return vanished

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
        """The lines of metrics.jsonl without damaged ones, such as a last line cut short by a crash."""
        return self._metrics()[0]

    def _metrics(self) -> tuple[list[dict[str, Any]], int]:
        """The whole lines, and the number of others before the last."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return [], 0
        texts = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
        lines = [_parsed(text) for text in texts]
        return [line for line in lines if line is not None], sum(line is None for line in lines[:-1])

    def rewind(self, step: int) -> int:
        """Drop the metrics of steps that will be repeated; returns how many damaged lines went with them."""
        lines, damaged = self._metrics()
        with files.atomic_write(self.path / "metrics.jsonl") as file:
            whole = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
            file.write_text("".join(whole), encoding="utf-8")
        return damaged

    def log(self, line: Mapping[str, Any]) -> None:
        """Append to metrics.jsonl, in a new folder if somebody removed it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _parsed(text: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is damaged."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    usable = isinstance(line, dict) and isinstance(line.get("event"), str)
    return line if usable and isinstance(line.get("step"), int) else None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
