"""What `omma pretrain` says of its images before the first step: copies, leakage, faults of a sample."""

import time

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import omma
from omma.data.sources import identity
from omma.data.sources.collection import ArrayImages, open_images
from omma.pretraining import preflight
from omma.pretraining.data import Data
from omma.pretraining.events import Note


def picture(seed, side=32):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def data(images, record):
    """All of its train part is trained on."""
    rows = np.arange(len(images)) if images.splits is None else np.flatnonzero(images.splits == "train")
    identity.write(record, images.identity.record(rows), {})
    return Data(source=images, rows=rows, training=rows, sample=rows[:1], notes=())


def folder(root, train=20, test=6):
    for part, numbers in (("train", range(train)), ("test", range(100, 100 + test))):
        for number in numbers:
            place = root / part / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(number)).save(place / f"{number:03}.png")
    return root


def test_nothing_is_said_where_nothing_is_found(tmp_path):
    images = open_images(folder(tmp_path / "i"))
    assert preflight.notes(data(images, tmp_path / "r"), tmp_path / "r", 32) == []


def test_copies_and_leakage_are_counted_with_the_first_named(tmp_path):
    root = folder(tmp_path / "i")
    for name in ("x", "y"):
        (root / "train/a" / f"{name}.png").write_bytes((root / "train/a/002.png").read_bytes())
    (root / "test/b/z.png").write_bytes((root / "train/b/001.png").read_bytes())
    (root / "test/b/zz.png").write_bytes((root / "test/b/101.png").read_bytes())  # no leak
    images = open_images(root)
    copies, leakage, remedy = preflight.notes(data(images, tmp_path / "r"), tmp_path / "r", 32)
    assert copies == (
        "copies among the images to train on: 2 of 30 images (the first: train/a/x.png is train/a/002.png)"
    )
    assert leakage.startswith("leakage: 1 test image is also among those to train on, of 30 images")
    assert "test/b/z.png is train/b/001.png" in leakage
    assert remedy.startswith(f"omma clean {root}")


def test_large_files_that_differ_in_the_middle_are_no_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "EDGE", 256)
    monkeypatch.setattr(preflight.identity, "EDGE", 256)
    values = np.stack([picture(0), picture(0), picture(0)])
    values[1, 16, 16] = 255 - values[1, 16, 16]
    images = ArrayImages(values)
    (copies, *_) = preflight.notes(data(images, tmp_path / "r"), tmp_path / "r", 32)
    assert "1 of 3 images" in copies
    assert "array[2] is array[0]" in copies


def test_faults_of_a_sample(tmp_path):
    values = np.stack([picture(number, 16) for number in range(40)])
    values[7] = 9
    values[31] = 200
    images = ArrayImages(values)
    told = preflight.notes(data(images, tmp_path / "r"), tmp_path / "r", 32)
    assert told[0] == "blank: 2 of 40 images looked at"
    assert (
        told[1]
        == "smaller than the 32 px that the network sees: 40 of 40 images looked at; they are enlarged"
    )


def test_images_that_cannot_be_read_are_told(tmp_path):
    images = open_images(folder(tmp_path / "i"))
    used = data(images, tmp_path / "r")
    (tmp_path / "i/train/a/004.png").write_bytes(b"torn")
    told = preflight.notes(used, tmp_path / "r", 32)
    assert told[0].startswith("cannot be read: 1 of 20 images looked at (the first: train/a/004.png: ")


def test_time_is_bounded_whatever_the_images_take(tmp_path, monkeypatch):
    images = ArrayImages(np.stack([picture(number, 8) for number in range(200)]))
    read, used = images.read, data(images, tmp_path / "r")
    monkeypatch.setattr(preflight, "SECONDS", 0.0)
    seen = []
    monkeypatch.setattr(
        type(images), "read", lambda self, i, at_least=None: seen.append(i) or read(i, at_least)
    )
    began = time.monotonic()
    preflight.notes(used, tmp_path / "r", 8)
    assert len(seen) == preflight.STEP
    assert time.monotonic() - began < 3


def test_a_missing_record_is_no_error(tmp_path):
    images = ArrayImages(np.stack([picture(number) for number in range(4)]))
    used = data(images, tmp_path / "r")
    assert preflight.notes(used, tmp_path / "elsewhere", 32) == []


def test_a_run_is_told_once_and_trains_as_without(tmp_path, monkeypatch):
    values = np.stack([picture(number, 16) for number in range(24)])
    values[5] = values[3]
    options = {
        "method": "simclr", "model": "vit-n/8", "image_size": 16, "batch_size": 8, "device": "cpu",
        "precision": "fp32", "workers": 0, "compile": "off",
    }  # fmt: skip
    images, told = ArrayImages(values), []

    def listen(event):
        told.extend([event.text] if isinstance(event, Note) else [])

    def copies():
        return [text for text in told if "copies among" in text]

    omma.pretrain(images, out=tmp_path / "run", steps=2, listen=listen, **options)
    assert len(copies()) == 1
    with monkeypatch.context() as patch:
        patch.setattr(preflight, "notes", lambda *_: [])
        omma.pretrain(images, out=tmp_path / "plain", steps=2, **options)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "plain"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert "preflight" not in (tmp_path / "run" / "config.json").read_text()
    omma.pretrain(images, out=tmp_path / "run", steps=3, extend=True, listen=listen, **options)
    assert len(copies()) == 1  # it goes on: nothing is said again
