"""A run on sounds: what it says, that it resumes bit for bit, and what its model says of clips."""

import csv
import os
import signal

import numpy as np
import processes
import pytest
import torch
from tones import tone, wav_bytes

import omma
from omma.pretraining.events import Plan, Progress
from omma.pretraining.folder import RunFolder
from omma.verbs.embed import embed
from omma.verbs.evaluate import evaluate
from omma.verbs.finetune import finetune
from omma.verbs.predict import predict
from omma.verbs.pretrain import pretrain

TINY = {
    "method": "simclr", "model": "vit-n/8", "image_size": 16, "batch_size": 8, "device": "cpu",
    "precision": "fp32", "workers": 0, "model_options": {"depth": 1, "dim": 16, "heads": 2, "hidden": 16},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Twelve clips, of which six have two tiles, and a run on them."""
    folder = tmp_path_factory.mktemp("sounds")
    for k in range(12):
        file = folder / "clips" / ("high" if k % 2 else "low") / f"{k:02}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(wav_bytes(tone(2.6 if k < 6 else 0.5, 2000 if k % 2 else 300, seed=k)))
    pretrain(folder / "clips", out=folder / "run", steps=4, **TINY)
    return folder


def same(a, b):
    one, two = (omma.load(folder).encoder.state_dict() for folder in (a, b))
    return all(torch.equal(one[name], two[name]) for name in one)


def test_the_plan_says_what_the_images_are(place, tmp_path):
    plans = []
    pretrain(
        place / "clips", out=tmp_path / "run", steps=1,
        listen=lambda event: plans.append(event) if isinstance(event, Plan) else None, **TINY,
    )  # fmt: skip
    assert plans[0].images == "clips: 12 clips, 18 tiles, 2 classes"
    notes = " | ".join(plans[0].notes)
    assert "no flips, no colours" in notes
    assert "(x - mean) / (2 std)" in notes
    assert not any(word in view for view in plans[0].views for word in ("flip", "bright", "hue"))


def killed(clips, out):
    """A process that ends itself by signal 9 once the second step is done."""

    def listen(event):
        if isinstance(event, Progress) and event.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    pretrain(clips, out=out, steps=4, checkpoint_every=1e-9, listen=listen, **TINY)


def test_a_run_that_is_killed_goes_on_bit_for_bit(place, tmp_path):
    child = processes.start_own(__file__, "killed", place / "clips", tmp_path / "run")
    assert child.wait(120) == -signal.SIGKILL, child.errors[-2000:]
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    assert not RunFolder(tmp_path / "run").finished
    pretrain(place / "clips", out=tmp_path / "run", steps=4, **TINY)
    assert RunFolder(tmp_path / "run").finished
    assert same(place / "run", tmp_path / "run")


def test_evaluation_and_tables_are_of_clips(place, tmp_path):
    result = evaluate(place / "run", place / "clips", protocols=["knn"], cache=None)
    by_subject = {each["subject"]: each for each in result.to_json()["results"]}
    assert set(by_subject) == {"trained", "untrained", "pixels"}
    assert by_subject["trained"]["n_train"] + by_subject["trained"]["n_test"] == 12
    assert by_subject["trained"]["pooling"] == "mean over a clip's tiles"
    embed(place / "run", place / "clips", tmp_path / "table.csv")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["path"] for row in rows][:2] == ["high/01.wav", "high/03.wav"]
    assert len(rows) == 12


def test_a_classifier_of_tiles_answers_for_clips(place, tmp_path):
    options = {key: TINY[key] for key in ("device", "precision", "batch_size")}
    finetune(place / "run", place / "clips", out=tmp_path / "tuned", steps=2, workers=0, **options)
    predict(tmp_path / "tuned", place / "clips", tmp_path / "classes.csv", copy=tmp_path / "copied")
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert len(rows) == 12
    assert {row["class"] for row in rows} <= {"high", "low"}
    copies = sorted(file.name for file in (tmp_path / "copied").rglob("*.wav"))
    assert copies == [f"{k:02}.wav" for k in range(12)]
    assert np.isfinite([float(row["probability"]) for row in rows]).all()
