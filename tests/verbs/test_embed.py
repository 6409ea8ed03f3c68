"""`omma embed`: a table that other tools read and that says where it came from."""

import json
import re
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from omma import backbones, weights
from omma.core.errors import install_command
from omma.core.protocols import Preprocess
from omma.data.sources.collection import ArrayImages
from omma.features import table
from omma.verbs.embed import embed

PREPROCESS = Preprocess(
    size=32, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small lose by threads, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "x"
    weights.save(folder, backbones.build(name="vit-ti/16", image_size=32), PREPROCESS, {"method": "mae"})
    return folder


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def test_round_trip(run, tmp_path, monkeypatch):
    monkeypatch.setattr("omma.features.table.ROWS", 8)
    images = ArrayImages(pictures(21), labels=np.arange(21) % 3 - 1, classes=("cat", "dog"))
    seen = []
    done = embed(
        run,
        images,
        tmp_path / "out" / "t.parquet",
        batch=4,
        device="cpu",
        precision="fp32",
        progress=lambda *a: seen.append(a),
    )
    assert (done.rows, done.dim, done.bad, seen[-1]) == (21, 192, (), (21, 21))
    file = pq.ParquetFile(done.path)
    assert file.num_row_groups == 3  # 8 + 8 + 5
    table = file.read()
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 192)
    assert table["path"].to_pylist() == [images.path(i) for i in range(21)]
    assert table["label"].to_pylist() == [None, "cat", "dog"] * 7
    vectors = np.stack(table["vector"].to_numpy())
    assert np.allclose(vectors, weights.load(run).embed(images), atol=1e-5)
    metadata = json.loads(table.schema.metadata[b"omma"])
    assert metadata["model"]["provenance"] == {"method": "mae"}
    assert metadata["model"]["digest"] == weights.load(run).digest
    assert metadata["data"]["images"] == 21
    assert metadata["precision"] == "float32"
    assert [f.name for f in done.path.parent.iterdir()] == ["t.parquet"]


def test_a_folder_with_a_torn_file(run, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, array in enumerate(pictures(5)):
        Image.fromarray(array).save(folder / f"{i}.png")
    data = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(data[: len(data) // 2])
    done = embed(run, folder, tmp_path / "t.parquet", device="cpu", precision="fp32")
    assert done.rows == 4
    assert [path for path, _ in done.bad] == ["3.png"]
    table = pq.read_table(done.path)
    assert table.column_names == ["path", "vector"]
    assert table["path"].to_pylist() == ["0.png", "1.png", "2.png", "4.png"]


def test_a_failure_leaves_nothing_behind(run, tmp_path):
    class Broken(ArrayImages):
        def read(self, i, at_least=None):
            if i == 9:
                raise RuntimeError("unplugged")
            return super().read(i, at_least)

    (tmp_path / "t.parquet").write_text("the old one")
    with pytest.raises(RuntimeError, match="unplugged"):
        embed(run, Broken(pictures(12)), tmp_path / "t.parquet", batch=4, device="cpu", precision="fp32")
    assert [f.name for f in tmp_path.iterdir()] == ["t.parquet"]
    assert (tmp_path / "t.parquet").read_text() == "the old one"


class Read(ArrayImages):
    """Remembers what was read; the images from `torn` on cannot be."""

    seen: list[int] = []  # noqa: RUF012
    torn = 99

    def read(self, i, at_least=None):
        number = int(self.path(i).split("[")[1][:-1])
        if number >= self.torn:
            raise RuntimeError("unplugged")
        self.seen.append(number)
        return super().read(i, at_least)


def test_the_same_call_goes_on_where_one_was_stopped(run, tmp_path, monkeypatch):
    monkeypatch.setattr("omma.features.table.ROWS", 8)
    out, whole = tmp_path / "t.parquet", tmp_path / "whole.parquet"
    options = {"batch": 4, "device": "cpu", "precision": "fp32"}
    images = Read(pictures(21), labels=np.arange(21) % 2)
    images.torn = 18
    with pytest.raises(RuntimeError, match="unplugged"):
        embed(run, images, out, **options)
    assert [f.name for f in tmp_path.iterdir()] == [".t.parquet.parts"]
    images.torn = 99
    Read.seen.clear()
    done = embed(run, images, out, **options)
    assert (done.rows, done.resumed) == (21, 16)
    assert sorted(Read.seen) == list(range(16, 21))
    assert [f.name for f in tmp_path.iterdir()] == ["t.parquet"]
    assert embed(run, images, whole, **options).resumed == 0
    assert pq.read_table(out).equals(pq.read_table(whole), check_metadata=True)


def test_parts_of_other_images_are_not_taken(run, tmp_path, monkeypatch):
    monkeypatch.setattr("omma.features.table.ROWS", 8)
    out = tmp_path / "t.parquet"
    options = {"batch": 4, "device": "cpu", "precision": "fp32"}
    images = Read(pictures(12))
    images.torn = 8
    for without in (False, True):  # a fingerprint, which identifies parts
        if without:
            images.fingerprint = None
        with pytest.raises(RuntimeError, match="unplugged"):
            embed(run, images, out, **options)
        if not without:
            other = ArrayImages(pictures(12, seed=1))
            assert embed(run, other, out, **options).resumed == 0
            vectors = np.stack(pq.read_table(out)["vector"].to_numpy())
            assert np.allclose(vectors, weights.load(run).embed(other), atol=1e-5)
            out.unlink()
    images.torn = 99
    assert embed(run, images, out, **options).resumed == 0


def test_two_cannot_write_one_table(run, tmp_path):
    class Greedy(ArrayImages):
        def read(self, i, at_least=None):
            embed(run, pictures_, tmp_path / "t.parquet", device="cpu", precision="fp32")
            raise AssertionError("both")

    pictures_ = ArrayImages(pictures(3))
    with pytest.raises(ValueError, match="another process: wait for it"):
        embed(run, Greedy(pictures(3)), tmp_path / "t.parquet", device="cpu", precision="fp32")
    assert not list(tmp_path.iterdir())


def test_every_process_has_a_part_and_no_batch_is_cut():
    for images, batch, processes in ((100_000, 512, 8), (1_000, 16, 3), (5, 16, 2), (10**7, 4096, 64)):
        size = table.shard_size(images, batch, processes)
        assert size % batch == 0
        assert size < table.ROWS + batch
        assert -(-images // size) >= min(processes, images // (2 * batch))


def test_engines_that_are_not_there(run, tmp_path, monkeypatch):
    images = ArrayImages(pictures(3))
    with pytest.raises(ValueError, match="engine='spark': choose 'local', 'ray'"):
        embed(run, images, tmp_path / "t.parquet", engine="spark")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=re.escape(f"ray is not installed: {install_command('ray')}")):
        embed(run, images, tmp_path / "t.parquet", engine="ray")


@pytest.mark.slow
def test_ray_writes_the_same_table(run, tmp_path, monkeypatch):
    """Its actors are other processes, one for each core."""
    ray = pytest.importorskip("ray", reason="ray (extra ray) is not installed")
    monkeypatch.setattr("omma.features.table.ROWS", 8)
    options = {"batch": 4, "device": "cpu", "precision": "fp32"}
    labels, one, other = np.arange(21) % 3 - 1, tmp_path / "one.parquet", tmp_path / "ray.parquet"
    images = ArrayImages(pictures(21), labels=labels, classes=("cat", "dog"))
    embed(run, images, one, **options)
    ray.init(include_dashboard=False)
    try:
        seen = []
        done = embed(run, images, other, engine="ray", progress=lambda *a: seen.append(a), **options)
        assert (done.rows, done.dim, done.resumed, seen[-1]) == (21, 192, 0, (21, 21))
        assert len(seen) == 3
        assert pq.read_table(other).equals(pq.read_table(one), check_metadata=True)
        with pytest.raises(ValueError, match="device 'cuda' is not available"):
            embed(run, images, other, engine="ray", device="cuda")
    finally:
        ray.shutdown()


@pytest.mark.parametrize("name", ["table.xls", "file/table.csv", "folder.csv"])
def test_an_impossible_place_is_refused_before_anything_is_read(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=name):
        embed("nowhere", "nowhere", tmp_path / name)
