"""Images are the same by content, wherever they lie and whatever their source is called."""

import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from omma.data.sources import identity
from omma.data.sources.collection import ArrayImages, open_images

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(PIXELS):
        file = tmp_path / "photos" / f"c{i % 2}" / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return tmp_path / "photos"


def keys(source):
    return sorted(identity.keys(open_images(source)).tolist())


def test_a_copy_a_table_and_an_archive_hold_the_same_images(folder, tmp_path):
    own = keys(folder)
    assert len(set(own)) == 12
    shutil.copytree(folder, tmp_path / "copy")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, f"other/{file.name}")
    rows = "\n".join(str(file) for file in sorted(folder.rglob("*.png")))
    (tmp_path / "t.csv").write_text(f"path\n{rows}\n")
    for source in ("copy", "a.zip", "t.csv"):
        assert keys(tmp_path / source) == own
    assert set(keys(folder / "c0")) < set(own)


def test_a_file_and_its_bytes_have_one_key(tmp_path):
    for size in (0, 10, identity.EDGE, 3 * identity.EDGE):
        content = np.random.default_rng(size).bytes(size)
        (tmp_path / "x").write_bytes(content)
        assert identity._file_key(str(tmp_path / "x")) == identity.content_key(content)
    middle = bytearray(3 * identity.EDGE)
    key = identity.content_key(bytes(middle))
    assert identity.content_key(bytes(middle) + b"\0") != key
    middle[-1] = 1
    assert identity.content_key(bytes(middle)) != key


def test_what_cannot_be_read_is_no_ones_copy(folder):
    images = open_images(folder)
    gone = images.path(3)
    (folder / gone).unlink()
    known = identity.keys(images)
    assert known[3] == 0
    assert (known != 0).sum() == 11
    trained_on = identity.TrainedOn(np.sort(known), 12)
    assert trained_on.among(known).tolist() == [i != 3 for i in range(12)]


def test_kept_with_a_run_and_read_back(tmp_path, monkeypatch):
    images = ArrayImages(PIXELS)
    identity.write(tmp_path, images)
    known = identity.read(tmp_path)
    assert (known.images, known.share) == (12, 1.0)
    assert known.among(identity.keys(images)).all()
    assert not known.among(identity.keys(ArrayImages(255 - PIXELS))).any()
    assert identity.read(tmp_path / "model.safetensors").images == 12
    monkeypatch.setattr(identity, "MOST", 3)
    identity.write(tmp_path, images)
    known = identity.read(tmp_path)
    assert (known.images, known.share) == (12, 0.25)
    assert known.among(identity.keys(images)).sum() == 3
    for damaged in (b"", b"\x93NUMPY\x01\x00", (tmp_path / identity.FILE).read_bytes()[:-5]):
        (tmp_path / identity.FILE).write_bytes(damaged)
        assert identity.read(tmp_path) is None
    assert identity.read(tmp_path / "elsewhere" / "x") is None
