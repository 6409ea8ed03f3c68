"""`omma explore`: a page, a folder, embedding-atlas's table, TensorBoard's files, from any collection."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import omma
from omma import backbones, cli, weights
from omma.core.protocols import Preprocess
from omma.data.sources.collection import ArrayImages
from omma.weights.classifier import Classifier

CPU = {"device": "cpu", "precision": "fp32", "layout": "pca"}


def saved(folder, channels=3, white=255.0, classes=("cat", "dog")):
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/8", image_size=16, depth=2, channels=channels)
    preprocess = Preprocess(
        size=16, channels=channels, low=(0.0,) * channels, high=(white,) * channels,
        mean=(0.5,) * channels, std=(0.25,) * channels,
    )  # fmt: skip
    extras = Classifier(classes=classes, weight=torch.randn(len(classes), encoder.dim)).extras()
    weights.save(folder, encoder, preprocess, {}, extras)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("runs") / "x")


@pytest.fixture
def folder(tmp_path):
    """Two class folders of six images, one of them torn; a copy of another lies beside it."""
    rng = np.random.default_rng(0)
    for k in range(6):
        place = tmp_path / "images" / ("cat" if k < 3 else "bird")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(place / f"{k}.png")
    (tmp_path / "images" / "cat" / "9.png").write_bytes((tmp_path / "images" / "cat" / "0.png").read_bytes())
    torn = tmp_path / "images" / "cat" / "2.png"
    torn.write_bytes(torn.read_bytes()[:60])
    return tmp_path / "images"


def test_a_page_of_a_folder(run, folder, tmp_path):
    stages = []
    done = omma.explore(run, folder, tmp_path / "map.html", progress=lambda *s: stages.append(s), **CPU)
    assert done.path == tmp_path / "map.html"
    assert done.bytes == done.path.stat().st_size
    assert done.coordinates.shape == (6, 2)
    assert done.neighbours.indices.shape == (6, 5)
    assert [path for path, _ in done.bad] == ["cat/2.png"]
    assert len(done.pairs) >= 1
    facts = json.loads(re.search(r'id="facts">(.*?)</script>', done.path.read_text(encoding="utf-8"))[1])
    first, second = (facts["paths"][row] for row in done.pairs[0])
    assert {first, second} == {"cat/0.png", "cat/9.png"}
    assert facts["links"] == "images/"
    assert facts["skipped"][0][0] == "cat/2.png"
    assert {"label", "cluster", "distance", "agreement", "predicted", "confidence"} <= {
        facet["name"] for facet in facts["facets"]
    }
    assert ("embedding", 7, 7) in stages
    assert stages[-1] == ("drawing", 6, 6)
    again = omma.explore(run, folder, tmp_path / "again.html", **CPU)
    assert again.path.read_bytes() == done.path.read_bytes()


def test_predictions_are_the_models_own(run, tmp_path):
    images = ArrayImages(np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8))
    omma.explore(run, images, tmp_path / "a.parquet", format="atlas", **CPU)
    expected = weights.load(run).classify(images)
    table = pq.read_table(tmp_path / "a.parquet").to_pydict()
    assert table["predicted"] == expected.names
    np.testing.assert_allclose(table["confidence"], expected.probabilities.max(1), rtol=1e-4)


def test_a_folder_is_replaced_as_a_whole_but_no_other_files(run, folder, tmp_path):
    out = tmp_path / "page"
    for _ in range(2):
        done = omma.explore(run, folder, out, **CPU)
        assert sorted(p.name for p in out.iterdir()) == ["index.html", "thumbnails"]
        assert [p.name for p in (out / "thumbnails").iterdir()] == ["00000.jpg"]
        assert done.bytes == sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there already"):
        omma.explore(run, folder, out, **CPU)


def test_a_table_for_embedding_atlas(run, folder, tmp_path):
    done = omma.explore(run, folder, tmp_path / "a.parquet", format="atlas", thumbnails=24, **CPU)
    rows = pq.read_table(done.path).to_pylist()
    assert [row["path"] for row in rows][:2] == ["bird/3.png", "bird/4.png"]
    assert rows[0]["label"] == "bird"
    for k, row in enumerate(rows):
        assert (row["x"], row["y"]) == tuple(done.coordinates[k])
        assert row["neighbors"]["ids"] == done.neighbours.indices[k].tolist()
        expected = (1 - done.neighbours.similarities[k].astype(float)).clip(0)
        np.testing.assert_allclose(row["neighbors"]["distances"], expected, atol=1e-6)
        assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (24, 16)


def test_tensorboards_files(run, folder, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    out = tmp_path / "board"
    omma.explore(run, folder, out, format="tensorboard", **CPU)
    config = (out / "projector_config.pbtxt").read_text()
    tensors = out / re.search(r'tensor_path: "(.*)"', config)[1]
    vectors = np.loadtxt(tensors, delimiter="\t")
    expected = weights.load(run).embed([str(folder / "bird/3.png")])
    np.testing.assert_allclose(vectors[0], expected[0], rtol=1e-3, atol=1e-4)
    assert len(vectors) == 6
    lines = (out / re.search(r'metadata_path: "(.*)"', config)[1]).read_text().splitlines()
    assert lines[0].split("\t")[:2] == ["path", "label"]
    assert lines[1].split("\t")[:2] == ["bird/3.png", "bird"]
    assert len(lines) == 7


@pytest.mark.parametrize("n", [1, 2])
def test_one_image_and_two(run, tmp_path, n):
    images = ArrayImages(np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8))
    done = omma.explore(run, images, tmp_path / "map.html", **CPU)
    assert done.coordinates.shape == (n, 2)
    assert (done.neighbours is None) == (n == 1)
    for format, out in (("atlas", "a.parquet"), ("tensorboard", "board")):
        assert omma.explore(run, images, tmp_path / out, format=format, **CPU).bytes > 0


def test_images_of_six_channels_and_sixteen_bits(tmp_path):
    values = np.random.default_rng(0).integers(0, 65_536, (4, 20, 20, 6), dtype=np.uint16)
    model = saved(tmp_path / "six", channels=6, white=65_535.0)
    assert omma.explore(model, ArrayImages(values), tmp_path / "map.html", **CPU).bytes > 10_000


def test_features_that_are_not_finite_are_listed(run, tmp_path):
    broken = weights.load(run)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    images = ArrayImages(np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="none of 3 images has finite features"):
        omma.explore(broken, images, tmp_path / "map.html", **CPU)
    assert not (tmp_path / "map.html").exists()


def test_labels_can_be_required(run, tmp_path):
    images = ArrayImages(np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="no labels, which --labelled asks for"):
        omma.explore(run, images, tmp_path / "map.html", labelled=True, **CPU)


def test_the_command_prints_what_was_found(run, folder, tmp_path, capsys):
    arguments = ["explore", str(run), str(folder), "--out", str(tmp_path / "map.html"), "--layout", "pca"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--device", "cpu", "--clusters", "2", "--title", "Birds and cats"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "6 images: 2 clusters, 1 near-equal pair" in printed
    assert "skipped cat/2.png" in printed
    assert "<title>Birds and cats</title>" in (tmp_path / "map.html").read_text(encoding="utf-8")


def test_a_mistyped_place_is_refused_without_torch(run, folder):
    code = (
        "import sys; from omma import cli\n"
        "try: cli.main(sys.argv[1:])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    words = ["explore", str(run), str(folder), "--out", "a.html", "--format", "atlas"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"]
    assert "name it *.parquet" in done.stderr
