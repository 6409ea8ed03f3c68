"""What surrounds a run: stages are reported, places are checked first, and a report that fails is a note."""

import numpy as np
import pytest

from omma.pretraining import events
from omma.reporting import run_report
from omma.verbs.pretrain import pretrain

OPTIONS = {
    "method": "mae", "model": "vit-n/4", "steps": 1, "batch_size": 8, "device": "cpu", "precision": "fp32",
    "workers": 0, "options": {"decoder_depth": 1, "decoder_dim": 16, "decoder_heads": 1},
}  # fmt: skip


def test_stages_come_before_the_plan_and_a_failed_report_is_a_note(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyError("what nobody thought of")

    monkeypatch.setattr(run_report, "write_report", fail)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 255, (130, 8, 8, 3), np.uint8))
    told: list[events.Event] = []
    result = pretrain(tmp_path / "images.npy", out=tmp_path / "run", listen=told.append, **OPTIONS)
    assert result.steps == 1
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert isinstance(told[-1], events.Note)
    assert told[-1].text.startswith("the report was not written (KeyError: ")
    plan = next(i for i, event in enumerate(told) if isinstance(event, events.Plan))
    stages = [event for event in told[:plan] if isinstance(event, events.Stage)]
    assert events.Stage("checking images", 65, 130) in stages
    assert events.Stage("checking images", 130, 130) in stages
    assert stages[-1].text == "measuring the speed of a step"


def test_an_impossible_place_is_refused_before_the_images_are_read(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: name a folder with --out"):
        pretrain(tmp_path / "nowhere", out=tmp_path / "file", **OPTIONS)
    with pytest.raises(ValueError, match="run cannot be written"):
        pretrain(tmp_path / "nowhere", out=tmp_path / "file" / "run", **OPTIONS)
