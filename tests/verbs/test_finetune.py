"""`omma finetune`, whole: from an encoder and labelled images to a classifier; killed, resumed, refused."""

import json
import os
import random
import signal
import time

import numpy as np
import processes
import pytest
import torch
from PIL import Image

import omma
from omma.data.sources import split
from omma.data.sources.collection import ArrayImages
from omma.pretraining.events import Note, Plan, Progress
from omma.pretraining.folder import RunFolder
from omma.verbs.pretrain import pretrain
from omma.weights.classifier import Classifier

TINY = {"model": "vit-n/8", "model_options": {"depth": 2, "dim": 32, "heads": 2, "hidden": 64}}
HERE = {"batch_size": 8, "device": "cpu", "precision": "fp32", "workers": 0}
# few steps suffice to learn colours
QUICK = {**HERE, "lr": 0.02, "options": {"scale": (0.8, 1.0), "head_warmup": 0.1, "fit_head": False}}


def finetune(*arguments, adapt="full", **options):
    return omma.finetune(*arguments, adapt=adapt, **options)


def colours(n=60, classes=3, seed=0, several=False):
    """Images whose channel `class` is bright; with several labels, two channels may be."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % classes
    pixels = rng.integers(0, 120, (n, 16, 16, 3), dtype=np.uint8)
    sets = np.eye(classes, dtype=np.int8)[kind]
    if several:
        sets[np.arange(n) % 7 == 0, 0] = 1
    for k in range(classes):
        pixels[sets[:, k] > 0, :, :, k] += 100
    return ArrayImages(pixels, sets if several else kind, ("red", "green", "blue")[:classes])


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A run folder to start from."""
    out = tmp_path_factory.mktemp("start") / "run"
    pretrain(colours(16), method="simclr", out=out, steps=1, image_size=16, **TINY, **HERE)
    return out


def state(folder):
    model = omma.load(folder)
    return {**model.encoder.state_dict(), **model.extras.tensors}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def lines(folder, event):
    return [line for line in RunFolder(folder).metrics() if line["event"] == event]


@torch.inference_mode()
def accuracy(folder, images):
    model = omma.load(folder)
    classifier = Classifier.of(model)
    assert classifier is not None
    pixels = model.preprocess([images.read(i) for i in range(len(images))])
    return float((classifier(model(pixels)).argmax(-1).numpy() == images.labels).mean())


@pytest.mark.parametrize("adapt", ["full", "bias"])
def test_an_encoder_and_labels_in_a_classifier_out(tmp_path, start, adapt):
    events = []
    result = finetune(
        start, colours(), out=tmp_path / "run", adapt=adapt, steps=40, listen=events.append, **QUICK
    )
    assert result.verdict is not None
    assert "held-out images are right" in str(result.verdict)
    assert accuracy(tmp_path / "run", colours(seed=1)) > 0.9
    (plan,) = (event for event in events if isinstance(event, Plan))
    assert (plan.used, plan.choice.image_size) == (48, 16)
    before, after = omma.load(start), omma.load(tmp_path / "run")
    assert after.preprocess.mean == before.preprocess.mean
    assert after.encoder.spec() == before.encoder.spec()
    changed = {
        name
        for name, p in after.encoder.named_parameters()
        if not torch.equal(p, before.encoder.get_parameter(name))
    }
    names = {name for name, _ in after.encoder.named_parameters() if adapt == "full" or name.endswith("bias")}
    assert changed == names
    assert any("parameters learn (bias)" in note for note in plan.notes) == (adapt == "bias")
    assert (RunFolder(tmp_path / "run").config().get("adapt") is None) == (adapt == "full")


def test_the_best_weights_by_the_held_out_images_are_the_result(tmp_path, start):
    """The learning rate goes on to destroy what was learned at first."""
    events = []
    options = {**QUICK, "lr": 3.0}
    finetune(start, colours(), out=tmp_path / "run", steps=60, patience=4, listen=events.append, **options)
    readings = lines(tmp_path / "run", "holdout")
    best = max(reversed(readings), key=lambda line: (line["top1"], -line["nll"]))
    assert best["best"]
    stopped = [event.text for event in events if isinstance(event, Note) and "ends early" in event.text]
    assert len(stopped) == 1
    assert f"at step {best['step']}" in stopped[0]
    assert sum(line["step"] > best["step"] for line in readings) == 4
    assert readings[-1]["step"] < 60
    model = omma.load(tmp_path / "run")
    classifier = Classifier.of(model)
    assert classifier is not None
    held_out = ArrayImages(*_held_out())
    pixels = model.preprocess([held_out.read(i) for i in range(len(held_out))])
    with torch.inference_mode():
        right = classifier(model(pixels)).argmax(-1).numpy() == held_out.labels
    assert right.mean() == pytest.approx(best["top1"])
    # the same command again does nothing, and a later end goes on
    again = finetune(start, colours(), out=tmp_path / "run", steps=60, patience=4, **options)
    assert again.steps == readings[-1]["step"]


def _held_out():
    images = colours()
    rows = split.stratified(images.labels, 0.2, 0)[1]
    return _pixels(images)[rows], images.labels[rows], images.classes


def _pixels(images):
    return np.stack([images.read(i) for i in range(len(images))])


def test_the_head_begins_as_a_linear_classifier_of_frozen_features(tmp_path, start):
    events = []
    options = {**HERE, "lr": 1e-9, "options": {"head_std": 0.0}}
    finetune(start, colours(), out=tmp_path / "run", steps=1, listen=events.append, **options)
    (plan,) = (event for event in events if isinstance(event, Plan))
    assert any("the head begins as a linear classifier" in note for note in plan.notes)
    assert [line["step"] for line in lines(tmp_path / "run", "holdout")] == [0, 1]
    assert lines(tmp_path / "run", "holdout")[0]["top1"] > 0.9
    options["options"]["fit_head"] = False
    finetune(start, colours(), out=tmp_path / "none", steps=1, **options)
    assert [line["step"] for line in lines(tmp_path / "none", "holdout")] == [1]
    finetune(start, colours(3), out=tmp_path / "one", steps=1, listen=events.append, shots=1, **HERE)
    notes = [note for event in events if isinstance(event, Plan) for note in event.notes]
    assert any("(class means)" in note for note in notes)


def test_a_classifier_goes_on_learning(tmp_path, start):
    """Its head is where the next run begins, whatever the order of the classes."""
    finetune(start, colours(), out=tmp_path / "one", steps=40, **QUICK)
    other = colours()
    other.labels = (other.labels + 1) % 3
    other.classes = ("blue", "red", "green")
    finetune(tmp_path / "one", other, out=tmp_path / "two", steps=1, **{**QUICK, "lr": 1e-9})
    assert lines(tmp_path / "two", "holdout")[-1]["top1"] > 0.9


def test_several_labels_an_image(tmp_path, start):
    finetune(start, colours(several=True), out=tmp_path / "run", steps=40, balance="loss", **QUICK)
    assert lines(tmp_path / "run", "holdout")[-1]["map"] > 0.9
    classifier = Classifier.of(omma.load(tmp_path / "run"))
    assert classifier is not None
    assert classifier.multi_label


@pytest.mark.parametrize("balance", ["loss", "sampler"])
def test_classes_of_different_sizes(tmp_path, start, balance):
    images = colours()
    images.labels[(images.labels == 2) & (np.arange(60) > 12)] = 0  # few are left
    finetune(start, images, out=tmp_path / "run", steps=2, balance=balance, **HERE)
    assert RunFolder(tmp_path / "run").config()["settings"]["config"]["balance"] == balance


@pytest.mark.parametrize(
    ("options", "used", "words"),
    [
        ({"shots": 8, "holdout": 0.25}, 18, "24 of 60 labelled images: 8 of each class"),
        ({"shots": 2}, 6, "fewer than 5 a class"),
        ({"fraction": 0.5}, 24, "0.5 of each class"),
        ({"holdout": 0}, 60, "as asked for"),
    ],
)
def test_few_labels_and_what_is_held_out(tmp_path, start, options, used, words):
    events = []
    result = finetune(
        start, colours(), out=tmp_path / "run", steps=2, listen=events.append, **options, **HERE
    )
    (plan,) = (event for event in events if isinstance(event, Plan))
    assert plan.used == used
    assert any(words in note for note in plan.notes)
    if plan.used in (6, 60):
        assert "not judged" in str(result.verdict)


def test_images_without_a_label_and_tiny_classes_are_said(tmp_path, start):
    images = colours(61)
    images.labels[:4] = -1
    images.labels[images.labels == 2] = 0
    images.labels[60] = 2
    events = []
    finetune(start, images, out=tmp_path / "run", steps=1, listen=events.append, **HERE)
    (plan,) = (event for event in events if isinstance(event, Plan))
    assert "left out, without a label: 4 images" in plan.notes
    assert "a single image to learn from: blue" in plan.notes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adapt": "prompts"}, "adapt='prompts': choose"),
        ({"adapt": "lora", "adapt_options": {"rang": 3}}, r"--adapt\.rang: lora has no such option"),
        ({"adapt_options": {"rank": 3}}, "give the adapter too"),
        ({"shots": 1, "fraction": 0.1}, "choose one"),
        ({"shots": 0}, "at least 1"),
        ({"holdout": 1.0}, "share in"),
        ({"balance": "yes"}, "balance"),
        ({"semi": True}, "--semi: .*`omma pretrain IMAGES --init .*` on all of them first"),
        ({"options": {"layer_decays": 1}}, "no such option"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(tmp_path, start, options, words):
    with pytest.raises(ValueError, match=words) as error:
        finetune(start, colours(), out=tmp_path / "run", steps=1, **HERE, **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_labels_that_are_not_usable_are_named_in_one_line(tmp_path, start):
    unlabelled, one = colours(), colours()
    unlabelled.labels, unlabelled.classes = None, ()
    one.labels[:], one.classes = 0, ("red",)
    for images, words in ((unlabelled, "these images have none"), (one, "all images are of one class")):
        with pytest.raises(ValueError, match=words) as error:
            finetune(start, images, out=tmp_path / "run", steps=1, **HERE)
        assert "\n" not in str(error.value)
    Image.fromarray(_pixels(colours(3))[0]).save(tmp_path / "a.png")
    (tmp_path / "twice.csv").write_text("path,label,label\na.png,red,blue\n")
    with pytest.raises(ValueError, match=r"twice\.csv: 2 columns are named `label`"):
        finetune(start, tmp_path / "twice.csv", out=tmp_path / "run", steps=1, **HERE)
    with pytest.raises(ValueError, match="omma finetune MODEL LABELLED"):
        pretrain(colours(), method="finetune", init=start, out=tmp_path / "run", steps=1, **HERE)


def test_pretraining_with_an_adapter_leaves_the_rest_as_it_was(tmp_path, start):
    events = []
    pretrain(
        colours(), method="simclr", init=start, adapt="lora", adapt_options={"rank": "2"}, steps=3,
        out=tmp_path / "run", listen=events.append, **HERE,
    )  # fmt: skip
    (plan,) = (event for event in events if isinstance(event, Plan))
    assert any("parameters learn (lora)" in note for note in plan.notes)
    assert RunFolder(tmp_path / "run").config()["adapt"]["rank"] == 2
    before, after = omma.load(start).encoder, omma.load(tmp_path / "run").encoder
    assert after.spec() == before.spec()  # merged
    for name, p in after.named_parameters():
        assert name.endswith("bias") <= torch.equal(p, before.get_parameter(name))
    assert not equal(before.state_dict(), after.state_dict())
    with pytest.raises(ValueError, match="give --init too"):
        pretrain(colours(), method="simclr", adapt="lora", steps=1, out=tmp_path / "none", **HERE)


@pytest.mark.report
def test_the_report_shows_the_held_out_images_score(tmp_path, start):
    finetune(start, colours(), out=tmp_path / "run", steps=8, **HERE)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "held-out images are right" in report
    assert "Held-out images" in report
    assert "read without labels" not in report


# ---------------------------------------------------------------- killed and resumed
EMA = {"options": {**QUICK["options"], "ema": 0.9}}


def test_stopped_and_resumed_is_the_same(tmp_path, start):
    def stop(event):
        if isinstance(event, Progress) and event.step == 13:
            os.kill(os.getpid(), signal.SIGTERM)

    same = {"steps": 24, **QUICK, **EMA}
    finetune(start, colours(), out=tmp_path / "one", **same)
    assert finetune(start, colours(), out=tmp_path / "two", listen=stop, **same).stopped_by == signal.SIGTERM
    finetune(start, colours(), out=tmp_path / "two", **same)
    assert equal(state(tmp_path / "one"), state(tmp_path / "two"))
    assert lines(tmp_path / "one", "holdout") == lines(tmp_path / "two", "holdout")
    assert omma.load(tmp_path / "one").extras.facts == omma.load(tmp_path / "two").extras.facts


def test_killed_and_resumed_equals_uninterrupted(tmp_path, start):
    images = colours(120)
    np.savez(tmp_path / "data.npz", images=_pixels(images), labels=np.array(images.classes)[images.labels])

    def process(out):
        return processes.start(
            processes.omma, "finetune", str(start), str(tmp_path / "data.npz"), "--out", str(out),
            "--steps", "60", "--batch-size", "8", "--device", "cpu", "--checkpoint-every", "0.1", "--adapt",
            "bias",
        )  # fmt: skip

    assert process(tmp_path / "straight").wait() == 0
    killed = process(tmp_path / "killed")
    while killed.poll() is None and not list((tmp_path / "killed" / "checkpoints").glob("*.pt")):
        time.sleep(0.05)
    time.sleep(random.Random(os.getpid()).random() * 0.2)
    killed.kill()
    last = process(tmp_path / "killed")
    assert last.wait() == 0, last.errors
    assert equal(state(tmp_path / "straight"), state(tmp_path / "killed"))
    assert [line["step"] for line in lines(tmp_path / "killed", "step")] == list(range(1, 61))
    assert lines(tmp_path / "straight", "holdout") == lines(tmp_path / "killed", "holdout")
    description = json.loads((tmp_path / "killed" / "model.json").read_text())
    assert description["extras"]["classes"] == ["blue", "green", "red"]
