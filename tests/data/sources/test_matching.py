"""A labels.csv finds the images it means, however it spells their paths; what matches nothing is named."""

import io
import os
import tarfile
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from omma.data.sources.collection import open_images

FILES = [f"{folder}/{folder}{k}.png" for folder in "ab" for k in range(2)]
RIGHT = ["warm", "cold", "warm", "cold"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path / "cache"))


def png():
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


PNG = png()


def collection(tmp_path, table, files=FILES, kind="folder", name="labels.csv", top=""):
    root = tmp_path / "things"
    contents = {top + file: PNG for file in files} | (
        {top + name: table.encode()} if table is not None else {}
    )
    if kind == "folder":
        for file, data in contents.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(data)
        return root
    file = tmp_path / f"things.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for member, data in contents.items():
                archive.writestr(member, data)
    else:
        with tarfile.open(file, "w") as archive:
            for member, data in contents.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file


def labels_of(images):
    return None if images.labels is None else [images.classes[k] if k >= 0 else None for k in images.labels]


def rows(spell, files=FILES, head="path,label"):
    return (
        head + "\n" + "".join(f"{spell(file)},{label}\n" for file, label in zip(files, RIGHT, strict=False))
    )


SPELLINGS = {
    "as it is": lambda f: f,
    "dot": lambda f: f"./{f}",
    "doubled": lambda f: f.replace("/", "//"),
    "backslashes": lambda f: f.replace("/", "\\"),
    "top folder": lambda f: f"things/{f}",
    "two top folders": lambda f: f"data/things/{f}",
    "another machine": lambda f: f"/home/me/things/{f}",
    "windows": lambda f: "C:\\data\\" + f.replace("/", "\\"),
    "no extension": lambda f: f[:-4],
    "extension in capitals": lambda f: f.upper()[-4:].join([f[:-4], ""]),
    "name alone": lambda f: f[2:],
    "name without extension": lambda f: f[2:-4],
    "spaces": lambda f: f" {f} ",
}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(tmp_path, spelling, kind):
    source = collection(tmp_path, rows(SPELLINGS[spelling]), kind=kind)
    for _ in range(2):  # the second is remembered
        images = open_images(source)
        assert labels_of(images) == RIGHT
        assert images.notes == ()


def test_absolute_paths(tmp_path):
    root = tmp_path / "things"
    assert labels_of(open_images(collection(tmp_path, rows(lambda f: str(root / f))))) == RIGHT


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_table_within_the_top_folder(tmp_path, kind):
    source = collection(tmp_path, rows(str), kind=kind, top="wrap/")
    assert labels_of(open_images(source)) == RIGHT
    assert labels_of(open_images(source)) == RIGHT


def test_rows_count_from_the_folder_of_all_images(tmp_path):
    files = [f"images/{file}" for file in FILES]
    assert labels_of(open_images(collection(tmp_path, rows(lambda f: f[7:], files), files))) == RIGHT


@pytest.mark.parametrize("head", ["file_name", "filename", "image", "image_id", "id", "File", "Image_ID"])
def test_other_names_of_the_column(tmp_path, head):
    images = open_images(collection(tmp_path, rows(str, head=f"{head},label")))
    assert labels_of(images) == RIGHT
    assert [note.lower() for note in images.notes] == [
        f"labels.csv: its column {head.lower()} names the images"
    ]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_as_hugging_face_writes_it(tmp_path, name):
    table = rows(str, head="file_name,label")
    if name.endswith("jsonl"):
        table = "".join(
            f'{{"file_name": "{f}", "label": "{label}"}}\n' for f, label in zip(FILES, RIGHT, strict=True)
        )
    assert labels_of(open_images(collection(tmp_path, table, name=name))) == RIGHT


def test_what_matches_nothing_is_named(tmp_path):
    table = "path,label\na/a0.png,x\nb/b1.png,y\nb/gone.png,y\nc/gone.png,x\n"
    images = open_images(collection(tmp_path, table))
    assert labels_of(images) == ["x", None, None, "y"]
    assert images.notes == (
        "labels.csv: of 4 rows 2 name no image here (the first: b/gone.png)",
        "labels.csv: of 4 images 2 have no label (the first: a/a1.png)",
    )


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_table_that_matches_nothing_leaves_the_folders(tmp_path, kind):
    source = collection(tmp_path, "path,label\nx/1.png,u\nx/2.png,v\n", kind=kind)
    for _ in range(2):
        images = open_images(source)
        assert labels_of(images) == ["a", "a", "b", "b"]
        assert images.notes == (
            "labels.csv is not used: none of its 2 rows names an image (the first: x/1.png); "
            "the class folders are",
        )


def test_a_table_without_paths_leaves_the_folders(tmp_path):
    images = open_images(collection(tmp_path, "number,label\n1,u\n"))
    assert labels_of(images) == ["a", "a", "b", "b"]
    assert "it has no column `path` (there are number, label)" in images.notes[0]


def test_ambiguous_rows_are_named(tmp_path):
    files = ["a/1.png", "b/1.png", "b/2.png", "b/3.png"]
    images = open_images(collection(tmp_path, "id,label\n1,x\n2,x\n3,y\n", files))
    assert labels_of(images) == [None, None, "x", "y"]
    assert "labels.csv: of 3 rows 1 may name several images and is not used (the first: 1)" in images.notes


def test_an_image_elsewhere_is_not_taken_for_one_here(tmp_path):
    images = open_images(collection(tmp_path, "path,label\na/a0.png,x\nother/b0.png,y\n"))
    assert labels_of(images) == ["x", None, None, None]


def test_rows_that_contradict(tmp_path):
    images = open_images(collection(tmp_path, rows(str) + "a/a0.png,cold\na/a1.png,cold\n"))
    assert labels_of(images) == [None, *RIGHT[1:]]
    assert (
        "labels.csv: 1 image has rows with different labels and counts as unlabelled (the first: a/a0.png)"
        in (images.notes)
    )


def test_names_compare_as_nfc(tmp_path):
    files = ["cafe\u0301/1.png", "cafe\u0301/2.png"]
    images = open_images(
        collection(tmp_path, "path,label\ncaf\u00e9/1.png,x\ncaf\u00e9/2.png,y\n", files, "zip")
    )
    assert labels_of(images) == ["x", "y"]


def test_a_damaged_table(tmp_path):
    with pytest.raises(ValueError, match=r"labels.csv: not a readable table \(line 2 has 3 cells"):
        open_images(collection(tmp_path, "path,label\na/a0.png,x,y\n"))
    root = collection(tmp_path / "2", "path,label\na/a0.png,x,y\n", name="metadata.csv")
    images = open_images(root)
    assert labels_of(images) == ["a", "a", "b", "b"]
    assert images.notes[0].startswith("metadata.csv is not used: not a readable table")


def test_a_table_rewritten_in_place_is_seen(tmp_path):
    root = collection(tmp_path, rows(str), top="wrap/")
    past = time.time() - 100
    for folder, _, _ in os.walk(root):
        os.utime(folder, (past, past))
    assert labels_of(open_images(root)) == RIGHT
    (root / "wrap" / "labels.csv").write_text(rows(str).replace("warm", "hot"))
    os.utime(root / "wrap", (past, past))
    assert labels_of(open_images(root)) == ["hot", "cold"] * 2


def test_the_split_of_folders_beside_a_table_of_labels(tmp_path):
    files = ["train/1.png", "train/2.png", "test/3.png", "test/4.png"]
    table = "path,label\n" + "".join(f"{file},{label}\n" for file, label in zip(files, RIGHT, strict=True))
    images = open_images(collection(tmp_path, table, files))
    assert images.splits is not None
    assert dict(zip([images.path(i) for i in range(4)], images.splits.tolist(), strict=True)) == {
        file: file.partition("/")[0] for file in files
    }
