"""Fields: numbers and names beside images, from the columns of a table."""

import numpy as np
import pyarrow as pa
import pytest

from omma.core.protocols import Field
from omma.data.sources import fields
from omma.data.sources.collection import ArrayImages


def images(**columns):
    n = len(next(iter(columns.values())))
    collection = ArrayImages(np.zeros((n, 4, 4, 1), np.uint8), source="plates.csv")
    collection.columns = pa.table(columns)
    return collection


def read(field, **columns):
    return fields.read(images(**columns), field)


def test_numbers_of_any_column_type():
    expected = np.array([[1.0], [2.5]], np.float32)
    for cells in ([1.0, 2.5], ["1", " 2.5 "], [b"1", b"+2.5e0"], pa.array(["1", "2.5"]).dictionary_encode()):
        values = read(Field(name="age"), age=cells)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(read(Field(name="on"), on=[True, False]), [[1], [0]])
    np.testing.assert_array_equal(read(Field(name="k"), k=pa.array([3, None, 4]).drop_null()), [[3], [4]])


def test_numbered_columns_are_in_the_order_of_their_numbers():
    columns = {f"pose{k}": [k, k + 100] for k in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)}
    values = read(Field(name="pose", size=11), **columns)
    np.testing.assert_array_equal(values, [np.arange(11), np.arange(11) + 100])


def test_columns_by_name_are_in_the_given_order_and_the_column_itself_goes_before_numbered_ones():
    columns = {"y": [3, 4], "x": [1, 2], "x0": [7, 8]}
    np.testing.assert_array_equal(read(Field(name="place", columns=("x", "y")), **columns), [[1, 3], [2, 4]])
    np.testing.assert_array_equal(read(Field(name="x"), **columns), [[1], [2]])


def test_lists():
    for lists in (
        pa.array([[1, 2], [3, 4]]),
        pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        pa.array([["1", "2"], ["3", "4"]]),
    ):
        np.testing.assert_array_equal(read(Field(name="pose", size=2), pose=lists), [[1, 2], [3, 4]])
    values = read(Field(name="pose", missing="nan"), pose=pa.array([[1.0, None], None, [3.0, 4.0], []]))
    np.testing.assert_array_equal(values, [[1, np.nan], [np.nan, np.nan], [3, 4], [np.nan, np.nan]])
    with pytest.raises(
        ValueError, match=r"lists of different lengths in column pose: 2 .*\[0\] and 3 of .*\[1\]"
    ):
        read(Field(name="pose"), pose=pa.array([[1, 2], [1, 2, 3]]))


MISSING = {
    "null": pa.array([1.0, None, 2.0]),
    "NaN": [1.0, float("nan"), 2.0],
    "infinite": [1.0, float("inf"), 2.0],
    "infinite as float32": [1.0, 1e300, 2.0],
    "empty": ["1", " ", "2"],
    "no number": ["1", "n/a", "2"],
    "nan as text": ["1", "nan", "2"],
    "as Python writes it": ["1", "1_0", "2"],
}


@pytest.mark.parametrize("cells", MISSING.values(), ids=MISSING)
def test_missing_values_become_nan_or_are_refused_with_image_and_column(cells):
    np.testing.assert_array_equal(read(Field(name="age", missing="nan"), age=cells), [[1], [np.nan], [2]])
    with pytest.raises(
        ValueError, match=r"plates.csv: column age .* for plates.csv\[1\]; the field age needs"
    ):
        read(Field(name="age"), age=cells)


def test_the_column_that_lacks_a_value_is_named():
    with pytest.raises(ValueError, match=r"column pose1 holds 'x', no finite number for .*\[0\] and 1 more"):
        read(Field(name="pose"), pose0=["1", "2", "3"], pose1=["x", "3", ""])


def test_a_column_of_texts_is_refused_with_the_first():
    for missing in ("refuse", "nan"):
        with pytest.raises(ValueError, match="column site holds texts such as 'Oslo'"):
            read(Field(name="site", missing=missing), site=["1", "", "Oslo", "Bergen"])
    with pytest.raises(ValueError, match=r"column day holds date32"):
        read(Field(name="day"), day=pa.array([0], pa.date32()))


def test_columns_that_lack():
    with pytest.raises(
        ValueError, match=r"no column pose, nor pose0, .* for the field pose; its columns are age"
    ):
        read(Field(name="pose"), age=[1])
    with pytest.raises(ValueError, match="no column y, for the field place"):
        read(Field(name="place", columns=("age", "y")), age=[1])
    assert read(Field(name="pose", optional=True), age=[1]) is None
    with pytest.raises(ValueError, match="give a table with it"):
        fields.read(ArrayImages(np.zeros((1, 4, 4, 1), np.uint8)), Field(name="pose"))


GAPS = {
    "p1 is missing": ("p0", "p2"),
    "p0 is missing": ("p1", "p2"),
    "two columns have the number 0": ("p0", "p00"),
}


@pytest.mark.parametrize("wrong", GAPS)
def test_gaps_are_refused(wrong):
    for optional in (False, True):
        with pytest.raises(ValueError, match=wrong):
            read(Field(name="p", optional=optional), **{name: [1] for name in GAPS[wrong]})


def test_another_size_is_refused():
    with pytest.raises(
        ValueError, match=r"pose has 2 numbers an image \(in columns pose0, pose1\), and 12 are"
    ):
        read(Field(name="pose", size=12), pose0=[1], pose1=[2])


def test_names_are_codes():
    field = Field(name="site", kind="names", missing="nan")
    columns = {"site": ["b", None, "a", " b ", ""]}
    values = read(field, **columns)
    assert values.dtype == np.int64
    np.testing.assert_array_equal(values, [[1], [-1], [0], [1], [-1]])
    assert fields.names(images(**columns), field) == ("a", "b")
    np.testing.assert_array_equal(read(field, site=[20, 3, 20]), [[0], [1], [0]])
    with pytest.raises(
        ValueError, match=r"column site is empty for plates.csv\[1\] and 1 more; .* a name for"
    ):
        read(Field(name="site", kind="names"), **columns)


def test_a_subset_has_its_own_rows():
    part = images(age=[1, 2, 3]).subset(np.array([2, 0]))
    np.testing.assert_array_equal(fields.read(part, Field(name="age")), [[3], [1]])


def test_described_in_a_line():
    field = Field(name="pose", missing="nan")
    assert fields.describe(images(pose0=[1.0], pose1=[None]), field) == (
        "pose: 2 numbers an image, from columns pose0, pose1; missing for 1 of 1 image"
    )
    assert fields.describe(images(pose=[1, 2]), field) == "pose: 1 number an image"
    site = Field(name="site", kind="names")
    assert fields.describe(images(site=["a", "b"]), site) == "site: one of 2 names"
    assert (
        fields.describe(images(a=[1]), Field(name="age", optional=True))
        == "age: none, plates.csv has no such column"
    )
