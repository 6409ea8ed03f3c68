"""`--track`: metrics and configuration at a tracker, which ends no run and goes on when it is resumed."""

import json
import re

import pytest

from omma.adaptation.request import FineTuning
from omma.pretraining import tracker
from omma.pretraining.folder import RunFolder
from omma.pretraining.metrics_log import MetricsLog
from omma.pretraining.request import Request
from omma.pretraining.tracker import Tracked
from omma.verbs.finetune import finetune

CONFIG = {"method": "dino", "settings": {"lr": 0.002, "betas": [0.9, 0.999]}}
LINES = [
    {"event": "step", "step": 1, "loss": 2.5, "bad": float("nan")},
    {"event": "health", "step": 2, "verdict": "good", "told": 0.75},
]


class Recorder:
    def __init__(self, folder, config, identity):
        self.identity, self.config, self.lines, self.numbers = identity or "7", config, [], []
        self.resumed, self.closed = identity is not None, ""

    def write(self, values, step, number):
        self.lines.append((step, values))
        self.numbers.append(number)

    def close(self, status):
        self.closed = status


def logged(folder, name, notes, lines=LINES, ended=True):
    with MetricsLog(RunFolder(folder), True, Tracked(name, folder, CONFIG, notes.append)) as log:
        for line in lines:
            log.write(line)
        log.ended = ended
    return log.tracked


def test_finite_numbers_and_the_configuration_arrive_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(tracker.MAKE, "wandb", Recorder)
    notes = []
    first = logged(tmp_path, "wandb", notes).tracker
    assert first.lines == [(1, {"step/loss": 2.5}), (2, {"health/told": 0.75})]
    assert (first.config, first.closed, first.resumed, notes) == (CONFIG, "finished", False, [])
    assert logged(tmp_path, "wandb", notes).tracker.resumed
    assert json.loads((tmp_path / "tracked.json").read_text()) == {"wandb": "7"}


def test_a_tracker_gets_the_lines_of_before_with_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setitem(tracker.MAKE, "wandb", Recorder)
    monkeypatch.setitem(tracker.MAKE, "mlflow", Recorder)
    steps = [{"event": "step", "step": step, "loss": 1.0} for step in range(6)]
    assert logged(tmp_path, "wandb", [], steps[:4], ended=False).tracker.closed == "stopped"
    RunFolder(tmp_path).rewind(1)  # where the checkpoint is from which the run goes on
    for name in ("wandb", "mlflow"):
        found = logged(tmp_path, name, [], steps[2:] if name == "wandb" else []).tracker
        assert found.numbers == [step for step, _ in found.lines] == [*range(6)]
        assert found.resumed == (name == "wandb")


def test_a_run_that_fails_is_closed_as_failed(tmp_path, monkeypatch):
    monkeypatch.setitem(tracker.MAKE, "wandb", Recorder)
    tracked = Tracked("wandb", tmp_path, CONFIG, print)
    with pytest.raises(RuntimeError), MetricsLog(RunFolder(tmp_path), True, tracked):
        raise RuntimeError("no memory")
    assert tracked.tracker.closed == "failed"


def test_a_way_to_fine_tune_is_named_with_its_run(tmp_path):
    assert tracker.name_of(tmp_path / "species") == "species"
    assert tracker.name_of(tmp_path / "species" / "candidates" / "lora") == "species/lora"


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


def test_fine_tuning_is_tracked_where_it_is_trained_in_steps():
    assert FineTuning("run", "photos", adapt="full", track="mlflow").request().track == "mlflow"
    for adapt, words in (("head", "--track: a head is fitted"), ("zeroshot", "--track has no meaning")):
        with pytest.raises(ValueError, match=words):
            finetune("run", "photos", adapt=adapt, track="mlflow")


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
    logged(tmp_path, "mlflow", notes, LINES, ended=False)
    RunFolder(tmp_path).rewind(1)
    logged(tmp_path, "mlflow", notes, LINES[1:])
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("omma").experiment_id])
    assert notes == []
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"step/loss": 2.5, "health/told": 0.75}
    assert run.data.params["settings.lr"] == "0.002"
    assert all(len(client.get_metric_history(run.info.run_id, name)) == 1 for name in run.data.metrics)
