"""Read a table of images (.csv, .tsv, .parquet, .jsonl) whoever wrote it, and its columns as text."""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omma.core.errors import line
from omma.core.files import decode_text
from omma.core.words import count
from omma.data.sources import captions
from omma.data.sources.columns import are_numbers, is_nested, plain

PATHS = ("path", "file_name", "filename", "filepath", "file_path", "image_path", "img_path", "image")
# columns that name an image, of those that do in a table beside the images
IMAGE_NAMES = (*PATHS, "file", "image_name", "image_id", "img_id", "id")
CLASS_NAMES = ("class", "class_name", "name")
LABELS = ("label", *CLASS_NAMES, "labels")
ENDINGS = (".csv", ".tsv", ".parquet", ".jsonl")
_KNOWN = frozenset((*PATHS, *LABELS, "split"))
_DELIMITERS = ",;\t|"
SEQUENCE, FRAME = TRACK = ("sequence", "frame")  # what belongs together, and its order (sequences.py)
_CHUNK = 100_000  # rows that are Python objects at a time
_LONGEST = 64  # numbers of a list that is read; longer ones are embeddings and may exceed memory


def read_table(source: str | bytes, name: str) -> pa.Table:
    """A table by the ending of its name; texts that are not valid UTF-8 stay bytes.

    source: a file, or the content of one. Names of known columns lose spaces around them and become lower
    case. Raises ValueError, in one line, if the table cannot be read or has two columns of one known name.
    """
    try:
        if name.lower().endswith(".parquet"):
            table = _parquet(source if isinstance(source, str) else io.BytesIO(source))
        else:
            data = Path(source).read_bytes() if isinstance(source, str) else source
            table = _jsonl(data) if name.lower().endswith(".jsonl") else _csv(data, name)
        return _tidy(table)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name}: not a readable table ({line(error)}); save it again") from None
    except (ValueError, csv.Error, RecursionError) as error:
        raise ValueError(f"{name}: {line(error)}") from None


def is_known(column: str) -> bool:
    """Whether a column of this name means something: paths, labels, a split or captions."""
    return column in _KNOWN or captions.COLUMN.fullmatch(column) is not None


def _tidy(table: pa.Table) -> pa.Table:
    """The table with the names of known columns as they are known; of other doubled names the first stays."""
    names = [name.strip() for name in table.column_names]
    names = [low if _is_lowered(low := name.lower()) and low not in names else name for name in names]
    for name in names:
        if is_known(name) and names.count(name) > 1:
            raise ValueError(f"{names.count(name)} columns are named `{name}`; remove or rename all but one")
    columns = {}
    for k, name in enumerate(names):
        if name not in columns and (column := _plain_or_none(table.column(k), name)) is not None:
            columns[name] = column
    return pa.table(columns)


def _is_lowered(name: str) -> bool:
    return is_known(name) or name in TRACK


def _plain_or_none(column: pa.ChunkedArray, name: str) -> pa.Array | None:
    try:
        return plain(column)
    except pa.ArrowException as error:
        if is_known(name):
            raise ValueError(f"column {name} of type {column.type} cannot be read ({line(error)})") from None
        return None


# ---------------------------------------------------------------- formats
def _decoded(data: bytes) -> str:
    """The text; bytes that are not valid UTF-8 become lone surrogates."""
    text = decode_text(data, "surrogateescape")
    if "\0" in text[:1000].partition("\n")[0]:
        raise ValueError("not a readable table (its first line holds NUL bytes); save it again, in UTF-8")
    return text


def _csv(data: bytes, name: str) -> pa.Table:
    text = _decoded(data)
    first = next((each for each in io.StringIO(text, newline=None) if each.strip()), "")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(first, name), strict=True)
    numbered = ((rows.line_num, cells) for cells in rows if "".join(cells).strip())
    try:
        _, header = next(numbered, (0, []))
        if not header:
            raise ValueError("not a readable table (it is empty); give one with a column `path`")
        return _gathered(header, _equally_long(numbered, len(header)))
    except csv.Error as error:
        raise ValueError(
            f"not a readable table (line {rows.line_num}: {error}); close each quote and save it again"
        ) from None


def _delimiter(header: str, name: str) -> str:
    """What separates the columns: the first of , ; tab and | by which one is named as a path or label is."""
    order = "\t,;|" if name.lower().endswith(".tsv") else _DELIMITERS
    for delimiter in order:
        cells = next(csv.reader([header], delimiter=delimiter), [])
        if len(cells) > 1 and any(is_known(cell.strip().lower()) for cell in cells):
            return delimiter
    return max(order, key=header.count)


def _equally_long(rows: Iterable[tuple[int, list[str]]], width: int) -> Iterator[list[str]]:
    for number, cells in rows:
        if len(cells) != width:
            raise ValueError(
                f"not a readable table (line {number} has {count(len(cells), 'cell')} and the header "
                f"{width}); put quotes around texts that hold a separator"
            )
        yield cells


def _jsonl(data: bytes) -> pa.Table:
    return _gathered(*_objects(_decoded(data)))


def _objects(text: str) -> tuple[list[str], list[list[Any]]]:
    """The keys of all lines, and each line's values in their order."""
    objects: list[dict[str, Any]] = []
    keys: dict[str, None] = {}
    for number, raw in enumerate(text.split("\n"), 1):
        if not raw.strip():
            continue
        try:
            value = json.loads(raw, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"not a readable table (line {number} is not JSON: {line(error)}); write one object a line"
            ) from None
        if not isinstance(value, dict):
            raise ValueError(f"not a readable table (line {number} is no object); write one object a line")
        keys |= dict.fromkeys(value)
        objects.append(value)
    names = list(keys)
    if not names:
        raise ValueError("not a readable table (it is empty); write one object a line")
    return names, [[value.get(key) for key in names] for value in objects]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        if twice := [name for name in names if is_known(name) and names.count(name) > 1]:
            raise ValueError(f"`{twice[0]}` stands in it twice")
    return values


def _parquet(source: Any) -> pa.Table:
    """Columns of pictures and of long vectors are not read: they may be larger than memory."""
    with pq.ParquetFile(source) as file:  # pq.read_table would add columns from names of folders such as a=1
        schema = file.schema_arrow
        names = schema.names
        wanted = [field.name for field in schema if _small(field) or _short_lists(file, field)]
        if "image" in names and not any(name.strip().lower() in PATHS for name in wanted):
            raise ValueError(
                "its column image holds the pictures themselves; write them to files and name these in `path`"
            )
        some = len(set(names)) == len(names) and len(wanted) < len(names)
        try:
            return file.read(columns=wanted).select(wanted) if some else file.read()
        except pa.ArrowInvalid as error:
            if "all lists to be of size" not in str(error):  # apache/arrow#35692, mended in pyarrow 26
                raise
            raise ValueError(
                f"pyarrow {pa.__version__} cannot read lists of a fixed size where some are empty; install "
                "pyarrow 26 or newer, or save them as lists of any size"
            ) from None


def _small(field: pa.Field) -> bool:
    name = field.name.strip().lower()
    if _may_nest(name):
        return True
    return not is_nested(field.type) and not _binary(field.type)


def _short_lists(file: pq.ParquetFile, field: pa.Field) -> bool:
    """Whether a column holds lists of numbers, of at most `_LONGEST` on average; by metadata alone."""
    kind = field.type
    if pa.types.is_fixed_size_list(kind):
        return are_numbers(kind.value_type) and kind.list_size <= _LONGEST
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not are_numbers(kind.value_type):
        return False
    leaves = [k for k in range(len(file.schema)) if file.schema.column(k).path.startswith(f"{field.name}.")]
    if len(leaves) != 1:  # the names of columns hold dots
        return False
    groups = [file.metadata.row_group(k) for k in range(file.num_row_groups)]
    total = sum(group.column(leaves[0]).num_values for group in groups)  # an empty list counts as one
    return total <= _LONGEST * file.metadata.num_rows


def _may_nest(name: str) -> bool:
    """Whether lists in a column of this name are read, or recognised in what is read."""
    return name in ("path", *LABELS) or captions.COLUMN.fullmatch(name) is not None


def _binary(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


# ---------------------------------------------------------------- columns from Python's values
def _gathered(names: Sequence[str], rows: Iterable[list[Any]]) -> pa.Table:
    """A table from rows of values, converted chunk by chunk."""
    chunks: list[list[pa.Array]] = [[] for _ in names]
    rows = iter(rows)
    while block := list(itertools.islice(rows, _CHUNK)):
        for column, values, name in zip(chunks, zip(*block, strict=True), names, strict=True):
            column.append(_array(list(values), name.strip().lower()))
    return pa.Table.from_arrays([_chunked(column) for column in chunks], names=list(names))


def _array(values: list[Any], name: str) -> pa.Array:
    """Values of one type, or of several as text; null for lists and records where they have no meaning."""
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {list} and not _may_nest(name) and all(map(_few_numbers, values)):
        return pa.array(values, pa.large_list(pa.float64()))
    if kinds & {dict, list} and not _may_nest(name):
        values = [None if isinstance(value, dict | list) else value for value in values]
        kinds -= {dict, list}
    if dict in kinds:
        return pa.array([{"": None}] * len(values))  # records, of whatever fields
    if not kinds:
        return pa.nulls(len(values))
    if kinds <= {str}:
        try:
            return pa.array(values, pa.large_string())
        except UnicodeEncodeError:
            return pa.array([None if value is None else _bytes(value) for value in values], pa.large_binary())
    try:
        return pa.array(values) if len(kinds) == 1 else _mixed(values)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return _mixed(values)


def _few_numbers(value: list[Any] | None) -> bool:
    return value is None or (
        len(value) <= _LONGEST and {type(x) for x in value} <= {int, float, bool, type(None)}
    )


def _mixed(values: list[Any]) -> pa.Array:
    """Texts, or lists of texts if any value is a list."""
    if any(isinstance(value, list) for value in values):
        lists = [value if isinstance(value, list) or value is None else [value] for value in values]
        return pa.array(
            [None if each is None else [None if x is None else _bytes(x) for x in each] for each in lists],
            pa.large_list(pa.large_binary()),
        )
    return pa.array([None if value is None else _bytes(value) for value in values], pa.large_binary())


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that JSON spells out
        return text.encode("utf-8", "replace")


def _chunked(chunks: list[pa.Array]) -> pa.ChunkedArray:
    if not chunks:
        return pa.chunked_array([], pa.large_string())
    kinds = {chunk.type for chunk in chunks if not pa.types.is_null(chunk.type)}
    if len(kinds) > 1:  # rare: texts in one chunk, something else in another
        chunks = [_mixed(chunk.to_pylist()) for chunk in chunks]
        if len({chunk.type for chunk in chunks}) > 1:
            listed = [chunk if pa.types.is_nested(chunk.type) else _listed(chunk) for chunk in chunks]
            chunks = list(listed)
    else:
        kind = next(iter(kinds), pa.large_string())
        chunks = [chunk.cast(kind) for chunk in chunks]
    return pa.chunked_array(chunks)


def _listed(chunk: pa.Array) -> pa.Array:
    return pa.array(
        [None if value is None else [value] for value in chunk.to_pylist()],
        pa.large_list(pa.large_binary()),
    )
