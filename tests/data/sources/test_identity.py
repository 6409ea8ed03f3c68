"""Which images a collection holds: what is the same, and what changed, under any name and time."""

import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from omma.data.sources import identity
from omma.data.sources.collection import ArrayImages, open_images


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path, format="BMP")  # of one size whatever it shows


@pytest.fixture
def folder(tmp_path):
    for k in range(12):
        picture(tmp_path / "photos" / f"{k:02}.bmp", k)
    return tmp_path / "photos"


def compared(before, now, tmp_path):
    identity.write(tmp_path / "r.parquet", before, {"n": 1})
    stored = identity.read(tmp_path / "r.parquet")
    assert stored is not None
    assert stored[1] == {"n": 1}
    return identity.compare(stored[0], open_images(now).identity)


def test_touched_copied_and_spelled_otherwise_is_the_same(folder, tmp_path):
    before = open_images(folder)
    record = before.identity.record()
    assert open_images(f"{folder}/").fingerprint == before.fingerprint
    os.utime(folder / "03.bmp", (1, 1))
    changes = compared(record, folder, tmp_path)
    assert not changes
    assert changes.touched == 1
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)  # with other times
    changes = compared(record, tmp_path / "copy", tmp_path)
    assert not changes
    assert changes.touched == 12


def test_what_changed_is_named(folder, tmp_path):
    record = open_images(folder).identity.record()
    picture(folder / "new.bmp", 50)
    changes = compared(record, folder, tmp_path)
    assert str(changes) == "1 image added (new.bmp)"
    (folder / "00.bmp").unlink()
    picture(folder / "05.bmp", 51)  # in place, of the same size
    picture(folder / "06.bmp", 52)
    changes = compared(record, folder, tmp_path)
    assert (changes.added, changes.removed, changes.changed) == (
        ["new.bmp"],
        ["00.bmp"],
        ["05.bmp", "06.bmp"],
    )
    assert str(changes) == "1 image added (new.bmp), 1 image removed (00.bmp), 2 images changed (05.bmp, ...)"
    assert not changes.reordered


def test_another_order_is_a_change(folder, tmp_path):
    images = open_images(folder)
    record = images.identity.record()
    assert identity.compare(record, images.subset(np.arange(12)[::-1]).identity).reordered


@pytest.mark.parametrize("kind", ["zip", "tar", "npy"])
def test_archives_and_arrays_are_told_by_their_content(folder, tmp_path, kind):
    def pack(out):
        if kind == "npy":
            files = sorted(folder.glob("*.bmp"))
            np.save(out, np.stack([np.array(Image.open(file)) for file in files]))
        elif kind == "tar":
            shutil.make_archive(str(out.with_suffix("")), "tar", folder)
        else:
            with zipfile.ZipFile(out, "w") as archive:
                for file in sorted(folder.glob("*.bmp")):
                    archive.writestr(file.name, file.read_bytes())

    record = None
    for out, changed in (
        (tmp_path / f"a.{kind}", 0),
        (tmp_path / f"b.{kind}", 0),
        (tmp_path / f"c.{kind}", 1),
    ):
        if changed:
            picture(folder / "04.bmp", 60)
        pack(out)
        if record is not None and kind != "npy":  # whose images are named after the file
            assert len(compared(record, out, tmp_path).changed) == changed
        record = record if record is not None else open_images(out).identity.record()
    os.utime(tmp_path / f"a.{kind}", (5, 5))
    assert not compared(record, tmp_path / f"a.{kind}", tmp_path)


def test_of_many_files_each_is_looked_at_and_a_sample_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "ALL", 5)
    monkeypatch.setattr(identity, "SAMPLE", 6)
    monkeypatch.setattr(identity, "_CHUNK", 5)
    monkeypatch.setattr("omma.data.sources.indexed.FEW", 5)
    images = open_images(folder)
    record = images.identity.record()
    read = record["content"].is_valid().to_numpy()
    assert read.sum() == 6
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    assert not compared(record, folder, tmp_path)  # the sample's content is the same
    unread = int(np.flatnonzero(~read)[0])
    picture(folder / f"{unread:02}.bmp", 70)
    now = open_images(folder)
    assert now.fingerprint != images.fingerprint  # overwritten in place, of the same size
    assert now.fingerprint_of_0_1 == images.fingerprint_of_0_1  # which did not look
    picture(folder / f"{int(np.flatnonzero(read)[0]):02}.bmp", 71)
    changes = compared(record, folder, tmp_path)
    assert changes.unsure
    assert "only saved again" in str(changes)


def test_a_damaged_record_is_none(tmp_path):
    (tmp_path / "r.parquet").write_bytes(b"no")
    assert identity.read(tmp_path / "r.parquet") is None
    assert identity.read(tmp_path / "none.parquet") is None


def test_arrays_in_memory(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    record = ArrayImages(values).identity.record()
    assert not identity.compare(record, ArrayImages(values.copy()).identity)
    values[2] += 1
    assert identity.compare(record, ArrayImages(values).identity).changed == ["array[2]"]
