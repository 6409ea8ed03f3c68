"""Files that a table of vectors is written to: the ending of the name says which."""

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

Tables = Callable[[], Iterable[pa.Table]]  # the parts of one table, in order, as often as they are asked for


def check_ending(out: str | Path) -> None:
    """Raise ValueError, in one line, for a name whose ending says no format."""
    if ending(out) not in WRITERS:
        *most, last = (f"*{known}" for known in WRITERS)
        raise ValueError(
            f"{out}: name the table {', '.join(most)} or {last}; the ending says what is written"
        )


def ending(out: str | Path) -> str:
    return Path(out).suffix.lower()


def write(file: Path, format: str, tables: Tables, schema: pa.Schema) -> None:
    """Write a table with the columns path, label (if there are labels) and vector.

    format: one of `WRITERS`. Except for the .npz's paths and labels, one part is in memory at a time.
    """
    WRITERS[format](file, tables, schema)


def _write_parquet(file: Path, tables: Tables, schema: pa.Schema) -> None:
    """The columns as they are; the schema's metadata hold where they come from."""
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in tables():
            writer.write_table(table.replace_schema_metadata(schema.metadata))


def _write_csv(file: Path, tables: Tables, schema: pa.Schema) -> None:
    """The columns path, label and one for each number of the vector: 0, 1, ... Numbers are exact."""
    with open(file, "wb") as stream:
        header = _flat(schema.empty_table())
        with pacsv.CSVWriter(stream, header.schema) as writer:
            for table in tables():
                writer.write_table(_flat(table))


def _flat(table: pa.Table) -> pa.Table:
    vectors = table["vector"].combine_chunks()
    dim = table.schema.field("vector").type.list_size
    flat = vectors.flatten().to_numpy().reshape(-1, dim)
    columns = {name: table[name] for name in table.column_names if name != "vector"}
    return pa.table(columns | {str(k): pa.array(np.ascontiguousarray(flat[:, k])) for k in range(dim)})


def _write_npz(file: Path, tables: Tables, schema: pa.Schema) -> None:
    """Arrays: vectors (float32 [n, d]), paths, labels ("" where unknown), and omma, a JSON text."""
    dim = schema.field("vector").type.list_size
    rows, paths, labels = 0, list[str](), list[str]()
    for table in tables():
        rows += table.num_rows
        paths += table["path"].to_pylist()
        if "label" in schema.names:
            labels += pc.fill_null(table["label"], "").to_pylist()
    texts = {"paths": np.array(paths, np.str_), "omma": np.array(_origin(schema))}
    if "label" in schema.names:
        texts["labels"] = np.array(labels, np.str_)
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("vectors.npy", "w", force_zip64=True) as stream:
            header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
            np.lib.format.write_array_header_1_0(stream, header)
            for vectors in _vectors(tables):
                stream.write(vectors.astype("<f4").tobytes())
        for name, array in texts.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def _vectors(tables: Tables) -> Iterator[np.ndarray]:
    for table in tables():
        yield table["vector"].combine_chunks().flatten().to_numpy()


def _origin(schema: pa.Schema) -> str:
    return json.dumps(json.loads((schema.metadata or {}).get(b"omma", b"{}")))


WRITERS = {".parquet": _write_parquet, ".csv": _write_csv, ".npz": _write_npz}
