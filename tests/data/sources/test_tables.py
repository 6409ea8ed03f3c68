"""Tables whoever wrote them: delimiters, encodings, types; what cannot be read is one line."""

import datetime
import decimal
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from omma.core.protocols import Field
from omma.data.sources import collection, fields, tables
from omma.data.sources.check import checked
from omma.data.sources.collection import open_images
from omma.data.sources.columns import flat
from omma.data.sources.selection import values_of
from omma.data.sources.split import train_test
from omma.data.sources.tables import read_table

NAMES = ["a.png", "b.png", "c.png", "d.png"]
LABELS = ["cat", "cat", "dog", "dog"]


@pytest.fixture(autouse=True)
def pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path / "cache"))
    for k, name in enumerate(NAMES):
        Image.fromarray(np.full((8, 8, 3), 40 * k, np.uint8)).save(tmp_path / name)


def opened(tmp_path, data, name="x.csv"):
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return open_images(tmp_path / name)


def labels_of(images):
    return None if images.labels is None else [images.classes[k] if k >= 0 else None for k in images.labels]


def csv(separator=",", end="\n", rows=()):
    return f"path{separator}label{end}" + "".join(separator.join(row) + end for row in rows)


ROWS = list(zip(NAMES, LABELS, strict=True))


# ---------------------------------------------------------------- .csv
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_ends_of_lines(tmp_path, separator, end):
    assert labels_of(opened(tmp_path, csv(separator, end, rows=ROWS))) == LABELS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings(tmp_path, encoding):
    rows = [(name, label + "é") for name, label in ROWS]
    images = opened(tmp_path, csv(rows=rows).encode(encoding))
    assert labels_of(images) == ["caté", "caté", "dogé", "dogé"]


@pytest.mark.parametrize(
    "text",
    [
        "\n\npath,label\n\na.png,cat\nb.png,cat\n\nc.png,dog\nd.png,dog\n",
        'path,label\n"a.png","cat"\nb.png,cat\nc.png,dog\nd.png,dog',
        " Path , LABEL \na.png, cat\nb.png, cat\nc.png, dog\nd.png,dog\n",
        "file_name,label\na.png,cat\nb.png,cat\nc.png,dog\nd.png,dog\n",
        'path;note;label\na.png;"a, b";cat\nb.png;;cat\nc.png;;dog\nd.png;;dog\n',
        "path,x,x,label\na.png,1,1,cat\nb.png,1,1,cat\nc.png,1,1,dog\nd.png,1,1,dog\n",
    ],
)
def test_ways_to_write_one_table(tmp_path, text):
    assert labels_of(opened(tmp_path, text)) == LABELS
    assert (
        labels_of(opened(tmp_path, text.replace(",", "\t") if ";" not in text else text, "x.tsv")) == LABELS
    )


def test_texts_are_kept(tmp_path):
    rows = [("a.png", "007"), ("b.png", "7"), ("c.png", '"a ""b"""'), ("d.png", '5" disk')]
    assert labels_of(opened(tmp_path, csv(rows=rows))) == ["007", "7", 'a "b"', '5" disk']


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("path,label,label\na.png,x,x\n", "2 columns are named `label`"),
        ("path,label,path\na.png,x,a.png\n", "2 columns are named `path`"),
        ("path,label\na.png,x,y\n", "line 2 has 3 cells and the header 2"),
        ("path,label\na.png,x\nb.png\n", "line 3 has 1 cell and the header 2"),
        ('path,label\na.png,"x\nb.png,y\n', "close each quote"),
        ("path,label\n", "no row below its header"),
        ("", "it is empty"),
        ("\n \n", "it is empty"),
        (csv(rows=ROWS).encode("utf-16-le"), "NUL bytes"),
        ("picture,label\na.png,x\n", "no column `path` among picture, label"),
    ],
)
def test_refused_in_one_line(tmp_path, data, message):
    with pytest.raises(ValueError, match=message) as error:
        opened(tmp_path, data)
    assert "\n" not in str(error.value)
    assert "x.csv" in str(error.value)


def test_a_row_that_names_no_image_is_left_out(tmp_path):
    data = b"path,label\na.png,x\nb\0.png,x\nc\xff.png,x\n,y\nhttp://localhost/x.png,x\ns3://b/x.png,y\nd.png,y\n"
    data += b"foo://x,x\n" + b"e" * 5000 + b".png,x\n"
    images = checked(opened(tmp_path, data))
    assert [images.path(i) for i in range(len(images))] == ["a.png", "d.png"]
    address = "an address, which is not fetched unless you add --remote"
    assert images.skipped[:6] == [
        ("row 2: b\0.png", "its path holds a NUL byte"),
        ("row 3", "its path is not valid UTF-8"),
        ("row 4", "no path"),
        ("row 5: http://localhost/x.png", address),
        ("row 6: s3://b/x.png", address),
        ("row 8: foo://x", address),
    ]
    assert len(images.skipped) == 7


def test_labels_that_are_no_utf8_are_said(tmp_path):
    images = opened(tmp_path, csv(rows=[(name, label + "é") for name, label in ROWS]).encode("latin-1"))
    assert images.labels is None
    assert images.notes == ("column label: row 1 is not valid UTF-8; save the table in UTF-8",)


def test_paths_that_windows_wrote(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "sub" / "a.png")
    images = opened(tmp_path, "path,label\nsub\\a.png,x\nb.png,y\n")
    assert len(checked(images)) == 2


def test_rows_that_repeat_and_contradict(tmp_path):
    rows = [("a.png", "cat"), ("a.png", "dog"), ("b.png", "cat"), ("b.png", "cat"), ("c.png", "dog")]
    images = opened(tmp_path, csv(rows=rows))
    assert labels_of(images) == [None, None, "cat", "cat", "dog"]
    assert images.notes == (
        "rows that repeat an image: 2 (the first: a.png); a split may put it into both of its parts",
        "1 image has rows with different labels and counts as unlabelled (the first: a.png)",
    )


def test_an_unknown_split_is_said(tmp_path):
    images = opened(tmp_path, "path,label,split\na.png,x,fold1\nb.png,y,fold2\n")
    assert images.splits is None
    assert images.notes == ("the column split is not used: 'fold1' is none of train, val and test",)


# ---------------------------------------------------------------- .parquet
@pytest.mark.parametrize(
    ("values", "kind", "labels"),
    [
        (LABELS, pa.string(), LABELS),
        (LABELS, pa.string_view(), LABELS),
        ([x.encode() for x in LABELS], pa.binary_view(), LABELS),
        ([x.encode() for x in LABELS], pa.binary(), LABELS),
        ([1, 2, None, 1], pa.int8(), ["1", "2", None, "1"]),
        ([2.0, 0.0, None, float("nan")], pa.float64(), ["2", "0", None, None]),
        ([0.1, 0.1, 0.5, -0.0], pa.float32(), ["0.1", "0.1", "0.5", "0"]),
        ([2**63 - 1, 2**63 - 2, 1, 1], pa.int64(), [str(2**63 - 1), str(2**63 - 2), "1", "1"]),
        ([True, False, None, True], pa.bool_(), ["true", "false", None, "true"]),
        ([decimal.Decimal("2.00"), None] * 2, pa.decimal128(5, 2), ["2", None, "2", None]),
        ([datetime.date(2020, 1, 2)] * 4, pa.date32(), ["2020-01-02"] * 4),
        ([["cat"], [], None, ["dog"]], pa.list_(pa.string()), ["cat", None, None, "dog"]),
        ([[0, 1], [1, 0], [0, 1], [1, 0]], pa.list_(pa.int64(), 2), ["1", "0", "1", "0"]),
        ([None] * 4, pa.null(), None),
    ],
)
def test_types_of_labels(tmp_path, values, kind, labels):
    pq.write_table(pa.table({"path": NAMES, "label": pa.array(values, kind)}), tmp_path / "x.parquet")
    assert labels_of(open_images(tmp_path / "x.parquet")) == labels


def test_a_dictionary_of_labels(tmp_path):
    pq.write_table(
        pa.table({"path": NAMES, "label": pa.array(LABELS).dictionary_encode()}), tmp_path / "x.parquet"
    )
    assert labels_of(open_images(tmp_path / "x.parquet")) == LABELS


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([{"id": 1}] * 4, "column label holds lists or records"),
        ([b"a", b"\xff", b"c", b"d"], "column label: row 2 is not valid UTF-8"),
    ],
)
def test_labels_that_cannot_be_used_are_said(tmp_path, values, why):
    """The images can still be trained on without labels."""
    pq.write_table(pa.table({"path": NAMES, "label": values}), tmp_path / "x.parquet")
    images = open_images(tmp_path / "x.parquet")
    assert images.labels is None
    with pytest.raises(ValueError, match=why):
        train_test(images)


def test_large_columns_are_not_read(tmp_path):
    columns = {
        "path": NAMES,
        "label": LABELS,
        "vector": [[0.5] * 65] * 4,
        "jpeg": [b"x"] * 4,
        "site": [1, 2, 1, 2],
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert read_table(str(tmp_path / "x.parquet"), "x.parquet").column_names == ["path", "label", "site"]
    inside = pa.table({"image": [{"bytes": b"x", "path": "a.png"}], "label": [1]})
    pq.write_table(inside, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x.parquet\[0\]: not an image"):  # it holds pictures (list_rows)
        open_images(tmp_path / "x.parquet")


def test_folders_named_as_partitions_add_no_column(tmp_path):
    (tmp_path / "label=x").mkdir()
    pq.write_table(pa.table({"path": [f"../{name}" for name in NAMES]}), tmp_path / "label=x" / "x.parquet")
    assert open_images(tmp_path / "label=x" / "x.parquet").labels is None


# ---------------------------------------------------------------- .jsonl
@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, "1", 2.0, 2], ["1", "1", "2", "2"]),
        ([["cat"], "cat", [], None], ["cat", "cat", None, None]),
        ([["cat"], ["cat"], ["dog"], ["dog"]], LABELS),
        ([10**30, 10**30 + 1, 1, 1], [str(10**30), str(10**30 + 1), "1", "1"]),
        (["2020-01-01", "2020-01-01 00:00:00", "x", "x"], ["2020-01-01", "2020-01-01 00:00:00", "x", "x"]),
        ([True, "true", 1, 0.5], ["true", "true", "1", "0.5"]),
    ],
)
def test_labels_of_jsonl(tmp_path, values, labels):
    lines = [json.dumps({"path": n, "meta": v, "label": v}) for n, v in zip(NAMES, values, strict=True)]
    for text in ("\n".join(lines), "\ufeff" + "\r\n\r\n".join(lines) + "\n\n"):
        assert labels_of(opened(tmp_path, text, "x.jsonl")) == labels


def test_records_as_labels_of_jsonl_are_said(tmp_path):
    images = opened(tmp_path, '{"path":"a.png","label":{"id":1}}\n{"path":"b.png","label":"x"}\n', "x.jsonl")
    assert images.labels is None
    assert "column label holds lists or records" in images.notes[0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('{"path":"a.png"}\n{"path":"b.p', "line 2 is not JSON"),
        ('[{"path":"a.png"}]', "line 1 is no object"),
        ('{"path":"a.png","path":"b.png"}', "`path` stands in it twice"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("", "it is empty"),
        ('{"path":{"a":1}}', "column path holds lists or records"),
    ],
)
def test_jsonl_refused_in_one_line(tmp_path, data, message):
    with pytest.raises(ValueError, match=message) as error:
        opened(tmp_path, data, "x.jsonl")
    assert "\n" not in str(error.value)
    assert "x.jsonl" in str(error.value)


# ---------------------------------------------------------------- lists of numbers
PYARROW = int(pa.__version__.split(".")[0])
POSES = [[0.5, 1], [2, 3], None, [6, 7]]


def rows_of(table_path, values):
    lines = [json.dumps({"path": name, "pose": pose}) for name, pose in zip(NAMES, values, strict=True)]
    table_path.write_text("\n".join(lines))


FIXED = pa.list_(pa.float64(), 2)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.int16()), FIXED, None])
def test_lists_of_numbers_are_kept(tmp_path, kind):
    poses = [None if pose is None else [int(x) for x in pose] for pose in POSES]
    if kind is FIXED and PYARROW < 26:
        pytest.skip("pyarrow before 26 reads no empty rows among lists of a fixed size")
    if kind is None:
        rows_of(file := tmp_path / "x.jsonl", poses)
    else:
        table = pa.table({"path": NAMES, "pose": pa.array(poses, kind)})
        pq.write_table(table, file := tmp_path / "x.parquet")
    images = open_images(file)
    values = fields.read(images, Field(name="pose", size=2, missing="nan"))
    np.testing.assert_array_equal(values, [[0, 1], [2, 3], [np.nan, np.nan], [6, 7]])
    np.testing.assert_array_equal(fields.read(images.subset(np.array([3])), Field(name="pose")), [[6, 7]])
    with pytest.raises(
        ValueError, match=r"--by pose: column pose of .* holds lists; choose one of single values"
    ):
        values_of(images, "pose", "--by pose")


def test_lists_of_a_fixed_size(tmp_path):
    poses = [[0.5, 1], [2, 3], [4, 5], [6, 7]]
    pq.write_table(pa.table({"path": NAMES, "pose": pa.array(poses, FIXED)}), file := tmp_path / "x.parquet")
    np.testing.assert_array_equal(fields.read(open_images(file), Field(name="pose", size=2)), poses)


@pytest.mark.skipif(PYARROW >= 26, reason="pyarrow 26 reads them")
def test_empty_rows_of_a_fixed_size_name_the_pyarrow_that_reads_them(tmp_path):
    table = pa.table({"path": NAMES, "pose": pa.array(POSES, FIXED)})
    try:
        pq.write_table(table, file := tmp_path / "x.parquet")
    except pa.ArrowNotImplementedError:
        pytest.skip("this pyarrow does not write them either")
    with pytest.raises(ValueError, match=r"^\S+x.parquet: pyarrow .* install pyarrow 26 or newer, or save"):
        open_images(file)


def test_a_jsonl_of_whole_and_broken_numbers_in_several_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_CHUNK", 1)
    rows_of(tmp_path / "x.jsonl", POSES)
    values = fields.read(open_images(tmp_path / "x.jsonl"), Field(name="pose", missing="nan"))
    np.testing.assert_array_equal(values, [[0.5, 1], [2, 3], [np.nan, np.nan], [6, 7]])


def test_lists_become_numbered_columns_where_a_csv_is_written():
    column = pa.chunked_array([pa.array(POSES, pa.large_list(pa.float64()))])
    written = flat("pose", column)
    assert {name: values.to_pylist() for name, values in written.items()} == {
        "pose0": [0.5, 2, None, 6],
        "pose1": [1, 3, None, 7],
    }
    assert flat("site", pa.chunked_array([[1, 2]])) == {"site": pa.chunked_array([[1, 2]])}


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_long_lists_and_lists_of_texts_are_not_read(tmp_path, ending):
    rows = [{"path": name, "embedding": [0.5] * 65, "tags": ["a", "b"], "pose": [1.0] * 64} for name in NAMES]
    if ending == "jsonl":
        (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=2)
    columns = open_images(tmp_path / f"x.{ending}").columns
    kept = [name for name in columns.column_names if columns[name].null_count < len(NAMES)]
    assert kept == ["pose"]


def test_lists_beside_images_are_kept_by_the_cache_of_the_listing(tmp_path, monkeypatch):
    rows = [{"file_name": name, "pose": pose} for name, pose in zip(NAMES, POSES, strict=True)]
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES:
        (tmp_path / name).rename(folder / name)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    os.utime(folder, (1e9, 1e9))  # settled, so the listing is remembered
    first = open_images(folder)
    monkeypatch.setattr(collection, "lister", lambda source, typed: ((lambda _: pytest.fail("listed")), True))
    for images in (first, open_images(folder)):
        values = fields.read(images, Field(name="pose", missing="nan"))
        np.testing.assert_array_equal(values, [[0.5, 1], [2, 3], [np.nan, np.nan], [6, 7]])


def test_sequence_and_frame_are_found_whatever_their_case_and_are_no_labels(tmp_path):
    images = opened(tmp_path, "path,Sequence, FRAME\na.png,0,0\nb.png,0,1\nc.png,1,0\nd.png,1,1\n")
    assert images.columns.column_names == ["sequence", "frame"]
    assert images.label_sets is None
    assert images.labels is None
