"""A table of vectors in each of its formats holds the same."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omma.features import formats
from omma.features.table import table_schema

VECTORS = np.array([[0.1, 1e-30], [-2.5, 3.4e38], [0, 1 / 3]], np.float32)
PATHS = ['a,"b".png', "=1+1.png", "é\n.png"]


def write(path, labels):
    """In two parts, of two rows and of one."""
    schema = table_schema(2, labels is not None, {"model": "m"})

    def tables():
        for part in (slice(0, 2), slice(2, 3)):
            flat = pa.array(VECTORS[part].ravel())
            columns = {"path": pa.array(PATHS[part]), "vector": pa.FixedSizeListArray.from_arrays(flat, 2)}
            if labels is not None:
                columns["label"] = pa.array(labels[part], pa.string())
            yield pa.table([columns[name] for name in schema.names], schema=schema)

    formats.check_ending(path)
    formats.write(path, formats.ending(path), tables, schema)
    return path


@pytest.mark.parametrize("labels", [None, ["x", None, "z"]])
def test_every_format_holds_the_same(tmp_path, labels):
    parquet = pq.read_table(write(tmp_path / "t.parquet", labels))
    assert json.loads(parquet.schema.metadata[b"omma"]) == {"model": "m"}
    assert np.array_equal(np.array(parquet["vector"].to_pylist(), np.float32), VECTORS)
    with open(write(tmp_path / "t.CSV", labels), newline="", encoding="utf-8") as stream:
        head, *rows = csv.reader(stream)
    assert head == ["path", *(["label"] if labels else []), "0", "1"]
    assert [row[0] for row in rows] == PATHS
    assert np.array_equal(np.array([row[-2:] for row in rows]).astype(np.float32), VECTORS)  # exact
    arrays = np.load(write(tmp_path / "t.npz", labels))
    assert np.array_equal(arrays["vectors"], VECTORS)
    assert arrays["vectors"].dtype == np.float32
    assert arrays["paths"].tolist() == PATHS
    assert json.loads(str(arrays["omma"])) == {"model": "m"}
    if labels:
        assert parquet["label"].to_pylist() == labels
        assert [row[1] for row in rows] == ["x", "", "z"]
        assert arrays["labels"].tolist() == ["x", "", "z"]
    else:
        assert "labels" not in arrays


@pytest.mark.parametrize("name", ["table", "table.xlsx", "table.npy", "table.csv.gz", "parquet"])
def test_endings_that_say_nothing_are_refused(name):
    with pytest.raises(ValueError, match=r"name the table \*.parquet, \*.csv or \*.npz"):
        formats.check_ending(name)
