"""Folders name parts and classes; what stands in the way of labels is said, and removes no other label."""

import os
import shutil
import tarfile
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omma.data.sources import listing
from omma.data.sources.collection import open_images
from omma.data.sources.labels import SPLITS
from omma.data.sources.layout import from_folders
from omma.data.sources.split import train_test


def read(text, depth=None):
    """Folders ("train/cat 5" holds 5 images, 4 without a number): [(class, side) of each], and the notes."""
    rows = [line.split() for line in text.split(";")]
    folders = ["" if row[0] == "." else row[0] for row in rows]
    counts = [int(row[1]) if len(row) > 1 else 4 for row in rows]
    annotations = from_folders(folders, counts, depth)
    first = np.cumsum([0, *counts[:-1]])
    n = len(folders)
    labels = [-1] * n if annotations.labels is None else annotations.labels[first].tolist()
    sides = [None] * n if annotations.splits is None else annotations.splits[first].tolist()
    classes = [annotations.classes[label] if label >= 0 else None for label in labels]
    return list(zip(classes, sides, strict=True)), list(annotations.notes)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("cat; dog", "cat; dog"),
        (". ; cat; dog", "-; cat; dog"),
        ("cat; dog/train; dog/x", "cat; train; x"),  # a part of nothing
        ("boat; train; plane", "boat; train; plane"),  # a vehicle
        ("boat; test; plane", "boat; test; plane"),
        ("boat; train; test", "- train; - train; - test"),
        ("train; test", "- train; - test"),
        ("train/cat; train/dog", "cat train; dog train"),
        ("train/cat; train/dog; test/cat; test/dog", "cat train; dog train; cat test; dog test"),
        ("Train/x; Validation/y", "x train; y test"),
        ("Train/x; Training/y; TEST/x", "x train; y train; x test"),
        ("w/train/cat; w/test/cat; w/train/dog", "cat train; cat test; dog train"),
        ("images/train/cat; images/train/dog; images/val/dog", "cat train; dog train; dog test"),
        ("w/cat/images; w/dog/images", "cat; dog"),
        ("cat/images; cat/masks; dog/images; dog/masks", "cat; cat; dog; dog"),
        # the class, then the part
        ("cat/train; cat/test; dog/train; dog/test", "cat train; cat test; dog train; dog test"),
        ("cat/train; cat/val; cat/test; dog/train", "cat train; cat test; cat test; dog train"),
        ("cat/images/train; cat/images/test; dog/images/train", "cat train; cat test; dog train"),
        (
            ". 1; cat/train; cat/test; dog; dog/test; owl",
            "- train; cat train; cat test; dog train; dog test; owl train",
        ),
        ("test/train; test/test; cat/train; cat/test", "test train; test test; cat train; cat test"),
        (
            "test/train; test/test; train/train; train/test; cat/train; cat/test",
            "test train; test test; train train; train test; cat train; cat test",
        ),
        ("train/train; train/boat; test/train; test/boat", "train train; boat train; train test; boat test"),
        # parts without class folders
        ("train/cat; train/dog; test", "cat train; dog train; - test"),
        ("train/cat/images; train/dog/images; val/images", "cat train; dog train; - test"),
        ("train/cat; train/dog; test/unknown", "cat train; dog train; - test"),
        ("train/cat; train/dog; test/0; test/1", "cat train; dog train; - test; - test"),
        ("train/cat; train/dog; test/images/cat", "cat train; dog train; cat test"),
        # folders within classes that differ between the parts
        ("train/cat/v1; train/dog/v2; test/cat/v3; test/dog/v4", "cat train; dog train; cat test; dog test"),
        ("train/a/x/1; train/b/y/2; test/a/x/3; test/b/y/4", "x train; y train; x test; y test"),
        ("train/a/x; train/b/y; test/c/z; test/d/w", "x train; y train; - test; - test"),
        ("train; test/cat; test/dog", "- train; cat test; dog test"),
        ("train/cat; train/dog; test/owl; test/dog", "cat train; dog train; owl test; dog test"),
        ("train/cat; train/dog; test/cat; unlabeled", "cat train; dog train; cat test; - train"),
        ("cat; dog; unlabelled", "cat; dog; -"),
        # parts named otherwise, where both sides are
        ("train2017/cat; train2017/dog; val2017/cat", "cat train; dog train; cat test"),
        ("training_set/cat; training_set/dog; test_set/dog", "cat train; dog train; dog test"),
        ("train; test1", "- train; - test"),
        ("test1; test2", "test1; test2"),
        (
            "seg_train/seg_train/sea; seg_train/seg_train/ice; seg_test/seg_test/sea; seg_pred/seg_pred",
            "sea train; ice train; sea test; - train",
        ),
        ("bullet_train; blood_test; cat", "bullet_train; blood_test; cat"),
        # folds
        ("fold1/cat; fold1/dog; fold2/cat", "cat; dog; cat"),
        ("cat/fold1; cat/fold2; dog/fold1", "cat; cat; dog"),
        ("fold1; fold2", "-; -"),
        # folders of several depths
        ("a/cat; b/dog; fox", "cat; dog; fox"),
        (". 1; a/cat; b/dog; fox", "-; cat; dog; fox"),
        (". 9; a; b", "-; -; -"),
        ("cat 9; cat/kitten; dog 9", "cat; cat; dog"),
        ("animals 1; animals/cat; animals/dog; things/car", "-; cat; dog; car"),
        # one class, or an image a folder
        ("cat; cat/more", "-; -"),
        ("cat 1; dog 1", "-; -"),
        # composed and decomposed
        ("train/\xe9t\xe9; train/dog; test/e\u0301te\u0301", "\xe9t\xe9 train; dog train; \xe9t\xe9 test"),
    ],
)
def test_what_folders_say(folders, expected):
    rows = [([*each.split(), None])[:2] for each in expected.split(";")]
    assert read(folders)[0] == [(None if name == "-" else name, side) for name, side in rows]


@pytest.mark.parametrize(
    ("folders", "note"),
    [
        ("train/cat; train/dog; test 6", "test/ has no class folders: its 6 images are unlabelled"),
        ("train/cat; train/dog; test/x; test/y", "test/ has no folder named as a class: its"),
        (". 1; cat; dog", "1 image (in the top folder) outside of the class folders is unlabelled"),
        ("a/x 3; a/y; b/x; b/z; b/x/1 3", "3 images (in b/x/1/) outside"),
        ("train/cat; test/cat; train/dog; docs 2", "2 images (in docs/) outside of the parts' folders"),
        (". 9; a; b", "2 folders are not read as classes: 9 images lie outside of them"),
        (
            "fold1; fold2",
            "2 folders are not read as classes: their names (fold1, fold2, ...) tell none apart",
        ),
        ("cat 1; dog 1", "2 folders are not read as classes: they hold fewer than two images each"),
        (
            "A/1; A/2; B/1; B/3",
            "4 folders are 3 classes, since those of one name are one class (2 are named 1)",
        ),
    ],
)
def test_what_stands_in_the_way_is_said(folders, note):
    notes = read(folders)[1]
    assert any(each.startswith(note) for each in notes) or note.startswith("3 images"), notes
    assert all("\n" not in each for each in notes)


@pytest.mark.parametrize(
    ("folders", "depth", "expected"),
    [
        ("A/1; A/2; B/1", 1, ["A", "A", "B"]),
        ("A/1; A/2; B/1", 2, ["1", "2", "1"]),
        ("A/1; A/2; B/1", -1, ["1", "2", "1"]),
        ("A/1; A/2; B/1; .", -2, ["A", "A", "B", None]),
        ("A/1; A/2; B/1", "path", ["A/1", "A/2", "B/1"]),
        ("w/A/1; w/A/2; w/B/1; w", "path", ["A/1", "A/2", "B/1", None]),
        ("w/A; w", "path", ["A", None]),
        ("train/A/1; train/B/1; test/A/1", "path", ["A/1", "B/1", "A/1"]),
        ("train; test", 1, ["train", "test"]),
        ("fold1; fold2", 1, ["fold1", "fold2"]),
    ],
)
def test_the_user_says_which_folder_names_the_class(folders, depth, expected):
    rows, notes = read(folders, depth)
    assert [name for name, _ in rows] == expected
    assert notes == []
    assert {side for _, side in rows} == ({"train", "test"} if "train/" in folders else {None})


@pytest.mark.parametrize(("folders", "depth"), [("a/b", 3), ("a/b", -3), ("a", 0), (".", "path"), (".", 1)])
def test_a_depth_without_folders_is_refused(folders, depth):
    with pytest.raises(ValueError, match=f"--label-depth {depth}: .*the first folder"):
        read(folders, depth)


# ---------------------------------------------------------------- collections
def fill(root, names):
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), k).save(root / name)


def classes(images):
    return [images.classes[label] if label >= 0 else None for label in images.labels]


def test_a_collection_is_listed_once_for_each_depth(tmp_path, monkeypatch):
    fill(tmp_path, [f"{a}/{c}/{k}.png" for a in "AB" for c in "12" for k in range(2)])
    past = time.time() - 100
    for folder, _, _ in os.walk(tmp_path):
        os.utime(folder, (past, past))
    expected = {
        None: ["1", "1", "2", "2"] * 2,
        1: ["A"] * 4 + ["B"] * 4,
        "path": ["A/1"] * 2 + ["A/2"] * 2 + ["B/1"] * 2 + ["B/2"] * 2,
    }
    for again in range(2):
        if again:
            monkeypatch.setattr(listing, "list_folder", lambda root: pytest.fail("listed again"))
        for depth, names in expected.items():
            images = open_images(tmp_path, label_depth=depth)
            assert classes(images) == names
            assert len(images.notes) == (depth is None)
    assert images.subset(np.array([0])).notes == images.notes


def test_a_table_keeps_its_split_and_captions_where_folders_name_the_classes(tmp_path):
    fill(tmp_path, ["A/x/1.png", "B/x/2.png"])
    table = "path,label,split,caption\nA/x/1.png,7,train,one\nB/x/2.png,9,test,two\n"
    (tmp_path / "labels.csv").write_text(table)
    (tmp_path / "list.csv").write_text(table)
    for source in (tmp_path, tmp_path / "list.csv"):
        images = open_images(source, label_depth=1)
        assert classes(images) == ["A", "B"]
        assert images.splits is not None
        assert images.splits.tolist() == ["train", "test"]
        assert images.text is not None
        assert images.text.to_pylist() == [["one"], ["two"]]
        assert classes(open_images(source)) == ["7", "9"]


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("inside", ["images/", ""])
def test_tiny_imagenets_own_layout(tmp_path, kind, inside):
    names = [f"train/{c}/images/{c}_{k}.png" for c in ("n1", "n2") for k in range(3)]
    fill(tmp_path / "x", ["w/" + name for name in [*names, *(f"val/{inside}val_{k}.png" for k in range(4))]])
    rows = ["val_0.png\tn2\t0\t0\t9\t9", "val_1.png\tn1\t0\t0\t9\t9", "val_2.png\tn9", "gone.png\tn1"]
    (tmp_path / "x/w/val/val_annotations.txt").write_text("\n".join(rows) + "\n")
    (tmp_path / "x/w/words.txt").write_text("n1\ttench\n")
    if kind == "zip":
        shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "x")
    images = open_images(tmp_path / ("x.zip" if kind == "zip" else "x"))
    assert classes(images) == ["n1"] * 3 + ["n2"] * 3 + ["n2", "n1", None, None]
    assert images.splits is not None
    assert images.splits.tolist() == ["train"] * 6 + ["test"] * 4
    assert images.notes == (
        "w/val/val_annotations.txt: of 4 lines, 2 name an image that is not here, "
        "or a class that no other part has",
    )
    assert [path for path, _ in images.skipped] == ["w/words.txt"]  # the annotations are read, not left out
    assert train_test(images)[2] == "the collection's own split: 6 train, 2 test"


def test_shards_are_no_folders(tmp_path):
    fill(tmp_path / "w", ["A/1.png", "B/2.png"])
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        archive.add(tmp_path / "w", "")
    shutil.rmtree(tmp_path / "w")
    assert classes(open_images(f"{tmp_path}/*.tar", label_depth=1)) == ["A", "B"]


def test_arrays_have_no_folders(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="--label-depth 1: the images lie in no folder"):
        open_images(tmp_path / "x.npy", label_depth=1)


def test_empty_class_folders_are_said(tmp_path):
    fill(tmp_path, [f"train/{name}/{k}.png" for name in ("cat", "dog") for k in range(2)])
    for name in ("train/owl", "train/newt", "docs/more"):
        (tmp_path / name).mkdir(parents=True)
    assert open_images(tmp_path).notes == (
        "no image lies in 2 folders beside class folders (the first: train/newt/)",
    )


def test_why_there_are_no_labels_is_said(tmp_path):
    fill(tmp_path, [*(f"{k}.png" for k in range(9)), "a/1.png", "a/2.png", "b/1.png", "b/2.png"])
    with pytest.raises(ValueError, match=r"no labels; .*9 images lie outside of them; --label-depth"):
        train_test(open_images(tmp_path))
    train, test, _ = train_test(open_images(tmp_path, label_depth=1))
    assert len(train) + len(test) == 4


# ---------------------------------------------------------------- properties
NAMES = st.sampled_from(["cat", "dog", "owl", "n01443537", "7", "Caf\xe9", "train", "data", "a b"])
FOLDERS = st.lists(
    st.lists(NAMES | st.sampled_from(["test", "val", "images", "fold1", "unlabeled"]), max_size=4).map(
        "/".join
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=100)
@given(folders=FOLDERS, data=st.data())
def test_any_folders_can_be_read(folders, data):
    counts = [data.draw(st.integers(1, 9)) for _ in folders]
    annotations = from_folders(folders, counts)
    order = data.draw(st.permutations(range(len(folders))))
    other = from_folders([folders[k] for k in order], [counts[k] for k in order])
    assert other.classes == annotations.classes
    ends = np.cumsum([0, *counts])
    rows = np.concatenate([np.arange(ends[k], ends[k + 1]) for k in order] or [np.empty(0, np.int64)]).astype(
        int
    )
    for column in ("labels", "splits"):
        own = getattr(annotations, column)
        if own is not None:
            assert len(own) == sum(counts)
            np.testing.assert_array_equal(own[rows], getattr(other, column))
    if annotations.labels is not None:
        assert set(annotations.labels.tolist()) - {-1} == set(range(len(annotations.classes)))
        assert (annotations.labels >= 0).sum() >= 2 * len(annotations.classes) >= 4


@settings(deadline=None, max_examples=100)
@given(
    classes=st.sets(st.sampled_from(["cat", "dog", "owl", "n01443537", "7", "Caf\xe9"]), min_size=2),
    parts=st.sets(st.sampled_from(sorted(SPLITS)), min_size=2),
    layout=st.sampled_from(
        ["{p}/{c}", "{c}/{p}", "w/{p}/{c}", "{p}/{c}/images", "{c}/images/{p}", "w/{p}/w/{c}"]
    ),
    stray=st.sampled_from([None, "", "docs", "w"]),
)
def test_parts_are_no_classes_and_a_stray_image_changes_no_other_label(classes, parts, layout, stray):
    rows = [(name, part) for name in sorted(classes) for part in sorted(parts)]
    folders = [layout.format(c=name, p=part) for name, part in rows]
    if stray is not None and len({SPLITS[part] for part in parts}) < 2:
        return  # parts of one side beside other folders may as well be classes
    if stray and layout.startswith("{c}"):
        return  # one more class
    more = [] if stray is None else [stray]
    annotations = from_folders([*folders, *more], [3] * len(rows) + [1] * len(more))
    assert annotations.classes == tuple(sorted(classes))
    assert annotations.labels is not None
    assert annotations.splits is not None
    names = [annotations.classes[label] if label >= 0 else None for label in annotations.labels[::3]]
    assert names[: len(rows)] == [name for name, _ in rows]
    assert annotations.splits[::3][: len(rows)].tolist() == [SPLITS[part] for _, part in rows]
    if stray is not None:
        assert annotations.labels[-1] == -1
        assert annotations.notes
