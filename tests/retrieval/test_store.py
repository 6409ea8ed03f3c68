"""An index on disk: rows, dead rows, conditions, two writers, damage, and what was reported is there."""

import os
import signal
import time

import numpy as np
import pyarrow as pa
import pytest

from omma.retrieval import manifest as manifests
from omma.retrieval import where, writer
from omma.retrieval.manifest import LABEL, PATH, IndexModel, Manifest
from omma.retrieval.store import Index
from omma.retrieval.writer import rows_of, writing

DIM = 8
NEW = Manifest(IndexModel("a-model", "abc"), DIM, {})


def vectors(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


def table(n, prefix="", seed=0, labels=("cat", "dog", None), **columns):
    own = {
        PATH: pa.array([f"{prefix}{i}.jpg" for i in range(n)]),
        LABEL: pa.array([labels[i % len(labels)] for i in range(n)]),
    }
    return rows_of(vectors(n, seed), own, pa.table(columns) if columns else None)


@pytest.fixture
def folder(tmp_path):
    """Three segments of four rows, the second row dead."""
    with writing(tmp_path / "i", NEW) as change:
        for part in "abc":
            change.commit([table(4, part, ord(part), year=[2019, 2020, 2021, None])])
    with writing(tmp_path / "i", NEW) as change:
        change.commit([], [1])
    return tmp_path / "i"


def test_rows_and_vectors(folder):
    index = Index.open(folder)
    assert len(index) == 11
    assert (index.dim, index.model.name, index.model.digest) == (DIM, "a-model", "abc")
    assert index.paths()[:3] == ["a0.jpg", "a2.jpg", "a3.jpg"]
    assert index.paths([10, 0]) == ["c3.jpg", "a0.jpg"]
    assert (index.row_of("a2.jpg"), index.row_of("a1.jpg")) == (1, None)
    wanted = vectors(4, ord("b"))
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(index.vectors([3, 4, 5, 6]), wanted, atol=1e-7)
    norms = index.table["_norm"].to_numpy()[3:7]
    np.testing.assert_allclose(norms[:, None] * wanted, vectors(4, ord("b")), rtol=1e-5)


def test_search_numbers_live_rows(folder):
    index = Index.open(folder)
    found = index.search(5 * index.vectors(), 1)
    assert found.indices[:, 0].tolist() == list(range(11))
    np.testing.assert_allclose(found.similarities, 1, atol=1e-6)
    chosen = index.search(index.vectors(), 99, where="label = 'cat'")
    assert set(chosen.indices.ravel().tolist()) == {i for i, p in enumerate(index.paths()) if p[1] in "03"}
    assert index.search(index.vectors([0]), 5, where="label = 'zebra'").indices.shape == (1, 0)


def test_search_refuses(folder):
    index = Index.open(folder)
    for asked, k, words in (
        (np.zeros((1, 3)), 1, "vectors of 8 numbers"),
        (np.full((1, DIM), np.nan), 1, "not finite"),
        (index.vectors([0]), 0, "k=0"),
    ):
        with pytest.raises(ValueError, match=words):
            index.search(asked, k)


def test_an_open_index_stays_as_it_was(folder):
    index = Index.open(folder)
    before = index.vectors()
    with writing(folder, NEW) as change:
        change.commit([table(3, "d")], np.arange(5))
        assert change.tidy()
    np.testing.assert_array_equal(index.vectors(), before)
    assert index.search(before, 1).indices[:, 0].tolist() == list(range(11))
    assert Index.open(folder).paths() == [*index.paths()[5:], "d0.jpg", "d1.jpg", "d2.jpg"]
    assert len(list(folder.glob("*.npy"))) == 0


def test_others_read_the_segments(folder):
    segment = manifests.read(folder).segments[0]
    read = pa.ipc.open_file(pa.memory_map(str(folder / segment.file))).read_all()
    assert read.column_names == [*manifests.own_schema(DIM).names, "year"]
    assert read["path"].to_pylist() == [f"a{i}.jpg" for i in range(4)]


def test_columns_may_change_their_type(tmp_path):
    with writing(tmp_path / "i", NEW) as change:
        change.commit([table(2, "a", size=[1, 2])])
        change.commit([table(2, "b", size=["x", None]), table(1, "c")])
    assert Index.open(tmp_path / "i").table["size"].to_pylist() == ["1", "2", "x", None, None]


# ---------------------------------------------------------------- conditions
PEOPLE = pa.table(
    {
        "label": ["cat", "dog", None, "o'neil", "50%"],
        "year": [2019, 2020, 2021, None, 2023],
        "the place": ["a", "b", "c", "d", "e"],
        "ok": [True, False, True, None, True],
        "score": [0.5, -1.5, 2e3, 0.0, None],
    }
)


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("label = 'cat'", [0]),
        ("label == 'cat' or year >= 2021", [0, 2, 4]),
        ("label != 'cat'", [1, 3, 4]),
        ("not label = 'cat'", [1, 3, 4]),
        ("NOT (label = 'cat' OR label = 'dog') AND year IS NOT NULL", [4]),
        ("label is null", [2]),
        ("label = 'o''neil'", [3]),
        ("label in ('cat', 'dog')", [0, 1]),
        ("label not in ('cat', 'dog')", [3, 4]),
        ("label like '%o%'", [1, 3]),
        ("label not like 'c%'", [1, 3, 4]),
        ("year between 2020 and 2021 and label = 'dog'", [1]),
        ("\"the place\" > 'c'", [3, 4]),
        ("ok = true", [0, 2, 4]),
        ("score < -1e0", [1]),
        ("score = .5 or score=2000", [0, 2]),
        ("year=2019 or year=2020 and label='cat'", [0]),
        (" or ".join(["year = 2019"] * 600), [0]),
    ],
    ids=range(18),
)
def test_conditions(condition, rows):
    found = where.mask(PEOPLE, condition, PEOPLE.column_names)
    assert np.flatnonzero(found).tolist() == rows


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("", "name of a column"),
        ("label = 'cat", "cannot be read"),
        ("label = 'a'; drop table", "cannot be read at '; drop"),
        ("__import__('os').system('x')", "cannot be read"),
        ("__import__ = 'os'", "no column __import__"),
        ("label = 'a' label", "the end is expected"),
        ("nope = 1", "choose among label, year"),
        ('label = "b"', "a 'text' or a number"),
        ("year > 'a'", "year \\(int64\\)"),
        ("year = 9" + "9" * 30, "year"),
        ("label = null", "write `is null`"),
        ("label like 3", "like takes a 'text'"),
        ("year in ()", "a 'text' or a number"),
        ("(" * 60 + "year = 1" + ")" * 60, "levels deep"),
        ("year = 1 or " * 1000 + "year = 1", "characters"),
        ("label = '\x1b[31m'\n or", "name of a column"),
        ("year ! 2", "cannot be read"),
        ("year = 20x", "cannot be read"),
    ],
    ids=range(18),
)
def test_conditions_that_cannot_be_read(condition, words):
    with pytest.raises(ValueError, match=words) as error:
        where.mask(PEOPLE, condition, PEOPLE.column_names)
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)


# ---------------------------------------------------------------- writers
def test_one_writer_at_a_time(folder):
    refused = pytest.raises(ValueError, match="being written by another process")
    with writing(folder, NEW), refused, writing(folder, NEW):
        pass
    with writing(folder, NEW) as change:
        change.commit([table(1, "z")])
    assert len(Index.open(folder)) == 12


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds other files"), writing(tmp_path, NEW):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["holiday.jpg"]


def test_nothing_stays_where_nothing_was_committed(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path / "i", NEW):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_many_small_segments_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SMALL", 3)
    with writing(tmp_path / "i", NEW) as change:
        for part in range(8):
            change.commit([table(2, str(part), part)])
        before = Index.open(tmp_path / "i")
        assert change.tidy()
        assert not change.tidy()
    after = Index.open(tmp_path / "i")
    assert len(after.manifest.segments) == 1
    assert after.table.equals(before.table)
    np.testing.assert_array_equal(after.vectors(), before.vectors())
    assert {f.suffix for f in (tmp_path / "i").iterdir()} <= {".arrow", ".json", ""}


@pytest.mark.parametrize("harm", ["cut", "missing", "json", "newer"])
def test_damage_is_one_line(folder, harm):
    segment = folder / manifests.read(folder).segments[1].file
    if harm == "cut":
        segment.write_bytes(segment.read_bytes()[:-100])
    elif harm == "missing":
        segment.unlink()
    else:
        text = '{"schema": 99}' if harm == "newer" else "{"
        (folder / manifests.MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"damaged|missing|schema 99") as error:
        Index.open(folder)
    assert "\n" not in str(error.value)


def test_there_is_no_index(tmp_path):
    with pytest.raises(ValueError, match="is no index: make one with omma index"):
        Index.open(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_killed_at_any_time_it_holds_what_was_reported(tmp_path):
    """A process commits as fast as it can, and takes rows out, until it is killed; ten times over."""
    folder, reported, random = tmp_path / "i", 0, np.random.default_rng(0)
    for attempt in range(10):
        receive, send = os.pipe()
        if (child := os.fork()) == 0:
            try:
                _commit_for_ever(folder, send)
            finally:
                os._exit(1)
        os.close(send)
        with os.fdopen(receive) as lines:
            for _ in range(int(random.integers(1, 6))):
                reported = int(lines.readline())
            time.sleep(random.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            later = lines.read().split()
        reported = int(later[-1]) if later else reported
        index = Index.open(folder)
        # the last commit may not have been told: five rows more, and two fewer while old ones are left
        assert len(index) - reported in (0, 3, 5), attempt
        for path, vector in zip(index.paths(), index.vectors()):
            seed, row = map(int, path.removesuffix(".jpg").split("-"))
            wanted = vectors(5, seed)[row]
            np.testing.assert_allclose(vector, wanted / np.linalg.norm(wanted), atol=1e-6)
    with writing(folder, NEW):
        pass  # nobody holds the lock
    named = index.manifest.names()
    assert {file.name for file in folder.iterdir()} == {*named, ".lock", manifests.MANIFEST}


def _commit_for_ever(folder, send):
    with writing(folder, NEW) as change:
        rows = change.manifest.rows
        live = list(range(rows))
        for round in range(10_000):
            seed = rows + round
            gone = [live.pop(0), live.pop(0)] if len(live) > 2 else []
            change.commit([table(5, f"{seed}-", seed)], gone)
            os.write(send, f"{change.manifest.rows}\n".encode())
