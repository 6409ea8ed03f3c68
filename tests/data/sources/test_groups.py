"""Groups of images that belong together, and splits that put none of them on both sides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omma.data.sources import group_split, groups, split
from omma.data.sources.collection import ArrayImages, open_images
from omma.data.sources.groups import Groups


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Twelve images of a table: four sequences, one image of none, two folders."""
    folder = tmp_path_factory.mktemp("plates")
    rows = ["path,label,sequence,plate"]
    for i in range(12):
        side = "left" if i < 6 else "right"
        (folder / side).mkdir(exist_ok=True)
        Image.new("L", (8, 8), i * 20).save(folder / side / f"{i}.png")
        sequence = "" if i == 11 else f"s{i // 3}"
        rows.append(f"{side}/{i}.png,{'ab'[i % 2]},{sequence},{i // 6}")
    (folder / "plates.csv").write_text("\n".join(rows))
    return open_images(folder / "plates.csv")


def test_the_default_is_the_column_sequence(table):
    found = groups.of(table)
    assert found is not None
    assert found.name == "sequence"
    assert not found.asked
    assert found.codes.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4]  # the last image is alone
    assert found.number == 5
    part = found.of_rows(np.array([0, 5, 11]))
    assert part.codes.tolist() == [0, 1, 4]


@pytest.mark.parametrize(
    ("column", "codes"),
    [("plate", [0] * 6 + [1] * 6), ("folder", [0] * 6 + [1] * 6), ("class", [0, 1] * 6), ("path", 12)],
    ids=["a column", "folder", "class", "path"],
)
def test_a_column_that_is_asked_for(table, column, codes):
    found = groups.of(table, column)
    assert found is not None
    assert found.asked
    assert found.name == column
    if isinstance(codes, int):
        assert found.number == codes
    else:
        assert found.codes.tolist() == codes


def test_none_and_no_such_column(table):
    assert groups.of(table, "none") is None
    with pytest.raises(ValueError, match=r"--group well: .*no column well; choose among .*plate"):
        groups.of(table, "well")
    arrays = ArrayImages(np.zeros((4, 8, 8, 1), np.uint8), labels=np.array([0, 0, 1, 1]))
    assert groups.of(arrays) is None
    with pytest.raises(ValueError, match="no column"):
        groups.of(arrays, "plate")


def test_missing_values_are_groups_of_their_own():
    assert groups.codes_of(["", "b", "", "a", "b"]).tolist() == [2, 1, 3, 0, 1]
    assert groups.codes_of([]).tolist() == []


# ---------------------------------------------------------------- splits
labelled_groups = st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 12)), min_size=1, max_size=80)


@given(rows=labelled_groups, share=st.floats(0.05, 0.6), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_no_group_on_both_sides(rows, share, seed):
    labels, codes = np.array(rows).T
    train, test = split.stratified(labels, share, seed, codes)
    assert sorted([*train, *test]) == np.flatnonzero(labels >= 0).tolist()
    assert not set(codes[train]) & set(codes[test])
    assert set(labels[train]) == set(labels[labels >= 0])  # every class can be learned
    again = split.stratified(labels, share, seed, codes)
    assert all(np.array_equal(a, b) for a, b in zip((train, test), again))


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_classes_of_two_groups_are_on_both_sides(sizes, seed):
    """Groups of one class each, two or three a class."""
    codes = np.repeat(np.arange(2 * len(sizes)), np.repeat(sizes, 2))
    labels = codes // 2
    train, test = split.stratified(labels, 0.2, seed, codes)
    assert set(labels[train]) == set(labels[test]) == set(labels)
    smaller = np.minimum(*np.bincount(codes).reshape(-1, 2).T)
    assert (np.bincount(labels[test]) >= smaller).all()


def test_shares_are_kept_where_groups_allow():
    """50 groups of 10 images in each of four classes, half of them of two classes."""
    codes = np.arange(2000) // 10
    labels = np.where(codes % 2, codes % 4, (codes % 4 + np.arange(2000) % 2) % 4)
    for seed in range(5):
        _, test = split.stratified(labels, 0.2, seed, codes)
        shares = np.bincount(labels[test]) / np.bincount(labels)
        assert np.abs(shares - 0.2).max() <= 0.02
    tests = [tuple(split.stratified(labels, 0.2, seed, codes)[1]) for seed in range(5)]
    assert len(set(tests)) == 5  # the seed decides


def test_a_class_in_one_group_is_trained_on_alone():
    labels, codes = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 3, 4])
    train, test = split.stratified(labels, 0.5, 0, codes)
    assert set(labels[test]) == {1, 2}
    assert {0, 1} <= set(train.tolist())
    assert group_split.single(labels, codes).tolist() == [0]


def arrays(labels, splits=None):
    pixels = np.zeros((len(labels), 4, 4, 1), np.uint8)
    return ArrayImages(pixels, labels=np.array(labels), classes=("cat", "dog"), splits=splits)


def test_train_test_by_group_and_what_it_says():
    labels, codes = [0, 1] * 20, np.arange(40) // 4
    train, test, text = split.train_test(arrays(labels), 3, groups=Groups("site", codes))
    assert (len(train), len(test)) == (32, 8)
    assert text == "split by site, 20% test, seed 3: 32 train, 8 test, of 8 and 2 groups"


def test_own_split_stays_unless_groups_straddle_it_and_were_asked_for():
    labels, splits = [0, 1] * 4, np.array(["train", "train", "test", "test"] * 2)
    straddled, apart = np.arange(8) // 4, np.arange(8) // 2
    cases = [(straddled, False, True, 2), (apart, True, True, 0), (straddled, True, False, 0)]
    for codes, asked, own, both in cases:
        found = Groups("site", codes, asked)
        train, test, text = split.train_test(arrays(labels, splits), groups=found)
        assert text.startswith("the collection's own split") == own
        assert len(found.on_both_sides(train, test)) == both


def test_too_few_groups():
    images, codes = arrays([0, 0, 1, 1]), np.array([0, 0, 1, 1])
    with pytest.raises(
        ValueError, match=r"no split by site is possible \(2 groups.*cat, dog\); .*--group none"
    ):
        split.train_test(images, groups=Groups("site", codes))
