"""A part of a collection to train on, and one to test on."""

import numpy as np
import pytest
from PIL import Image

from omma.data.sources.collection import ArrayImages, open_images
from omma.data.sources.selection import split_by
from omma.data.sources.split import train_test

FILES = [
    f"{domain}/{name}/{k}.png"
    for domain in ("photo", "sketch", "toon")
    for name in ("ant", "bee")
    for k in (0, 1)
]


@pytest.fixture(params=["folder", "labels.csv", "manifest"])
def images(request, tmp_path, monkeypatch):
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path / "cache"))
    for file in FILES:
        (tmp_path / "all" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "all" / file)
    parts = [(file, *file.split("/")[:2], number) for number, file in enumerate(FILES)]
    table = "path,domain,label,fold\n" + "".join(f"{f},{d},{name},{k % 3}\n" for f, d, name, k in parts)
    if request.param == "folder":
        return open_images(tmp_path / "all")
    if request.param == "labels.csv":
        (tmp_path / "all" / "labels.csv").write_text(table)
        open_images(tmp_path / "all")
        return open_images(tmp_path / "all")  # remembered
    (tmp_path / "all" / "list.csv").write_text(table)
    return open_images(tmp_path / "all" / "list.csv")


def parts(images):
    train, test, description = train_test(images)
    domains = [{images.path(i).split("/")[0] for i in rows} for rows in (train, test)]
    return *domains, len(train), len(test), description


def test_by_a_pattern_of_paths(images):
    train, test, n, m, description = parts(split_by(images, ["path=photo/*"], ["path=sketch/*"]))
    assert (train, test, n, m) == ({"photo"}, {"sketch"}, 4, 4)
    assert description == "trained on path=photo/*, tested on path=sketch/*: 4 train, 4 test"


def test_the_rest(images):
    assert parts(split_by(images, [], ["path=toon/*"]))[:2] == ({"photo", "sketch"}, {"toon"})
    assert parts(split_by(images, ["path=toon/*"], []))[:2] == ({"toon"}, {"photo", "sketch"})
    assert split_by(images, [], []) is images


def test_by_a_column(images):
    if images.columns is None:
        with pytest.raises(ValueError, match=r"has no column domain; choose among path$"):
            split_by(images, ["domain=photo"], [])
        return
    divided = split_by(images, ["domain=photo", "domain=toon"], ["domain=sketch"])
    assert parts(divided)[:2] == ({"photo", "toon"}, {"sketch"})
    assert divided.split_name == "trained on domain=photo or domain=toon, tested on domain=sketch"
    folds = split_by(images.subset(np.arange(12)[::-1]), [], ["fold=0"])
    assert (folds.splits == "test").sum() == 4
    assert {folds.path(i) for i in np.flatnonzero(folds.splits == "test")} == set(FILES[::3])


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["path"], [], "--train-on path: write COLUMN=VALUE"),
        ([], ["path=video/*"], r"--test-on path=video/\*: no image matches"),
        (["path=*"], ["path=photo/*"], "4 images are in both parts"),
        (["colour=red"], [], "has no column colour; choose among path"),
    ],
)
def test_refused(images, train, test, message):
    with pytest.raises(ValueError, match=message):
        split_by(images, train, test)


def test_parts_that_cannot_be_used_are_not_replaced_by_a_random_split(images):
    with pytest.raises(ValueError, match="of 1 classes to train on"):
        train_test(split_by(images, ["path=photo/ant/*"], ["path=sketch/*"]))


def test_by_class_without_a_table():
    images = ArrayImages(np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 0, 1, 2]), ("ant", "bee", "fly"))
    divided = split_by(images, [], ["class=fly"])
    assert divided.splits.tolist() == ["train", "train", "train", "test"]
