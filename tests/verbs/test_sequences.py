"""Runs on sequences and fields: whole, killed and resumed bit for bit, refused in one line."""

import csv
import os
import signal

import numpy as np
import processes
import pytest
import torch
from PIL import Image

import omma
from omma.pretraining.events import Plan, Progress
from omma.verbs.pretrain import pretrain

TINY = {
    "model": "vit-n/8", "image_size": 16, "batch_size": 8, "device": "cpu", "precision": "fp32", "workers": 0,
    "model_options": {"depth": 1, "dim": 16, "heads": 2, "hidden": 16},
}  # fmt: skip
OPTIONS = {
    "coherence": {"hidden": 16, "out": 8},
    "order": {"hidden": 8, "most": 2},
    "egomotion": {"mode": "equiv+drlim", "pose": "azimuth", "out": 8},
    "interaction": {"hidden": 8, "cells": 2},
}
COLUMNS = ("path", "sequence", "frame", "azimuth", "push_x0", "push_y0", "push_x1", "push_y1", "object")


def write(folder, columns=COLUMNS):
    """Four sequences of six frames; every third row lacks its push."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(24):
        g = np.random.default_rng(k)
        Image.fromarray(g.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{k:02}.png")
        push = [""] * 4 if k % 3 == 2 else g.normal(size=4).round(3)
        rows.append((f"{k:02}.png", f"s{k // 6}", k % 6, 20 * (k % 6), *push, f"object {k // 12}"))
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(dict(zip(COLUMNS, row, strict=True)) for row in rows)
    return folder / "table.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sequences"))


def run(table, out, method, **changed):
    return pretrain(table, out=out, method=method, options=OPTIONS[method], **{**TINY, "steps": 4, **changed})


def killed(table, out, method):
    """A process that ends itself by signal 9 once the third step is done."""

    def listen(event):
        if isinstance(event, Progress) and event.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    run(table, out, method, listen=listen, checkpoint_every=1e-9)


@pytest.mark.parametrize("method", ["coherence", "egomotion", "interaction"])
def test_a_killed_run_goes_on_bit_for_bit(table, tmp_path, method):
    child = processes.start_own(__file__, "killed", table, tmp_path / "two", method)
    assert child.wait(120) == -signal.SIGKILL, child.errors[-2000:]
    assert not (tmp_path / "two" / "model.safetensors").exists()
    assert list((tmp_path / "two" / "checkpoints").iterdir())
    run(table, tmp_path / "two", method)
    run(table, tmp_path / "one", method)
    one, two = (omma.load(tmp_path / name).encoder.state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_plan_says_how_sequences_were_read(table, tmp_path):
    events = []
    run(table, tmp_path / "run", "order", steps=1, listen=events.append)
    (plan,) = [event for event in events if isinstance(event, Plan)]
    assert any(
        "4 sequences: column `sequence`; frames in order: column `frame`" in note for note in plan.notes
    )


@pytest.mark.parametrize(
    ("method", "lacks", "words"),
    [
        ("egomotion", {"azimuth"}, "azimuth"),
        ("interaction", set(COLUMNS[4:]), "no task's columns|columns of no task"),
        ("coherence", {"sequence"}, "of a single one"),
    ],
)
def test_what_a_table_lacks_is_refused_in_one_line(tmp_path, method, lacks, words):
    table = write(tmp_path / "images", tuple(name for name in COLUMNS if name not in lacks))
    with pytest.raises(ValueError, match=words) as error:
        run(table, tmp_path / "run", method)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_does_not_go_on_with_other_numbers_unless_asked(tmp_path):
    table = write(tmp_path / "data")
    run(table, tmp_path / "run", "interaction", steps=2)
    table.write_text(table.read_text().replace("object 0", "object 2"))
    with pytest.raises(ValueError, match=r"another configuration.*columns: "):
        run(table, tmp_path / "run", "interaction", extend=True)
    for steps in (4, 6):  # once accepted, they are the run's
        result = run(
            table, tmp_path / "run", "interaction", steps=steps, extend=True, accept_changed_data=steps == 4
        )
        assert result.steps == steps
