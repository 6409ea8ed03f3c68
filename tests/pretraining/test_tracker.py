"""`--track`: metrics and configuration at a tracker, which ends no run and goes on when it is resumed."""

import json
import re

import pytest

from omma.pretraining import tracker
from omma.pretraining.folder import RunFolder
from omma.pretraining.metrics_log import MetricsLog
from omma.pretraining.request import Request
from omma.pretraining.tracker import Tracked

CONFIG = {"method": "dino", "settings": {"lr": 0.002, "betas": [0.9, 0.999]}}
LINES = [
    {"event": "step", "step": 1, "loss": 2.5, "bad": float("nan")},
    {"event": "health", "step": 2, "verdict": "good", "told": 0.75},
]


class Recorder:
    def __init__(self, folder, config, identity):
        self.identity, self.config, self.lines = identity or "7", config, []
        self.resumed, self.closed = identity is not None, False

    def write(self, values, step):
        self.lines.append((step, values))

    def close(self):
        self.closed = True


def logged(folder, name, notes):
    log = MetricsLog(RunFolder(folder), True, Tracked(name, folder, CONFIG, notes.append))
    for line in LINES:
        log.write(line)
    log.close()
    return log.tracked


def test_finite_numbers_and_the_configuration_arrive_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(tracker.MAKE, "wandb", Recorder)
    notes = []
    first = logged(tmp_path, "wandb", notes).tracker
    assert first.lines == [(1, {"step/loss": 2.5}), (2, {"health/told": 0.75})]
    assert (first.config, first.closed, first.resumed, notes) == (CONFIG, True, False, [])
    assert logged(tmp_path, "wandb", notes).tracker.resumed
    assert json.loads((tmp_path / "tracked.json").read_text()) == {"wandb": "7"}


@pytest.mark.parametrize("where", ["__init__", "write", "close"])
def test_a_tracker_that_fails_is_told_once_and_ends_nothing(where, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(tracker.MAKE, "mlflow", type("Broken", (Recorder,), {where: fail}))
    notes = []
    logged(tmp_path, "mlflow", notes)
    assert len(notes) == 1
    assert re.search("mlflow fails .*no route to host.*goes on", notes[0])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(LINES)


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ValueError, match="track"):
        Request("photos", track="paper")


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    notes = []
    logged(tmp_path, "wandb", notes)
    before = json.loads((tmp_path / "tracked.json").read_text())
    logged(tmp_path, "wandb", notes)
    assert notes == []
    assert json.loads((tmp_path / "tracked.json").read_text()) == before
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert all(file.name == f"run-{before['wandb']}.wandb" for file in files)


def test_an_mlflow_store(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setattr(mlflow, "MlflowClient", lambda made=mlflow.MlflowClient: made(tracking_uri=store))
    notes = []
    for _ in range(2):
        logged(tmp_path, "mlflow", notes)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("omma").experiment_id])
    assert notes == []
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"step/loss": 2.5, "health/told": 0.75}
    assert run.data.params["settings.lr"] == "0.002"
