"""`omma embed`: a table that other tools read and that says where it came from."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from omma import backbones, weights
from omma.data.index import ArrayImages
from omma.protocols import Preprocess
from omma.verbs import embed as verb
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
    monkeypatch.setattr(verb, "ROWS", 8)
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
    said = json.loads(table.schema.metadata[b"omma"])
    assert said["model"]["provenance"] == {"method": "mae"}
    assert said["model"]["digest"] == weights.load(run).digest
    assert said["data"]["images"] == 21
    assert said["precision"] == "float32"
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
