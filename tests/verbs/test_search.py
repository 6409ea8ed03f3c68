"""`omma index` and `omma search`: from images to neighbours, what changes, and what is refused."""

import json
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import omma
from omma import backbones, cli, weights
from omma.backbones.layers import text
from omma.core.protocols import Preprocess
from omma.data.sources.collection import open_images
from omma.retrieval import build, changes, lance, manifest, recall
from omma.retrieval.store import Index

PREPROCESS = Preprocess(
    size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)
CPU = {"device": "cpu", "precision": "fp32"}


def saved(folder, seed=0, extras=None):
    torch.manual_seed(seed)
    encoder = backbones.build(name="vit-n/8", image_size=16, depth=2)
    weights.save(folder, encoder, PREPROCESS, {}, *([extras(encoder)] if extras else []))
    return folder


def with_text(encoder):
    """A text tower of random weights, whose tokenizer knows single bytes."""
    tower = text.TextTower(vocabulary=514, end=513, context=24, depth=1, dim=16, heads=2, out=8)
    projection = torch.randn(8, encoder.dim)
    return text.extras(tower, projection, np.zeros((0, 2), np.int32), {"logit_scale": torch.tensor(3.0)})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("runs") / "x")


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8))


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures in two class folders."""
    for i in range(12):
        place = tmp_path / "photos" / ("cat" if i < 6 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        picture(i).save(place / f"{i}.png")
    long_ago = time.time() - 1000
    for file in (tmp_path / "photos").rglob("*.png"):
        os.utime(file, (long_ago, long_ago))
    return tmp_path / "photos"


@pytest.fixture
def built(run, photos, tmp_path):
    omma.index(run, photos, tmp_path / "i", **CPU)
    return tmp_path / "i"


@pytest.fixture
def embedded(monkeypatch):
    """Counts the images that are embedded."""
    count, stream = [], build.stream

    def counting(network, images, preprocess):
        count.append(len(images))
        return stream(network, images, preprocess)

    monkeypatch.setattr(build, "stream", counting)
    return count


# ---------------------------------------------------------------- index
def test_vectors_are_the_models(run, photos, built):
    index = Index.open(built)
    files = sorted(photos.rglob("*.png"))
    wanted = weights.load(run).embed(files)
    by_path = dict(zip(index.paths(), index.vectors()))
    for file, vector in zip(files, wanted):
        found = by_path[str(file.relative_to(photos))]
        np.testing.assert_allclose(found, vector / np.linalg.norm(vector), atol=1e-5)
    assert index.table["label"].to_pylist() == [path[:3] for path in index.paths()]
    assert index.model.digest == weights.load(run).digest
    assert index.preprocess == PREPROCESS


def test_only_what_is_new_is_embedded(run, photos, built, embedded):
    again = omma.index(run, photos, built, **CPU)
    assert (again.kept, again.added, embedded) == (12, 0, [])
    picture(100).save(photos / "cat" / "new.png")
    picture(101).save(photos / "cat" / "1.png")  # another picture of the same name
    (photos / "cat" / "2.png").unlink()
    (photos / "cat" / "3.png").rename(photos / "dog" / "moved.png")
    os.utime(photos / "cat" / "4.png", (1, 1))
    shutil.copy(photos / "dog" / "7.png", photos / "dog" / "copy.png")
    changed = omma.index(run, photos, built, **CPU)
    assert embedded == [2]
    assert (changed.added, changed.changed, changed.moved, changed.removed) == (1, 1, 2, 2)
    assert (changed.rows, changed.kept) == (13, 9)
    fresh = omma.index(run, photos, photos.parent / "fresh", **CPU)
    assert fresh.rows == 13
    one, other = Index.open(built), Index.open(photos.parent / "fresh")
    assert sorted(one.paths()) == sorted(other.paths())
    order = [other.row_of(path) for path in one.paths()]
    np.testing.assert_allclose(one.vectors(), other.vectors(order), atol=1e-6)
    assert one.table["label"].to_pylist() == [path[:3] for path in one.paths()]
    last = omma.index(run, photos, built, **CPU)
    assert (last.kept, len(embedded)) == (13, 2)


def test_a_change_within_the_clocks_step_is_seen(run, photos, built, embedded):
    """A file that was written just before its time was read could change without another time."""
    file = photos / "cat" / "1.png"
    picture(50).save(file)
    omma.index(run, photos, built, **CPU)
    status, size = file.stat(), file.stat().st_size
    data = bytearray(file.read_bytes())
    Image.fromarray(255 - np.asarray(picture(50))).save(file)
    data = file.read_bytes()
    file.write_bytes(data + bytes(size - len(data)) if len(data) <= size else data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert omma.index(run, photos, built, **CPU).changed == 1


def test_columns_of_a_table_and_their_changes(run, photos, tmp_path, embedded):
    list_ = photos / "list.csv"
    list_.write_text("path,label,year\n" + "".join(f"cat/{i}.png,c{i},{2000 + i}\n" for i in range(6)))
    omma.index(run, list_, tmp_path / "i", **CPU)
    found = omma.search(tmp_path / "i", "cat/0.png", where="year >= 2003 and label != 'c5'", device="cpu")
    assert sorted(found.paths) == ["cat/3.png", "cat/4.png"]
    list_.write_text("path,label,year\n" + "".join(f"cat/{i}.png,c{i},{2010 + i}\n" for i in range(6)))
    again = omma.index(run, list_, tmp_path / "i", **CPU)
    assert (again.kept, embedded) == (6, [6])
    assert Index.open(tmp_path / "i").table["year"].to_pylist() == list(range(2010, 2016))


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1", "", "-3"], [1, None, -3]),
        (["1", "2.5", "1e3"], [1.0, 2.5, 1000.0]),
        (["007", "1"], ["007", "1"]),
        (["0", "0.5"], [0.0, 0.5]),
        (["1", "x"], ["1", "x"]),
        (["1-2", "3"], ["1-2", "3"]),
        (["", ""], ["", ""]),
        (["inf", "nan"], ["inf", "nan"]),
    ],
    ids=range(8),
)
def test_texts_that_are_numbers(texts, values):
    assert changes._as_numbers(pa.chunked_array([texts])).to_pylist() == values


def test_bad_images_are_left_out_and_leave(run, photos, built):
    torn = photos / "cat" / "0.png"
    torn.write_bytes(torn.read_bytes()[:50])
    result = omma.index(run, photos, built, **CPU)
    assert result.rows == 11
    assert result.bad[0][0] == "cat/0.png"
    assert Index.open(built).row_of("cat/0.png") is None


def test_other_weights_are_refused_by_name(run, photos, built, tmp_path):
    other = saved(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=f"vectors of {run} .*{other} has other weights"):
        omma.index(other, photos, built, **CPU)
    with pytest.raises(ValueError, match="has other weights"):
        omma.search(built, photos / "cat" / "1.png", model=other)


def test_no_image_no_index(run, tmp_path, photos):
    for file in photos.rglob("*.png"):
        file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="none of 12 images"):
        omma.index(run, photos, tmp_path / "i", **CPU)
    assert not (tmp_path / "i").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_killed_while_building_nothing_reported_is_lost(run, photos, tmp_path, monkeypatch):
    """`omma index` in a process of its own, killed after some batches, until it comes to its end."""
    monkeypatch.setattr(build, "SECONDS", 0.0)
    monkeypatch.setattr("omma.features.extract.batch_size", lambda *_: 2)
    for attempt in range(12):
        receive, send = os.pipe()
        if (child := os.fork()) == 0:
            try:
                omma.index(run, photos, tmp_path / "i", **CPU, progress=partial(_tell, send))
            finally:
                os._exit(0)
        os.close(send)
        with os.fdopen(receive) as lines:
            told = lines.readline()
            time.sleep(0.01 * (attempt % 4))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            told = (lines.read().split() or [told])[-1]
        if not told.strip():
            break  # all was there already
        assert len(Index.open(tmp_path / "i")) >= int(told)
    assert attempt > 2
    result = omma.index(run, photos, tmp_path / "i", **CPU)
    assert (result.rows, result.kept) == (12, 12)


def _tell(send, done, total):
    os.write(send, f"{done}\n".encode())
    time.sleep(0.05)


def test_a_table_of_vectors(run, photos, built, tmp_path):
    omma.embed(run, photos, tmp_path / "t.parquet", **CPU)
    result = omma.index(vectors=tmp_path / "t.parquet", out=tmp_path / "j")
    assert (result.rows, result.dim) == (12, Index.open(built).dim)
    one, other = Index.open(built), Index.open(tmp_path / "j")
    np.testing.assert_allclose(one.vectors(), other.vectors(), atol=1e-6)
    assert one.table["label"].equals(other.table["label"])
    found = omma.search(tmp_path / "j", photos / "cat" / "1.png", model=run, top=1, device="cpu")
    assert found.paths == ("cat/1.png",)
    with pytest.raises(ValueError, match="give --model"):
        omma.search(tmp_path / "j", photos / "cat" / "1.png")
    with pytest.raises(ValueError, match="is an index already"):
        omma.index(vectors=tmp_path / "t.parquet", out=tmp_path / "j")
    other_model = saved(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="of other weights"):
        omma.index(other_model, vectors=tmp_path / "t.parquet", out=tmp_path / "k")
    table = pq.read_table(tmp_path / "t.parquet").replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match="does not say which model"):
        omma.index(vectors=tmp_path / "bare.parquet", out=tmp_path / "k")
    assert omma.index(run, vectors=tmp_path / "bare.parquet", out=tmp_path / "k").rows == 12
    pq.write_table(table.drop_columns(["path"]), tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match="no column path"):
        omma.index(run, vectors=tmp_path / "bare.parquet", out=tmp_path / "l")


# ---------------------------------------------------------------- search
def test_an_image_finds_itself_and_its_like(photos, built):
    found = omma.search(built, photos / "dog" / "8.png", top=3, device="cpu")
    assert found.paths[0] == "dog/8.png"
    assert found.similarities[0] == pytest.approx(1, abs=1e-4)
    assert (np.diff(found.similarities) <= 0).all()
    assert found.exact
    assert found.table.column_names[:3] == ["path", "similarity", "label"]
    by_array = omma.search(built, np.array(picture(8)), top=3, device="cpu")
    assert by_array.paths == found.paths


def test_a_row_leaves_itself_out(built):
    index = Index.open(built)
    found = omma.search(index, "cat/2.png", top=20, device="cpu")
    products = index.vectors() @ index.vectors([index.row_of("cat/2.png")])[0]
    order = [i for i in np.argsort(-products) if index.paths()[i] != "cat/2.png"]
    assert found.rows.tolist() == order
    assert len(found.paths) == 11


def test_several_and_what_to_avoid(built):
    index = Index.open(built)
    a, b, c = index.vectors([0, 1, 5])
    found = omma.search(index, ["cat/0.png", "cat/1.png"], minus=["cat/5.png"], top=12, device="cpu")
    wanted = (a + b) / 2 - c
    products = index.vectors() @ (wanted / np.linalg.norm(wanted))
    assert found.rows.tolist() == np.argsort(-products).tolist()
    np.testing.assert_allclose(found.similarities, -np.sort(-products), atol=1e-6)
    with pytest.raises(ValueError, match="nothing is left"):
        omma.search(index, "cat/0.png", minus=["cat/0.png"], device="cpu")


def test_a_region(run, photos, built):
    region = np.array(picture(3))[2:14, 4:18]
    wanted = omma.search(built, region, top=5, device="cpu")
    for query in (photos / "cat" / "3.png", "cat/3.png"):
        found = omma.search(built, query, crop=(4, 2, 14, 12), top=5, device="cpu")
        assert found.paths == wanted.paths
    shares = omma.search(built, photos / "cat" / "3.png", crop=(0.2, 0.125, 0.7, 0.75), top=5, device="cpu")
    assert shares.paths == wanted.paths
    with pytest.raises(ValueError, match=r"lies outside .*20 x 16 pixels"):
        omma.search(built, photos / "cat" / "3.png", crop=(4, 2, 17, 12), device="cpu")
    with pytest.raises(ValueError, match="a region of one image"):
        omma.search(built, ["cat/3.png", "cat/4.png"], crop=(0, 0, 1, 1), device="cpu")


def test_a_text_of_a_model_that_reads_texts(photos, tmp_path):
    run = saved(tmp_path / "clip", extras=with_text)
    omma.index(run, photos, tmp_path / "i", **CPU)
    index = Index.open(tmp_path / "i")
    paired = text.restored(weights.load(run).extras, "clip")
    products = paired.images(index.vectors()) @ paired.texts(["a cat"])[0]
    found = omma.search(index, "a cat", top=5, where="label = 'dog'", device="cpu")
    dogs = [i for i in np.argsort(-products) if index.paths()[i].startswith("dog")]
    assert found.rows.tolist() == dogs[:5]
    np.testing.assert_allclose(found.similarities, products[dogs[:5]], atol=1e-6)
    mixed = omma.search(index, ["a cat", "cat/0.png"], top=12, device="cpu")
    both = paired.texts(["a cat"])[0] + paired.images(index.vectors([0]))[0]
    order = np.argsort(-paired.images(index.vectors()) @ both)
    assert mixed.rows.tolist() == order.tolist()


def test_what_cannot_be_searched_for(built, photos):
    with pytest.raises(ValueError, match=r"reads none: .*text tower"):
        omma.search(built, "a cat")
    with pytest.raises(ValueError, match="neither a file nor the path"):
        omma.search(built, "cat/99.png")
    with pytest.raises(ValueError, match="nothing to search for"):
        omma.search(built, [])
    with pytest.raises(ValueError, match="lancedb does not hold"):
        omma.search(built, "cat/1.png", engine="lancedb")
    torn = photos / "torn.png"
    torn.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"torn\.png"):
        omma.search(built, torn)


def test_a_model_that_has_moved(run, photos, tmp_path):
    shutil.copytree(run, tmp_path / "here")
    omma.index(tmp_path / "here", photos, tmp_path / "i", **CPU)
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(ValueError, match="give --model"):
        omma.search(tmp_path / "i", photos / "cat" / "1.png")
    found = omma.search(tmp_path / "i", photos / "cat" / "1.png", model=tmp_path / "there", top=1)
    assert found.paths == ("cat/1.png",)


# ---------------------------------------------------------------- the command line
def test_commands(run, photos, tmp_path, capsys):
    index, options = str(tmp_path / "i"), ["--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        cli.main(["index", str(run), str(photos), "--out", index, *options])
    assert end.value.code == 0
    assert "12 images of " in capsys.readouterr().out
    out, page, table = (str(tmp_path / name) for name in ("o.json", "o.html", "o.csv"))
    query = str(photos / "cat" / "1.png")
    with pytest.raises(SystemExit) as end:
        cli.main(
            ["search", index, query, "cat/2.png", "--minus", "dog/7.png", "dog/8.png", "--top", "3",
             "--where", "label = 'cat'", "--json", out, "--out", table, "--page", page, *options]
        )  # fmt: skip
    assert end.value.code == 0
    printed = capsys.readouterr().out
    content = json.loads(Path(out).read_text())
    assert [row["path"] in printed for row in content["found"]] == [True] * 3
    assert content["minus"] == ["dog/7.png", "dog/8.png"]
    assert content["exact"] is True
    assert Path(table).read_text().count("\n") == 4
    html = Path(page).read_text()
    assert html.count("data:image/") == 4 + 3
    assert "http://" not in html.replace("http://www.w3.org", "")
    with pytest.raises(SystemExit) as end:
        cli.main(["search", index, query, "--where", "label = 'zebra'", *options])
    assert end.value.code == 0
    assert "no image of the index meets the condition" in capsys.readouterr().out
    for words, message in (
        (["search", index, query, "--crop", "1,2,3"], "give x,y,width,height"),
        (["search", index, "a dog"], "reads none"),
        (["search", str(photos), query], "is no index"),
        (["index", str(run), "--out", index], "give images to index"),
        (["index", str(run), str(photos), "--out", index, "--to", "mysql://x"], "--to mysql://x"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == 2
        assert message in capsys.readouterr().err


# ---------------------------------------------------------------- the approximate engine
def filled(folder, n, dim=16, clusters=40):
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((clusters, dim))
    x = (centres[generator.integers(0, clusters, n)] + 0.5 * generator.standard_normal((n, dim))).astype(
        np.float32
    )
    columns = {"path": [f"{i}.jpg" for i in range(n)], "vector": list(x)}
    schema = pa.schema([("path", pa.string()), ("vector", pa.list_(pa.float32(), dim))])
    facts = {"omma": json.dumps({"model": {"digest": "d" * 64, "preprocess": {}}})}
    pq.write_table(pa.table(columns, schema=schema.with_metadata(facts)), folder / "t.parquet")
    return folder / "t.parquet"


def test_the_approximate_engine_tells_its_recall(tmp_path, monkeypatch):
    pytest.importorskip("lancedb", reason="the extra `search` is not installed")
    monkeypatch.setattr(lance, "LEAST", 1000)
    monkeypatch.setattr(recall.sampled, "__defaults__", (0, 40))
    table = filled(tmp_path, 3000)
    result = omma.index(vectors=table, out=tmp_path / "i", engine="lancedb")
    assert result.recall.value >= 0.9
    index = Index.open(tmp_path / "i")
    about = omma.search(index, "7.jpg", top=10, device="cpu")
    exact = omma.search(index, "7.jpg", top=10, engine="exact", device="cpu")
    assert (about.exact, exact.exact) == (False, True)
    assert f"recall@10 {result.recall.value:.3f}" in about.notes[0]
    assert len({*about.paths} & {*exact.paths}) >= 5
    np.testing.assert_allclose(about.similarities[0], exact.similarities[0], atol=1e-6)
    assert omma.search(index, "7.jpg", where="path like '1%'", device="cpu").exact
    with build.writing(tmp_path / "i", index.manifest) as change:
        change.commit([], [7])
    changed = omma.search(tmp_path / "i", "8.jpg", device="cpu")
    assert changed.exact
    assert "has changed" in changed.notes[0]
    assert "7.jpg" not in changed.paths
    assert manifest.read(tmp_path / "i").approximate is not None


def test_a_small_index_needs_no_engine(built):
    pytest.importorskip("lancedb", reason="the extra `search` is not installed")
    with pytest.raises(ValueError, match="the exact search is faster"):
        lance.ensure(built)


def test_hashes_tell_content_not_name(photos):
    state = changes.State.of(open_images(photos))
    hashes = state.hashes(np.arange(12))
    assert len(set(hashes)) == 12
    assert all(len(value) == 16 for value in hashes)
