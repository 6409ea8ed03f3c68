"""Metrics of a run for wandb or MLflow, where `--track` asks for it; metrics.jsonl stays the record."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from omma.core import files
from omma.core.errors import line, need
from omma.pretraining.folder import CANDIDATES, RunFolder

IDENTITY = "tracked.json"  # in the run folder: the tracker's own name of the run, to resume it
Status = Literal["finished", "stopped", "failed"]


class Tracker(Protocol):
    """One run at a tracker, which leaves out what it has already."""

    identity: str

    def write(self, values: Mapping[str, float], step: int, number: int) -> None:
        """Values of a step, which are those of a line of metrics.jsonl; number: the line's, from 0."""
        ...

    def close(self, status: Status) -> None: ...


class Tracked:
    """A tracker that never ends a run: its first failure is told in a note, and it is not used again."""

    def __init__(
        self, name: str, folder: Path, config: Mapping[str, Any], tell: Callable[[str], None]
    ) -> None:
        self.name, self.tell = name, tell
        self.tracker: Tracker | None = None
        self.lines = 0  # of metrics.jsonl
        self._safely(lambda: self._begin(folder, config))

    def write(self, line: Mapping[str, Any]) -> None:
        """The finite numbers of the next line of metrics.jsonl, as EVENT/NAME."""
        values = {
            f"{line['event']}/{name}": float(value)
            for name, value in line.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if name != "step"
        }
        number, self.lines = self.lines, self.lines + 1
        if (tracker := self.tracker) is not None and values:
            self._safely(lambda: tracker.write(values, line["step"], number))

    def close(self, status: Status) -> None:
        """Tell the tracker how the process ends; a resumed run continues there."""
        if (tracker := self.tracker) is not None:
            self._safely(lambda: tracker.close(status))

    def _begin(self, folder: Path, config: Mapping[str, Any]) -> None:
        known = folder / IDENTITY
        before = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
        self.tracker = MAKE[self.name](folder, config, before.get(self.name))
        with files.atomic_write(known) as file:
            file.write_text(json.dumps({**before, self.name: self.tracker.identity}), encoding="utf-8")
        # what a killed process did not send, or all of a run that was not tracked
        for earlier in RunFolder(folder).metrics():
            self.write(earlier)

    def _safely(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (Exception, SystemExit) as error:  # of a server, a disk, a package: none may end the run
            self.tracker = None
            why = line(error) if isinstance(error, Exception) else "it exits"
            self.tell(f"{self.name} fails ({why}): the run goes on without it, metrics.jsonl is whole")


class _Wandb:
    """wandb's run; WANDB_MODE, WANDB_PROJECT and its other variables apply."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str | None) -> None:
        wandb = need("wandb", "wandb")
        self.run = wandb.init(
            id=identity, resume="allow" if identity else None, name=name_of(folder), dir=str(folder),
            project=os.environ.get("WANDB_PROJECT") or "omma", config=dict(config),
            settings=wandb.Settings(silent=True, console="off", login_timeout=30),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="trained_step")  # a step may have several lines
        self.identity = str(self.run.id)

    def write(self, values: Mapping[str, float], step: int, number: int) -> None:
        # a server tells where a resumed run goes on; offline each process's file holds the whole run
        if number >= self.run.starting_step:
            self.run.log({**values, "trained_step": step}, step=number)

    def close(self, status: Status) -> None:
        if status == "stopped":
            self.run.mark_preempting()  # such a run is resumed
        self.run.finish(exit_code=0 if status == "finished" else 1)


class _MLflow:
    """MLflow's run; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME apply."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str | None) -> None:
        mlflow = need("mlflow", "mlflow")
        self.client = mlflow.MlflowClient()
        self.known = set[tuple[str, int]]()  # of an earlier process
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
            for name in self.client.get_run(identity).data.metrics:
                self.known |= {(name, each.step) for each in self.client.get_metric_history(identity, name)}

    def write(self, values: Mapping[str, float], step: int, number: int) -> None:
        for name, value in values.items():
            if (name, step) not in self.known:
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


MAKE: dict[str, Callable[[Path, Mapping[str, Any], str | None], Tracker]] = {
    "wandb": _Wandb,
    "mlflow": _MLflow,
}
