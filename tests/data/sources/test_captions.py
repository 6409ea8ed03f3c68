"""Captions of images: where they come from, which can be used, and how one is drawn."""

import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from omma.core.protocols import Key
from omma.data import text_tokenizer
from omma.data.sources import captions
from omma.data.sources.collection import open_images


def folder(tmp_path, names="abcd"):
    for name in names:
        Image.fromarray(np.full((8, 8, 3), ord(name), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def listed(images):
    assert images.text is not None
    return images.text.to_pylist()


def test_columns():
    names = ["caption10", "path", "caption2", "text", "captions", "caption_id", "Text", "text1x", "texts3"]
    assert captions.columns(names) == ["captions", "caption2", "caption10", "text", "texts3"]


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_several_columns_of_a_manifest(tmp_path, kind):
    columns = {
        "path": ["a.png", "b.png"],
        "caption1": ["a, one", "b one"],
        "caption0": ["a zero", "b zero"],
        "label": ["x", "y"],
    }
    file = folder(tmp_path) / f"list.{kind}"
    table = pa.table(columns)
    if kind == "csv":
        file.write_text('path,caption1,caption0,label\na.png,"a, one",a zero,x\nb.png,b one,b zero,y\n')
    elif kind == "parquet":
        pq.write_table(table, file)
    else:
        file.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    images = open_images(file)
    assert listed(images) == [["a zero", "a, one"], ["b zero", "b one"]]
    assert listed(images.subset([1])) == [["b zero", "b one"]]
    assert images.classes == ("x", "y")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_column_of_lists(tmp_path, kind):
    rows = [["one", None, "two"], None, [], ["three"]]
    file = folder(tmp_path) / f"list.{kind}"
    table = pa.table({"path": [f"{c}.png" for c in "abcd"], "caption": rows})
    if kind == "parquet":
        pq.write_table(table, file)
    else:
        file.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    assert listed(open_images(file)) == [["one", "two"], [], [], ["three"]]


@pytest.mark.parametrize("zipped", [False, True])
def test_labels_csv_in_any_order(tmp_path, zipped):
    (folder(tmp_path) / "labels.csv").write_text("path,caption0,caption1\nc.png,C,CC\na.png,A,AA\n")
    source = tmp_path
    if zipped:
        source = tmp_path / "all.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for file in [*tmp_path.glob("*.png"), tmp_path / "labels.csv"]:
                archive.write(file, file.name)
    for _ in range(2):  # the second is remembered
        assert listed(open_images(source)) == [["A", "AA"], [], ["C", "CC"], []]


def test_bytes_that_are_no_utf8_spoil_only_their_caption(tmp_path):
    file = folder(tmp_path) / "list.csv"
    file.write_bytes(
        b"path,caption0,caption1\na.png,caf\xe9,fine\nb.png,\xff\xfe,\nc.png, \t ,caf\xc3\xa9\nd.png,,\n"
    )
    images = open_images(file)
    assert listed(images) == [[None, "fine"], [None, ""], [" \t ", "café"], ["", ""]]
    fit, usable = captions.fit(images.text)
    assert usable.to_pylist() == [["fine"], [], ["café"], []]
    assert fit.has.tolist() == [True, False, True, False]
    assert fit.notes() == [
        "2 of 4 images have no usable caption and are left out",
        "2 captions are not valid UTF-8 and are not used",
        "4 captions are empty and are not used",
    ]
    fit, usable = captions.fit(images.subset([2, 0]).text)
    assert usable.to_pylist() == [["café"], ["fine"]]
    assert fit.has.all()


def test_parquet_and_jsonl_that_lie_about_their_text(tmp_path):
    plain = pa.array([b"caf\xe9", b"ok"])
    lying = pa.Array.from_buffers(pa.string(), 2, plain.cast(pa.binary()).buffers())
    pq.write_table(pa.table({"path": ["a.png", "b.png"], "caption": lying}), folder(tmp_path) / "l.parquet")
    assert listed(open_images(tmp_path / "l.parquet")) == [[None], ["ok"]]
    pq.write_table(pa.table({"path": ["a.png", "b.png"], "caption": plain}), tmp_path / "b.parquet")
    assert listed(open_images(tmp_path / "b.parquet")) == [[None], ["ok"]]
    (tmp_path / "l.jsonl").write_bytes(b'{"path":"a.png","caption":["caf\xe9","ok"]}\n')
    assert listed(open_images(tmp_path / "l.jsonl")) == [[None, "ok"]]


def test_a_column_of_something_else_is_refused(tmp_path):
    (folder(tmp_path) / "l.jsonl").write_text('{"path":"a.png","caption":{"en":"x"}}\n')
    with pytest.raises(ValueError, match="column caption: captions are strings") as error:
        open_images(tmp_path / "l.jsonl")
    assert "\n" not in str(error.value)


def test_numbers_are_captions_too(tmp_path):
    (folder(tmp_path) / "l.csv").write_text("path,caption\na.png,7\nb.png,007\n")
    assert listed(open_images(tmp_path / "l.csv")) == [["7"], ["007"]]


def test_other_captions_are_another_collection(tmp_path):
    file = folder(tmp_path) / "l.csv"
    file.write_text("path,caption\na.png,x\nb.png,y\n")
    first = open_images(file).fingerprint
    file.write_text("path,caption\na.png,x\nb.png,z\n")
    assert open_images(file).fingerprint != first


# ---------------------------------------------------------------- drawn
TEXT = pa.array([["a", "b", "c"], ["d"], ["e", "fff fff"]], pa.large_list(pa.large_string()))


def key(n, epoch=0, seed=0):
    return Key(seed, np.full(n, epoch), np.arange(n) % 3)


def test_a_caption_follows_from_seed_epoch_and_index():
    draw = captions.Captions(TEXT, text_tokenizer.Tokenizer())
    read = np.arange(3)

    def drawn(key, read):
        return [draw.tokenizer.decode(row[1 : row.index(513)]) for row in draw(key, read).tolist()]

    assert drawn(key(3), read) == drawn(key(3), read)
    seen = {tuple(drawn(key(3, epoch), read)) for epoch in range(100)}
    assert {row[0] for row in seen} == {"a ", "b ", "c "}
    assert {row[1] for row in seen} == {"d "}
    assert {row[2] for row in seen} == {"e ", "fff fff "}
    alone = [drawn(Key(0, np.zeros(1, np.int64), np.array([i])), np.array([i]))[0] for i in range(3)]
    assert alone == drawn(key(3), read)  # whoever else is in the batch
    # an image that stands in for one that cannot be read brings its own caption
    assert drawn(Key(0, np.zeros(1, np.int64), np.array([0])), np.array([1])) == ["d "]


def test_each_caption_is_drawn_as_often():
    draw = captions.Captions(TEXT, text_tokenizer.Tokenizer())
    n = 3000
    rows = draw(Key(0, np.arange(n), np.zeros(n, np.int64)), np.zeros(n, np.int64))
    counts = np.unique(rows[:, 1].numpy(), return_counts=True)[1]
    assert len(counts) == 3
    assert abs(counts / n - 1 / 3).max() < 0.03


def test_no_more_columns_than_needed():
    draw = captions.Captions(TEXT, text_tokenizer.Tokenizer())
    assert draw(key(2), np.array([0, 1])).shape == (2, 8)
    long = pa.array([["x" * 500]], pa.large_list(pa.large_string()))
    assert captions.Captions(long, text_tokenizer.Tokenizer())(key(1), np.array([0])).shape == (1, 77)


def test_cut_captions_are_counted(monkeypatch):
    long = pa.array([["short", "x" * 76, "y" * 75]], pa.large_list(pa.large_string()))
    assert captions.Captions(long, text_tokenizer.Tokenizer()).notes() == [
        "1 of 3 captions are longer than 77 tokens and are cut"
    ]
    assert captions.Captions(TEXT, text_tokenizer.Tokenizer()).notes() == []
    monkeypatch.setattr(captions, "SAMPLE", 2)
    assert all(
        "2 captions checked" in line for line in captions.Captions(long, text_tokenizer.Tokenizer()).notes()
    )
    assert len(captions.sample(long)) == 2
