"""Images are the same by content, wherever they lie and whatever their source is called."""

import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from omma.data.sources import identity, trained_on
from omma.data.sources.collection import ArrayImages, open_images

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(PIXELS):
        file = tmp_path / "photos" / f"c{i % 2}" / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return tmp_path / "photos"


def known(images, run):
    run.mkdir(exist_ok=True)
    identity.write(run / identity.RECORD, images.identity.record(), {})
    return trained_on.read(run)


def test_a_copy_a_table_and_an_archive_hold_the_same_images(folder, tmp_path):
    seen = known(open_images(folder), tmp_path / "run")
    assert (seen.images, seen.share) == (12, 1.0)
    shutil.copytree(folder, tmp_path / "copy")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, f"other/{file.name}")
    rows = "\n".join(str(file) for file in sorted(folder.rglob("*.png")))
    (tmp_path / "t.csv").write_text(f"path\n{rows}\n")
    for source in ("copy", "a.zip", "t.csv"):
        assert seen.among(open_images(tmp_path / source)) == 12
        assert known(open_images(tmp_path / source), tmp_path / "run").among(open_images(folder)) == 12
    assert seen.among(open_images(folder / "c0")) == 6


def test_images_that_were_not_trained_on_are_not_counted(folder, tmp_path):
    images = open_images(folder)
    (tmp_path / "run").mkdir()
    identity.write(tmp_path / "run" / identity.RECORD, images.identity.record(np.arange(6)), {})
    seen = trained_on.read(tmp_path / "run")
    assert (seen.among(images), seen.images) == (6, 6)
    assert seen.among(images.subset(np.arange(6, 12))) == 0  # the test part, say


def test_what_cannot_be_read_is_no_ones_copy(folder, tmp_path):
    images = open_images(folder)
    (folder / images.path(3)).unlink()
    seen = known(images, tmp_path / "run")
    assert (len(seen.keys), seen.images, seen.among(images)) == (11, 12, 11)


def test_of_many_images_a_sample_is_known(tmp_path, monkeypatch):
    images = ArrayImages(PIXELS)
    seen = known(images, tmp_path)
    assert seen.among(images) == 12
    assert seen.among(ArrayImages(255 - PIXELS)) == 0
    assert trained_on.read(tmp_path / "model.safetensors").images == 12
    monkeypatch.setattr(identity, "ALL", 3)
    monkeypatch.setattr(identity, "SAMPLE", 3)
    seen = known(images, tmp_path)
    assert (seen.images, seen.share, seen.among(images)) == (12, 0.25, 3)


def test_without_a_record_nothing_is_known(tmp_path):
    assert trained_on.read(tmp_path / "elsewhere" / "x") is None
    (tmp_path / identity.RECORD).write_bytes(b"PAR1")
    assert trained_on.read(tmp_path) is None
