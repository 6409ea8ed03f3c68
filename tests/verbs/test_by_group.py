"""`--group`: what belongs together is on one side of every split, and leakage is named."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import omma
from omma import backbones, weights
from omma.adaptation import curve as curves
from omma.core.protocols import Needs, Preprocess
from omma.data.sources.collection import open_images
from omma.data.sources.selection import labelled_by
from omma.evaluation.curve import interval, parse
from omma.pretraining import data, few_labels
from omma.pretraining.request import Supervision
from omma.verbs.evaluate import evaluate

PREPROCESS = Preprocess(
    size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)
CPU: dict[str, Any] = {"device": "cpu", "precision": "fp32"}
SEQUENCES, FRAMES = 30, 22  # more frames than k-NN has neighbours


def write(folder, sequences=SEQUENCES, frames=FRAMES, size=16):
    """Frames of a sequence are near copies; its label is drawn, so nothing that is seen tells it."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (sequences, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    labels = rng.permutation(np.arange(sequences) % 2)
    rows = ["path,label,sequence,frame,split,wet,dark"]
    for s in range(sequences):
        for f in range(frames):
            noisy = patterns[s] + rng.normal(0, 8, patterns[s].shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{s}-{f}.png")
            part = "test" if f == 0 else "train"
            rows.append(f"{s}-{f}.png,{'ab'[labels[s]]},s{s},{f},{part},{labels[s]},{int(s % 3 == 0)}")
    (folder / "with_split.csv").write_text("\n".join(rows))
    (folder / "plain.csv").write_text("\n".join(rows).replace("split", "part"))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("frames"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(5)
    encoder = backbones.build(name="vit-ti/8", image_size=16, dim=24, heads=3, depth=1)
    path = tmp_path_factory.mktemp("runs") / "x"
    weights.save(path, encoder, PREPROCESS)
    return path


def test_evaluate_splits_by_sequence_and_names_what_leaks(model, folder, tmp_path):
    every = ("knn", "linear", "ridge")
    outcome = evaluate(
        model, folder / "plain.csv", protocols=every, metrics=("all",), json=tmp_path / "r.json", **CPU
    )
    for score in outcome.results:
        assert (score.group, score.test_groups, score.n_test) == ("sequence", 6, 132)
        assert score.split.startswith("split by sequence, 20% test")
        low, high = score.interval95
        if score.metric == "top1":
            assert score.value < 0.9
            assert high - low > 0.25  # of 132 single images it would be at most .17
    leak = outcome.leakage
    assert leak is not None
    assert leak.leaking == 1
    assert leak.by_image.value > 0.95
    assert leak.by_group.value == next(r.value for r in outcome.headline() if r.protocol == "knn")
    assert leak.sentence() in outcome.notes
    assert any("6 groups by sequence" in note for note in outcome.notes)
    written = json.loads((tmp_path / "r.json").read_text())["leakage"]
    assert written["difference"] == pytest.approx(leak.by_image.value - leak.by_group.value)
    assert written["group"] == "sequence"


def test_none_splits_by_image(model, folder):
    outcome = evaluate(model, folder / "plain.csv", protocols=("knn",), group="none", floors=False, **CPU)
    assert outcome.leakage is None
    (shown,) = outcome.headline()
    assert shown.group is None
    assert shown.value > 0.95


def test_an_own_split_that_groups_straddle_is_kept_until_groups_are_asked_for(model, folder):
    table = folder / "with_split.csv"
    kept = evaluate(model, table, protocols=("knn",), floors=False, **CPU)
    assert kept.leakage is not None
    assert kept.headline()[0].split.startswith("the collection's own split")
    assert (kept.leakage.straddling, kept.leakage.groups, kept.leakage.leaking) == (30, 30, 1)
    assert "30 of 30 groups by sequence are on both sides" in kept.leakage.sentence()
    assert "--group sequence" in kept.leakage.sentence()
    asked = evaluate(model, table, protocols=("knn",), group="sequence", floors=False, **CPU)
    assert asked.headline()[0].split.startswith("split by sequence")
    assert kept.headline()[0].value > asked.headline()[0].value + 0.2


def test_several_labels_an_image(model, folder):
    images = labelled_by(open_images(folder / "plain.csv"), ["wet", "dark"])
    outcome = evaluate(model, images, protocols=("knn", "linear"), floors=False, **CPU)
    assert {r.group for r in outcome.results} == {"sequence"}
    assert all(r.split.startswith("split by sequence") for r in outcome.results)


def test_a_curve_by_group(model, folder):
    options: dict[str, Any] = {
        "labels": parse("4"),
        "seeds": 2,
        "adapters": ("knn",),
        "device": torch.device("cpu"),
    }
    options |= {"precision": torch.float32}
    loaded, images = weights.load(model), open_images(folder / "plain.csv")
    by_group = curves.curve(loaded, "x", images, group="sequence", **options)
    cell = by_group.cell("knn", by_group.labels[0])
    assert cell.groups is not None
    assert len(np.unique(cell.groups)) == 6
    assert "split by sequence" in by_group.protocol
    by_image = curves.curve(loaded, "x", images, group="none", **options)
    assert by_image.cell("knn", by_image.labels[0]).groups is None


def test_a_curves_interval_counts_groups():
    values = np.repeat(np.random.default_rng(0).random((1, 20)) < 0.5, 10, 1).repeat(3, 0).astype(float)
    mean, low, high = interval(values)
    again, wider_low, wider_high = interval(values, np.repeat(np.arange(20), 10))
    assert mean == again
    assert wider_high - wider_low > 2.5 * (high - low)
    np.testing.assert_allclose(interval(values, np.arange(200)), (mean, low, high))  # groups of one image


# ---------------------------------------------------------------- training
def test_pretrain_holds_out_whole_sequences(tmp_path):
    images = open_images(write(tmp_path, 102, 20, 4) / "plain.csv")
    notes = []
    found = data.prepare(images, Needs(), 0, group=None)
    assert found.groups is not None
    codes = found.groups.codes
    assert not set(codes[found.training]) & set(codes[found.sample])
    assert len(found.sample) == 100  # five sequences: the largest number below 5 %
    assert (
        "held out by sequence: 5 of 102; by image 100% of the held-out images would have others of their "
        "sequence in training"
    ) in found.notes
    by_image = data.prepare(images, Needs(), 0, group="none")
    assert by_image.groups is None
    assert set(codes[by_image.sample]) <= set(codes[by_image.training])
    with pytest.raises(ValueError, match="--group well"):
        data.prepare(images, Needs(), 0, notes.append, group="well")


def test_a_run_records_its_groups_and_one_that_knew_none_goes_on_without(tmp_path_factory, tmp_path):
    options: dict[str, Any] = {
        "method": "simclr", "model": "vit-ti/8", "model_options": {"dim": 24, "heads": 3, "depth": 1},
        "image_size": 16, "batch_size": 4, "device": "cpu", "workers": 0, "out": tmp_path,
    }  # fmt: skip
    table, config = str(write(tmp_path_factory.mktemp("few"), 6, 4) / "plain.csv"), tmp_path / "config.json"
    omma.pretrain(table, **options, steps=1)
    recorded = json.loads(config.read_text())
    assert recorded.pop("group") == "sequence"
    with pytest.raises(ValueError, match="group: 'sequence' there, 'part' now"):
        omma.pretrain(table, **options, steps=1, group="part")
    config.write_text(json.dumps(recorded))  # as before there were groups
    assert omma.pretrain(table, **options, steps=2, extend=True).steps == 2
    assert "group" not in json.loads(config.read_text())


def test_labels_are_held_out_by_group(folder):
    images = open_images(folder / "plain.csv")
    found = data.prepare(images, Needs(labels=True, holds_out=True), 0, supervision=Supervision())
    assert found.groups is not None
    codes = found.groups.codes
    assert not set(codes[found.training]) & set(codes[found.sample])
    assert found.held_out_notes == (
        "held out, to judge by: 132 labelled images, 20%, in 6 whole groups by sequence; by image 100% of "
        "them would have others of their sequence in training",
    )
    one_each = labelled_by(images, ["wet", "dark"])
    several = few_labels.divide(one_each, np.arange(len(images)), Supervision(), 0, found.groups)
    assert not set(codes[several.learned]) & set(codes[several.held_out])


def test_a_head_is_judged_by_group(model, folder, tmp_path):
    """By image most answers are right, which says nothing of another sequence."""
    figures = {}
    for group in ("none", None):
        out = tmp_path / str(group)
        omma.finetune(model, folder / "plain.csv", adapt="head", group=group, out=out, **CPU)
        facts = json.loads((out / "finetune.json").read_text())
        figures[group] = facts["held_out"]["metrics"]["top1"]
        assert ("by group" in facts["held_out"]["protocol"]) == (group is None)
        recorded = json.loads((out / "config.json").read_text())["adapt"]
        assert recorded.get("group") == (None if group else "sequence")
    assert figures["none"]["value"] > figures[None]["value"] + 0.15
    width = {group: np.subtract(*each["interval95"][::-1]) for group, each in figures.items()}
    assert width[None] > 2 * width["none"]
