"""metrics.jsonl is the record of a run; TensorBoard reads a file beside it where the extra is installed."""

import json

import pytest

from omma.pretraining import metrics_log
from omma.pretraining.folder import RunFolder
from omma.pretraining.metrics_log import MetricsLog

LINES = [{"event": "step", "step": 1, "loss": 2.5}, {"event": "health", "step": 2, "verdict": "good"}]


def written(folder, primary=True):
    log = MetricsLog(RunFolder(folder), primary)
    for line in LINES:
        log.write(line)
    log.close("finished")
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else None


def test_without_the_extra_the_record_is_whole_and_nothing_is_said(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(metrics_log, "find_spec", lambda name: None)
    assert written(tmp_path) == LINES
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert capfd.readouterr() == ("", "")


def test_with_the_extra_the_same_numbers_are_tensorboards(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert written(tmp_path) == LINES
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["step/loss"]
    assert [(event.step, event.value) for event in events.Scalars("step/loss")] == [(1, 2.5)]


def test_other_processes_write_nothing(tmp_path):
    assert written(tmp_path, primary=False) is None
    assert not list(tmp_path.iterdir())
