"""Rows written to a .csv, .parquet or .jsonl as they come; the ending of the name says which."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from omma.core import files

ENDINGS = (".csv", ".parquet", ".jsonl")
Write = Callable[[pa.Table], None]


def check_ending(out: str | Path) -> None:
    """Raise ValueError, in one line, for a name whose ending says no format."""
    if Path(out).suffix.lower() not in ENDINGS:
        raise ValueError(f"{out}: name the table *.csv, *.parquet or *.jsonl, whichever is wanted")


@contextlib.contextmanager
def writer(out: Path, schema: pa.Schema) -> Iterator[Write]:
    """Yield what appends a table of this schema; the file appears when all is written, or not at all.

    Lists are joined by `;` in a .csv.
    """
    kind = out.suffix.lower()
    with files.atomic_write(out) as partial, contextlib.ExitStack() as stack:
        if kind == ".parquet":
            parquet = stack.enter_context(pq.ParquetWriter(partial, schema, compression="zstd"))
            yield parquet.write_table
        elif kind == ".csv":
            stream = stack.enter_context(open(partial, "wb"))
            csv = stack.enter_context(pacsv.CSVWriter(stream, _joined(schema.empty_table()).schema))
            yield lambda table: csv.write_table(_joined(table))
        else:
            lines = stack.enter_context(open(partial, "w", encoding="utf-8"))
            yield lambda table: lines.writelines(json.dumps(row) + "\n" for row in table.to_pylist())


def _joined(table: pa.Table) -> pa.Table:
    columns = {}
    for field in table.schema:
        column = table[field.name]
        if pa.types.is_list(field.type):
            rows = [None if row is None else ";".join(map(str, row)) for row in column.to_pylist()]
            column = pa.array(rows, pa.string())
        columns[field.name] = column
    return pa.table(columns)
