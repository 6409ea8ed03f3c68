"""Metrics of a run for wandb or MLflow, where `--track` asks for it; metrics.jsonl stays the record."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from omma.core import files
from omma.core.errors import line, need
from omma.pretraining.folder import CANDIDATES

IDENTITY = "tracked.json"  # in the run folder: the tracker's own name of the run, to resume it
SENT = "tracked.jsonl"  # in the run folder: which lines a tracker has, since a resumed run repeats some steps
Status = Literal["finished", "stopped", "failed"]
Line = tuple[str, int]  # event and step


class Tracker(Protocol):
    """One run at a tracker."""

    identity: str

    def write(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self, status: Status) -> None: ...


class Tracked:
    """A tracker that never ends a run: its first failure is told in a note, and it is not used again."""

    def __init__(
        self, name: str, folder: Path, config: Mapping[str, Any], tell: Callable[[str], None]
    ) -> None:
        self.name, self.tell, self.folder = name, tell, folder
        self.tracker: Tracker | None = None
        self.sent: set[Line] = set()
        self._safely(lambda: self._begin(folder, config))

    def write(self, line: Mapping[str, Any]) -> None:
        """The finite numbers of a line of metrics.jsonl, as EVENT/NAME; each is sent once."""
        values = {
            f"{line['event']}/{name}": float(value)
            for name, value in line.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if name != "step"
        }
        if self.tracker is not None and values and (line["event"], line["step"]) not in self.sent:
            self._safely(lambda: self._send(line["event"], line["step"], values))

    def close(self, status: Status) -> None:
        """Tell the tracker how the process ends; a resumed run continues there."""
        if (tracker := self.tracker) is not None:
            self._safely(lambda: tracker.close(status))

    def _send(self, event: str, step: int, values: Mapping[str, float]) -> None:
        assert self.tracker is not None
        self.tracker.write(values, step)
        self.sent.add((event, step))
        with open(self.folder / SENT, "a", encoding="utf-8") as file:
            file.write(json.dumps([self.name, event, step]) + "\n")

    def _begin(self, folder: Path, config: Mapping[str, Any]) -> None:
        known = folder / IDENTITY
        before = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
        self.sent = sent(folder, self.name) if self.name in before else set()
        self.tracker = MAKE[self.name](folder, config, before.get(self.name), len(self.sent))
        with files.atomic_write(known) as file:
            file.write_text(json.dumps({**before, self.name: self.tracker.identity}), encoding="utf-8")

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (Exception, SystemExit) as error:  # of a server, a disk, a package: none may end the run
            self.tracker = None
            why = line(error) if isinstance(error, Exception) else "it exits"
            self.tell(f"{self.name} fails ({why}): the run goes on without it, metrics.jsonl is whole")


def sent(folder: Path, name: str) -> set[Line]:
    """The lines that a tracker has of a run, without one cut short by a crash."""
    file = folder / SENT
    found = set[Line]()
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError):
            tracker, event, step = json.loads(text)
            if tracker == name:
                found.add((event, step))
    return found


class _Wandb:
    """wandb's run; WANDB_MODE, WANDB_PROJECT and its other variables apply."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str | None, lines: int) -> None:
        wandb = need("wandb", "wandb")
        self.run = wandb.init(
            id=identity, resume="allow" if identity else None, name=name_of(folder), dir=str(folder),
            project=os.environ.get("WANDB_PROJECT") or "omma", config=dict(config),
            settings=wandb.Settings(silent=True, console="off", login_timeout=30),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="trained_step")  # a step may have several lines
        self.identity, self.lines = str(self.run.id), lines

    def write(self, values: Mapping[str, float], step: int) -> None:
        # numbered over all processes of the run: offline, each one's numbers would begin at 0
        self.run.log({**values, "trained_step": step}, step=self.lines)
        self.lines += 1

    def close(self, status: Status) -> None:
        if status == "stopped":
            self.run.mark_preempting()  # such a run is resumed
        self.run.finish(exit_code=0 if status == "finished" else 1)


class _MLflow:
    """MLflow's run; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME apply."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str | None, lines: int) -> None:
        mlflow = need("mlflow", "mlflow")
        self.client = mlflow.MlflowClient()
        if identity is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "omma"
            experiment = self.client.get_experiment_by_name(name)
            key = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
            self.identity = self.client.create_run(key, run_name=name_of(folder)).info.run_id
            for each, value in _flat(config).items():
                self.client.log_param(self.identity, each, str(value)[:500])
        else:
            self.client.update_run(identity, status="RUNNING")
            self.identity = identity

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.identity, name, value, step=step)

    def close(self, status: Status) -> None:
        states: dict[Status, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
        self.client.set_terminated(self.identity, states[status])


def name_of(folder: Path) -> str:
    """A run's name for people: its folder's; of one of several ways to fine-tune, both folders'."""
    tried = folder.parent.name == CANDIDATES
    return f"{folder.parent.parent.name}/{folder.name}" if tried else folder.name


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


MAKE: dict[str, Callable[[Path, Mapping[str, Any], str | None, int], Tracker]] = {
    "wandb": _Wandb,
    "mlflow": _MLflow,
}
