"""Labels keep their texts: what differs is another class, and what is merged or odd is said."""

import unicodedata

import numpy as np
import pytest

from omma.data.sources.collection import ArrayImages, open_images
from omma.data.sources.labels import encode


@pytest.mark.parametrize(
    ("values", "codes", "classes"),
    [
        (["1_12", "11_2", "112"], [2, 1, 0], ("112", "11_2", "1_12")),
        (["007", "7", "7"], [0, 1, 1], ("007", "7")),
        (["007.0", "007"], [1, 0], ("007", "007.0")),  # no numbers, so not equal as floats
        (["+1", "1", "-1"], [1, 2, 0], ("-1", "+1", "1")),
        (["-1", "1", "-1"], [0, 1, 0], ("-1", "1")),
        (["10", "9", None, "2"], [2, 1, -1, 0], ("2", "9", "10")),
        (
            ["10.0", "2.0", "", "2"],
            [1, 0, -1, 0],
            ("2", "10"),
        ),  # as pandas writes numbers in a column with gaps
        ([2.0, 2, float("nan"), 10.0], [0, 0, -1, 1], ("2", "10")),
        (["1.5", "2.0", "nan"], [0, 1, -1], ("1.5", "2.0")),
        (["2.0", "2", "0.5", "-0.5"], [2, 2, 1, 0], ("-0.5", "0.5", "2")),
        (["2.0", "2", "cat"], [1, 0, 2], ("2", "2.0", "cat")),  # no column of numbers
        (["1e3", "1000"], [1, 0], ("1000", "1e3")),
        (["\u0663", "3", "\uff13"], [1, 0, 2], ("3", "\u0663", "\uff13")),  # digits of three scripts
        ([str(10**30), str(10**30 + 1), "5"], [1, 2, 0], ("5", str(10**30), str(10**30 + 1))),
        (["9" * 5000, "8"], [1, 0], ("8", "9" * 5000)),
        (["caf\u00e9", "cafe\u0301", "cafe"], [1, 1, 0], ("cafe", "caf\u00e9")),
        ([" cat", "cat ", "dog"], [0, 0, 1], ("cat", "dog")),
        (["Cat", "cat"], [0, 1], ("Cat", "cat")),
        ([True, False], [1, 0], ("False", "True")),
        ([b"cat", b"dog"], [0, 1], ("cat", "dog")),
        (["1", "NA", "None", "2"], [0, -1, -1, 1], ("1", "2")),
        (["cat", "NA", "none"], [1, 0, 2], ("NA", "cat", "none")),
    ],
)
def test_which_labels_are_one_class(values, codes, classes):
    read = encode(values)
    assert read.labels is not None
    assert (read.labels.tolist(), read.classes) == (codes, classes)
    assert all(unicodedata.is_normalized("NFC", name) for name in read.classes)


def test_no_label_at_all():
    read = encode([None, "", " ", float("nan"), "nan"])
    assert read.labels is None
    assert read.notes == ("the label 'nan' counts as none (1 image)",)


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (["-1", "0", "1"], "the label -1 is a class like any other"),
        (["Cat", "cat"], "the labels 'Cat' and 'cat' are different classes"),
        (["a_b", "a b"], "the labels 'a b' and 'a_b' are different classes"),
        (["1", "NA", "NA"], "the label 'NA' counts as none (2 images)"),
        (["cat", "None"], "the label 'None' (1 image) is a class"),
    ],
)
def test_what_a_reader_may_not_expect_is_said(values, note):
    assert [each for each in encode(values).notes if each.startswith(note)]


@pytest.mark.parametrize("values", [["-1", "1"], ["cat", "dog"], ["0", "1", None], [-2, -1, 0]])
def test_nothing_is_said_of_usual_labels(values):
    assert encode(values).notes == ()


def test_names_of_labels():
    read = encode([3, 5, 3, 7, 9], names=["c", "e", "x", None, "e"])
    assert read.classes == ("c", "e", "7", "e")
    assert read.notes == (
        "the label '3' has several names; the first, 'c', is used (another: 'x')",
        "the labels '5' and '9' are different classes of one name, 'e'",
    )


# ---------------------------------------------------------------- array files
IMAGES = np.zeros((4, 8, 8, 3), np.uint8)


def classes_of(tmp_path, **arrays):
    np.savez(tmp_path / "x.npz", **({"x": IMAGES} | arrays))
    images = open_images(tmp_path / "x.npz")
    labels = None if images.labels is None else [images.classes[k] if k >= 0 else None for k in images.labels]
    return labels, images.notes


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 2, 0, 2.0]),
        np.array([[0], [2], [0], [2]]),
        np.array(["0", "2", "0", "2"]),
        np.array([b"0", b"2", b"0", b"2"]),
    ],
)
def test_labels_of_an_npz(tmp_path, labels):
    assert classes_of(tmp_path, y=labels) == (["0", "2", "0", "2"], ())


def test_further_kinds_of_labels_of_an_npz(tmp_path):
    assert classes_of(tmp_path, labels=np.eye(3)[[2, 0, 2, 1]]) == (["2", "0", "2", "1"], ())
    assert classes_of(tmp_path, labels=np.array([True, False, True, True]))[0] == [
        "True",
        "False",
        "True",
        "True",
    ]
    assert classes_of(tmp_path, labels=np.array([1, np.nan, 2, 1]))[0] == ["1", None, "2", "1"]
    assert classes_of(tmp_path, labels=np.array([-1, 1, -1, 1]))[0] == ["-1", "1", "-1", "1"]


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        (
            {"labels": np.array(list("abab"), object)},
            "labels is an array of objects, which are never unpickled",
        ),
        ({"y": np.array([0, 1, 2])}, "y has 3 entries for 4 images"),
        ({"y": np.linspace(0, 1, 12).reshape(4, 3)}, "neither a vector nor of zeros and ones"),
        ({"classes": np.array([0, 1, 0, 1])}, "if classes holds the labels, name it so"),
    ],
)
def test_why_an_npz_has_no_labels(tmp_path, arrays, why):
    labels, notes = classes_of(tmp_path, **arrays)
    assert labels is None
    assert why in notes[0]


def test_labels_named_as_their_images(tmp_path):
    more = {
        "thumbs": IMAGES[:, :4, :4],
        "thumbs_labels": np.arange(4),
        "photos_labels": np.array([7, 7, 8, 8]),
    }
    np.savez(tmp_path / "two.npz", photos=IMAGES, **more)
    assert open_images(tmp_path / "two.npz").classes == ("7", "8")


def test_a_part_without_labels_leaves_the_other_its_own(tmp_path):
    np.savez(tmp_path / "p.npz", x_train=IMAGES, y_train=np.array([0, 1, 0, 1]), x_test=IMAGES[:2])
    images = open_images(tmp_path / "p.npz")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 0, 1, -1, -1]
    assert images.splits is not None
    assert images.splits.tolist() == ["train"] * 4 + ["test"] * 2


def test_labels_in_memory():
    images = ArrayImages(IMAGES, labels=np.array([-1, 1, 1, -1]))
    assert images.classes == ("-1", "1")
    images = ArrayImages(IMAGES, labels=np.array([-1, 1, 1, 0]), classes=("a", "b"))
    assert images.labels is not None
    assert images.labels.tolist() == [-1, 1, 1, 0]
