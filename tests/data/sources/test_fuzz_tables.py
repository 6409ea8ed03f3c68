"""Damaged tables: thousands of mutants are read, or refused in one line that names the file."""

import io
import json
import os
import random
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omma.data.sources import matching
from omma.data.sources.labels import Annotations
from omma.data.sources.manifest import read_manifest

NAMES = [f"{folder}/{k}.png" for folder in ("a", "b") for k in range(4)]
PATHS = pa.array(NAMES, pa.large_string())
COLUMNS = {
    "path": NAMES,
    "label": ["cat", "dog", None, "caf\u00e9", "1", "2.0", "-1", "007"],
    "class": ["x", "y", None, "z", "x", "y", "z", "x"],
    "split": ["train", "val", "test", None] * 2,
    "caption0": ['a "cat", asleep', "two\nlines", "", None] * 2,
    "site": [1, 2, 3, 4] * 2,
}
SEVERAL = {"file_name": NAMES, "labels": [["a"], ["a", "b"], None, [], ["b"], ["c"], ["a"], ["d", "a"]]}
TEXTS = SEVERAL | {"labels": ["a", "a;b", None, ";", "b", "c", "a", "d;a"]}
ONES = {"file_name": NAMES, "x": [0, 1, None, 1] * 2, "y": [1, 0, None, 1] * 2}
TOKENS = [
    *(
        b'"',
        b'""',
        b",",
        b";",
        b"\t",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\xfe\xff",
        b"\xef\xbb\xbf",
        b"path",
        b"label",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b"null",
        b"NaN",
        b"1e999",
        b"-0",
        b'"\\ud800"',
        b"://",
        b"http://x/",
        b"../",
    ),
    *(b"9" * 40, b"\\", b"'", b"=1", b"nan", b"\xe2\x80\xae", b"split", b"caption", b"\x1b[2J", b"a" * 3000),
]
ROUNDS = int(os.environ.get("OMMA_FUZZ", "300"))  # mutants of each kind of table


def base(kind, columns):
    if kind == "parquet":
        pq.write_table(pa.table(columns), file := io.BytesIO())
        return file.getvalue()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if kind == "jsonl":
        return "\n".join(json.dumps(row) for row in rows).encode()
    cells = [
        ["" if value is None else f'"{str(value).replace(chr(34), chr(34) * 2)}"' for value in row.values()]
        for row in rows
    ]
    return "\n".join([",".join(columns), *map(",".join, cells)]).encode()


def mutant(data, draw):
    """The bytes after one to four flips, cuts, insertions, splices or lies about a length."""
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.randint(1, 30))
        match draw.randrange(6):
            case 0:
                data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
            case 1:
                data = data[:at] if draw.random() < 0.3 else data[:at] + data[end:]
            case 2 | 3:
                data = data[:at] + draw.choice(TOKENS) + data[at:]
            case 4:
                other = draw.randrange(len(data) + 1)
                data = data[:at] + data[other : other + draw.randint(1, 60)] + data[at:]
            case 5:
                data = data[:at] + draw.choice([b"\xff\xff\xff\x7f", b"\0\0\0\0"]) + data[end:]
    return data


def fails(read):
    """The message of a refusal; anything else that a table raises is our mistake."""
    try:
        read()
    except (ValueError, OSError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_mutants(tmp_path, kind, monkeypatch):
    mutate(tmp_path, kind, COLUMNS, ROUNDS, monkeypatch)


@pytest.mark.parametrize(
    ("kind", "columns"), [("csv", TEXTS), ("csv", ONES), ("jsonl", SEVERAL), ("parquet", SEVERAL)]
)
def test_mutants_of_several_labels(tmp_path, kind, columns, monkeypatch):
    mutate(tmp_path, kind, columns, ROUNDS // 3, monkeypatch)


def mutate(tmp_path, kind, columns, rounds, monkeypatch):
    monkeypatch.delenv("OMMA_REMOTE", raising=False)
    draw, data, refused = random.Random(f"tables {kind}"), base(kind, columns), 0
    file = tmp_path / f"list.{kind}"
    name = {"csv": "labels.csv", "jsonl": "metadata.jsonl"}.get(kind)
    file.write_bytes(data)
    assert len(read_manifest(str(file)).paths) == len(NAMES)
    for _ in range(rounds):
        damaged = mutant(data, draw)
        file.write_bytes(damaged)
        message = fails(lambda: read_manifest(str(file)))
        refused += message is not None
        assert message is None or ("\n" not in message and file.name in message and len(message) < 400), (
            damaged
        )
        if name is not None:
            message = fails(
                partial(matching.from_beside, {name: damaged}, PATHS, Annotations(), str(tmp_path))
            )
            assert message is None or ("\n" not in message and name in message), damaged
    # pyarrow before 25 refuses a Parquet file that is damaged anywhere
    assert 0 < refused < rounds + (kind == "parquet")
