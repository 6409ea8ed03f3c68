"""Lists of files and folders as a source."""

import os

import numpy as np
import pytest
from PIL import Image

from omma.data.sources import collection


@pytest.fixture
def photos(tmp_path, monkeypatch):
    for value, name in enumerate(("a/cat/1", "a/cat/2", "a/dog/1", "a/dog/2", "b/cat/3", "b/dog/3")):
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5, 3), value, np.uint8)).save(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def values(images) -> list[int]:
    return [int(images.read(i).max()) for i in range(len(images))]


def test_files_stay_in_order_with_the_classes_of_their_folders(photos):
    images = collection.opened(["b/dog/3.png", photos / "a" / "cat" / "2.png", "a/cat/1.png", "a/dog/1.png"])
    assert values(images) == [5, 1, 0, 2]
    assert [images.classes[k] for k in images.labels] == ["dog", "cat", "cat", "dog"]
    assert images.path(0) == "b/dog/3.png"
    os.chdir("/")
    assert values(images) == [5, 1, 0, 2]


def test_folders(photos):
    images = collection.opened([photos / "b", "a/cat", "a/dog/2.png"])
    assert values(images) == [4, 5, 0, 1, 3]
    assert images.classes == ("cat", "dog")


def test_depth_of_labels(photos):
    images = collection.opened(["a", "b"], label_depth=1)
    assert images.classes == ("a", "b")
    assert images.labels.tolist() == [0, 0, 0, 0, 1, 1]


def test_what_is_no_image_is_listed(photos):
    (photos / "notes.txt").write_text("x")
    images = collection.opened(["a/cat/1.png", "notes.txt", "missing.png"])
    assert dict(images.skipped) == {"notes.txt": "not an image", "missing.png": "no such file"}


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["a", "b.zip"], "b.zip: a list names image files and folders"),
        (["missing.png"], "list: no images in it .*missing.png: no such file"),
    ],
)
def test_refused_in_a_line(photos, paths, words):
    with pytest.raises(ValueError, match=words) as error:
        collection.opened(paths)
    assert "\n" not in str(error.value)
