"""Tables of vectors: every format gives the same rows, in blocks and by number, and damage one line."""

import io
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omma.features import formats
from omma.features.table import table_schema
from omma.features.vectors import ArrayVectors, ChosenVectors, VectorTable, is_table, stored

N, D = 1000, 7
ROWS = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
PATHS = [f"a/{i}.jpg" for i in range(N)]
FORMS = (
    "embed.parquet", "lists.parquet", "embed.npz", "deflated.npz", "named.npz",
    "plain.npy", "fortran.npy", "double.npy",
)  # fmt: skip


def write(folder, form):
    """The same rows in one of the forms that omma or others write."""
    file = folder / form
    if form.startswith("embed"):
        schema = table_schema(D, True, {"schema": 1, "model": {"digest": "abc"}})
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), D)
        labels = pa.array([None if i % 3 == 0 else "cat" for i in range(N)], pa.string())
        table = pa.table([pa.array(PATHS), labels, vectors], schema=schema)
        formats.write(file, file.suffix, lambda: (table.slice(k, 300) for k in range(0, N, 300)), schema)
    elif form == "lists.parquet":
        columns = {"path": PATHS, "vector": pa.array(ROWS.tolist(), pa.list_(pa.float64()))}
        pq.write_table(pa.table(columns), file, row_group_size=128)
    elif form == "deflated.npz":
        np.savez_compressed(file, vectors=ROWS)
    elif form == "named.npz":
        np.savez(file, embeddings=ROWS, paths=np.array(PATHS))
    else:
        np.save(
            file, {"plain": ROWS, "fortran": np.asfortranarray(ROWS), "double": ROWS.astype(float)}[file.stem]
        )
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    return {form: write(folder, form) for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_the_same_in_blocks_and_by_number(files, form):
    table = VectorTable(files[form])
    assert (len(table), table.dim, is_table(str(files[form]))) == (N, D, True)
    blocks = list(table.blocks(130))
    assert {len(block) for block in blocks[:-1]} <= {130, 128, 300 % 130, 40}  # a row group may end a block
    assert all(block.dtype == np.float32 and len(block) <= 130 for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), ROWS)
    wanted = np.array([5, 999, 5, 0, 301])
    np.testing.assert_array_equal(table.take(wanted), ROWS[wanted])
    assert table.take(np.zeros(0, int)).shape == (0, D)
    with pytest.raises(IndexError):
        table.take(np.array([N]))


def test_paths_labels_and_origin(files):
    for form in ("embed.parquet", "embed.npz"):
        table = VectorTable(files[form])
        assert table.paths.to_pylist() == PATHS
        assert [label or None for label in table.labels.to_pylist()[:4]] == [None, "cat", "cat", None]
        assert table.origin["model"] == {"digest": "abc"}
    bare = VectorTable(files["plain.npy"])
    assert (bare.paths[3].as_py(), bare.labels, bare.origin) == ("plain.npy[3]", None, {})


@pytest.mark.parametrize("form", FORMS)
def test_numbers_that_are_not_finite_are_refused_in_one_line(tmp_path, form, monkeypatch):
    bad = ROWS.copy()
    bad[777, 3] = np.inf if form == "double.npy" else np.nan
    monkeypatch.setitem(globals(), "ROWS", bad)
    table = VectorTable(write(tmp_path, form))
    for read in (lambda: list(table.blocks()), lambda: table.take(np.array([1, 777]))):
        with pytest.raises(
            ValueError, match=r"row 777 \(.*777.*\) holds numbers that are not finite"
        ) as error:
            read()
        assert "\n" not in str(error.value)
    assert len(table.take(np.array([0, 776]))) == 2


@pytest.mark.parametrize("form", ["embed.parquet", "embed.npz", "deflated.npz", "plain.npy", "fortran.npy"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_file_that_ends_early_is_refused(files, tmp_path, form, share):
    content = files[form].read_bytes()
    file = tmp_path / form
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="cannot be read as vectors") as error:
        list(VectorTable(file).blocks())
    assert "\n" not in str(error.value)


def test_flipped_bytes_of_an_archive_are_found(files, tmp_path):
    content = bytearray(files["embed.npz"].read_bytes())
    content[N * D * 2] ^= 255
    file = tmp_path / "flipped.npz"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="Bad CRC-32"):
        list(VectorTable(file).blocks())


def parquet(**columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.parquet", parquet(path=["a"]), "no column `vector` among path"),
        ("a.parquet", parquet(vector=["a"]), "holds string, not lists of float"),
        ("a.parquet", parquet(vector=pa.array([[1.0], None])), "a row has no vector"),
        ("a.parquet", parquet(vector=pa.array([[1.0], [None]])), "a vector holds a null"),
        ("a.parquet", parquet(vector=pa.array([[1.0], [1.0, 2.0]])), "not all vectors have 1 dimensions"),
        ("a.parquet", parquet(vector=pa.array([], pa.list_(pa.float32()))), "it holds no vectors"),
        ("a.npz", npz(images=ROWS), "no array `vectors` among images"),
        ("a.npz", npz(vectors=ROWS[0]), r"float32 \[7\], not float \[n, d\]"),
        ("a.npy", npy(np.zeros((4, 4), np.uint8)), r"uint8 \[4, 4\], not float"),
        ("a.npy", npy(np.zeros((0, 4))), "it holds no vectors"),
        ("a.npy", npy(np.array([[None]])), "object"),
        ("a.npy", b"no numpy", "no .npy array"),
        ("a.npz", b"no zip", "not a zip"),
        ("a.csv", b"path,0\n", r"read from \*\.parquet, \*\.npy and \*\.npz"),
    ],
    ids=[
        "column", "texts", "null", "null-in", "lengths", "empty", "names", "1-d", "bytes", "no-rows",
        "objects", "no-npy", "no-zip", "csv",
    ],
)  # fmt: skip
def test_what_holds_no_vectors_is_refused_in_one_line(tmp_path, name, content, why):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=why) as error:
        list(VectorTable(file).blocks())
    assert "\n" not in str(error.value)


def test_missing_file_and_paths_of_another_length(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        VectorTable(tmp_path / "none.npy")
    assert not is_table(tmp_path / "none.npy")
    (tmp_path / "a.npz").write_bytes(npz(vectors=ROWS, paths=np.array(["a"])))
    with pytest.raises(ValueError, match=r"`paths` is \[1\], not \[1000\]"):
        _ = VectorTable(tmp_path / "a.npz").paths


def test_stored_rows_and_chosen_ones(tmp_path):
    table = stored(ArrayVectors(ROWS), tmp_path / "x" / "v.npy")
    np.testing.assert_array_equal(np.load(table.file), ROWS)
    rows = np.array([0, 3, 500, 999])
    chosen = ChosenVectors(table, rows)
    assert (len(chosen), chosen.dim) == (4, D)
    np.testing.assert_array_equal(np.concatenate(list(chosen.blocks(100))), ROWS[rows])
    np.testing.assert_array_equal(chosen.take(np.array([2, 0])), ROWS[[500, 0]])


def test_an_archive_of_another_tool_with_a_directory_entry(tmp_path):
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("extra/", "")
        archive.writestr("vectors.npy", npy(ROWS))
    np.testing.assert_array_equal(np.concatenate(list(VectorTable(file).blocks())), ROWS)
