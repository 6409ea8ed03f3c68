"""Captions composed of columns: phrases with a missing value are left out, unknown columns refused."""

import numpy as np
import pyarrow as pa
import pytest

from omma.data.sources import captions
from omma.data.sources.collection import ArrayImages
from omma.data.sources.composed import compose, template

ART = "a {medium} from {culture}"


def images(**columns):
    n = len(next(iter(columns.values())))
    collection = ArrayImages(np.zeros((n, 4, 4, 1), np.uint8), source="art.csv")
    collection.columns = pa.table(columns)
    return collection


FILLED = {
    "all": (ART, ["vase", "Greece"], "a vase from Greece"),
    "no culture": (ART, ["vase", ""], "a vase"),
    "no medium": (ART, ["", "Greece"], "from Greece"),
    "none": (ART, ["", ""], ""),
    "one of three": ("a {a}, {b}, {c}", ["x", "", "z"], "a x, z"),
    "the first of three": ("{a}, {b}, {c}", ["", "y", "z"], "y, z"),
    "a full stop stays": (ART + ".", ["vase", ""], "a vase."),
    "words behind go": (ART + " (museum).", ["vase", ""], "a vase."),
    "words behind stay": (ART + " (museum).", ["vase", "Greece"], "a vase from Greece (museum)."),
    "spaces": (" a  {medium}  of  {culture} ", ["old vase", "Greece"], "a old vase of Greece"),
}


@pytest.mark.parametrize("case", FILLED)
def test_phrases_without_a_value_are_left_out(case):
    text, values, expected = FILLED[case]
    assert template(text).filled(values) == expected


@pytest.mark.parametrize("text", ["a photo", "a {} vase", "a {medium", "a {medium} }", ""])
def test_a_text_without_columns_is_refused(text):
    with pytest.raises(ValueError, match=r"--method.caption .*: name columns in braces"):
        template(text)


def test_composed_for_a_collection():
    art = images(medium=["vase", None, " "], culture=["Greece", "Egypt", ""], year=[-300.0, None, 20.0])
    made = compose(art, ART + " ({year})")
    assert made.text.to_pylist() == [["a vase from Greece (-300)"], ["from Egypt"], ["(20)"]]
    assert made.notes[-1] == (
        "captions are composed by 'a {medium} from {culture} ({year})' (the first: 'a vase from Greece "
        "(-300)'); of 3 images these lack a value: 2 medium, 1 culture, 1 year"
    )
    assert art.text is None
    assert made.fingerprint != art.fingerprint
    without = compose(art, ART)
    fit, _ = captions.fit(without.text)
    np.testing.assert_array_equal(fit.has, [True, True, False])


def test_an_unknown_column_is_refused_with_those_there_are():
    with pytest.raises(
        ValueError, match=r"--method.caption: art.csv has no column era; choose among path, medium"
    ):
        compose(images(medium=["vase"]), "a {medium} of {era}")


def test_classes_and_columns_of_numbers():
    art = images(year=[1999.5, 2000.0])
    art.labels, art.classes = np.array([1, 0]), ("cat", "dog")
    assert compose(art, "a {class}, {year}").text.to_pylist() == [["a dog, 1999.5"], ["a cat, 2000"]]
    csv = images(year=["1850.0", "", "1900.0"])  # as pandas writes whole numbers of which some are missing
    assert compose(csv, "in {year}").text.to_pylist() == [["in 1850"], [], ["in 1900"]]
