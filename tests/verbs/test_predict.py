"""`omma predict`: a table of classes and probabilities, the same as the model's own, and safe copies."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import omma
from omma import backbones, cli, weights
from omma.core.protocols import Preprocess
from omma.data.sources.collection import ArrayImages
from omma.weights.classifier import Calibration, Classifier, HeldOut

PREPROCESS = Preprocess(
    size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)
CPU = {"device": "cpu", "precision": "fp32"}


def saved(folder, **changes):
    """A network with a random classifier of cat, dog and a/b."""
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/8", image_size=16, depth=2)
    options = {
        "classes": ("cat", "dog", "a/b"),
        "weight": torch.randn(3, encoder.dim),
        "calibration": Calibration(temperature=2.0),
        "held_out": HeldOut(torch.linspace(0.3, 1, 200), torch.arange(200) >= 100),
        **changes,
    }
    extras = Classifier(**options).extras() if options["weight"] is not None else ()
    weights.save(folder, encoder, PREPROCESS, {}, *([extras] if extras else []))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("runs") / "x")


def pictures(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two class folders with files of one name, one of them torn."""
    for i, array in enumerate(pictures(6)):
        place = tmp_path / "images" / ("cat" if i < 3 else "bird")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(place / f"{i % 3}.png")
    torn = tmp_path / "images" / "cat" / "2.png"
    torn.write_bytes(torn.read_bytes()[:60])
    return tmp_path / "images"


def rows(file):
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    return (pq.read_table(file) if file.suffix == ".parquet" else pacsv.read_csv(file)).to_pylist()


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_the_table_holds_what_the_model_says(run, tmp_path, ending):
    images = ArrayImages(pictures(21), labels=np.arange(21) % 3 - 1, classes=("cat", "dog"))
    out = tmp_path / "out" / f"t.{ending}"
    done = omma.predict(run, images, out, **CPU)
    found, model = rows(out), weights.load(run)
    assert [f.name for f in out.parent.iterdir()] == [out.name]
    expected = model.classify(images)
    order = np.argsort(-expected.probabilities, axis=1)
    assert [row["class"] for row in found] == expected.names
    assert [row["runner_up"] for row in found] == [expected.classes[c] for c in order[:, 1]]
    first = np.take_along_axis(expected.probabilities, order, 1)
    assert np.allclose([row["probability"] for row in found], first[:, 0], atol=1e-5)
    assert np.allclose([row["runner_up_probability"] for row in found], first[:, 1], atol=1e-5)
    assert [row["path"] for row in found] == [images.path(i) for i in range(21)]
    assert [row["label"] or None for row in found] == [None, "cat", "dog"] * 7
    right = sum(row["class"] == row["label"] for row in found)
    assert (done.rows, done.labelled, done.right) == (21, 14, right)


@pytest.mark.parametrize("heads", [1, 2])
def test_evaluate_counts_the_same_answers(tmp_path, heads):
    """Those of `omma predict` in a process of its own; with two heads the second reads another token."""
    torch.manual_seed(1)
    encoder = backbones.build(name="vit-n/8", image_size=16, depth=2, distilled=heads == 2)
    second = (torch.randn(2, encoder.dim), torch.randn(2)) if heads == 2 else None
    classifier = Classifier(classes=("dog", "cat"), weight=torch.randn(2, encoder.dim), distilled=second)
    weights.save(tmp_path / "run", encoder, PREPROCESS, {}, classifier.extras())
    for i, array in enumerate(pictures(40, seed=2)):
        place = tmp_path / "images" / ("train" if i < 8 else "test") / ("cat" if i % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(place / f"{i}.png")
    options = {"protocols": ("classifier",), "floors": False, **CPU}
    (detail,) = omma.evaluate(tmp_path / "run", tmp_path / "images", **options).details
    table = tmp_path / "t.csv"
    words = ["predict", "run", "images", "--out", str(table), "--device", "cpu", "--precision", "fp32"]
    if heads == 1:
        subprocess.run([sys.executable, "-m", "omma", *words], cwd=tmp_path, check=True, capture_output=True)
    else:
        omma.predict(tmp_path / "run", tmp_path / "images", table, **CPU)
    tested = [row for row in rows(table) if row["path"].startswith("test/")]
    assert len(tested) == 32
    for true in ("cat", "dog"):
        for answer in ("cat", "dog"):
            counted = detail.confusions[detail.names.index(true), detail.names.index(answer)]
            assert counted == sum((row["label"], row["class"]) == (true, answer) for row in tested)
    assert len({row["class"] for row in tested}) == 2


def test_abstention_is_by_the_error_or_the_threshold(run, tmp_path):
    images, out = ArrayImages(pictures(30)), tmp_path / "t.parquet"
    limit = float(np.median(weights.load(run).classify(images).probabilities.max(1)))
    done = omma.predict(run, images, out, top=3, threshold=limit, **CPU)
    found = rows(out)
    assert [row["abstain"] for row in found] == [row["probability"] < limit for row in found]
    assert 0 < done.abstained < 30
    assert {row["class_3"] for row in found} <= {"cat", "dog", "a/b"}
    assert "label" not in found[0]
    done = omma.predict(run, images, out, error=0.1, **CPU)
    sure = [row["probability"] for row in rows(out) if not row["abstain"]]
    assert all(p >= 0.64 for p in sure)  # of the held-out answers those above .65 are right
    assert any("at most 0.1" in note for note in done.notes)
    with pytest.raises(ValueError, match="no threshold keeps"):
        omma.predict(run, images, out, error=0.001, **CPU)


def test_files_are_copied_by_class_and_never_overwritten(run, folder, tmp_path):
    copies, out = tmp_path / "sorted", tmp_path / "t.jsonl"
    done = omma.predict(run, folder, out, copy=copies, threshold=0.0, **CPU)
    assert [path for path, _ in done.bad] == ["cat/2.png"]
    found = rows(out)
    files = sorted(copies.rglob("*.png"))
    assert len(files) == len(found) == 5
    names = {path.parent.name for path in files}
    assert names == {row["class"].replace("/", "_") for row in found}
    originals = {path.read_bytes() for path in folder.rglob("*.png")}
    assert {path.read_bytes() for path in files} < originals
    assert len(list(folder.rglob("*.png"))) == 6
    with pytest.raises(ValueError, match="not empty"):
        omma.predict(run, folder, out, copy=copies, **CPU)
    other = tmp_path / "unsure"
    omma.predict(run, folder, out, copy=other, threshold=1.0, **CPU)
    assert [path.name for path in other.iterdir()] == ["_abstain"]
    with pytest.raises(ValueError, match="arrays"):
        omma.predict(run, ArrayImages(pictures(2)), out, copy=tmp_path / "no", **CPU)


def test_unknown_classes_are_said(run, folder, tmp_path):
    done = omma.predict(run, folder, tmp_path / "t.csv", **CPU)
    assert any("1 class of the images are unknown to the model: bird" in note for note in done.notes)


def test_several_labels_an_image(tmp_path):
    folder = saved(tmp_path / "m", multi_label=True, held_out=None)
    images, out = ArrayImages(pictures(8)), tmp_path / "t.csv"
    omma.predict(folder, images, out, **CPU)
    p = weights.load(folder).classify(images).probabilities
    for row, own in zip(rows(out), p):
        names = [("cat", "dog", "a/b")[c] for c in np.argsort(-own) if own[c] >= 0.5]
        assert (row["classes"] or "") == ";".join(names)
    omma.predict(folder, images, tmp_path / "t.parquet", threshold=0.0, **CPU)
    assert all(len(row["classes"]) == 3 for row in rows(tmp_path / "t.parquet"))
    with pytest.raises(ValueError, match="several"):
        omma.predict(folder, images, out, copy=tmp_path / "no", **CPU)


def test_a_failure_leaves_the_old_table_and_no_copies(run, tmp_path):
    class Broken(ArrayImages):
        def read(self, i, at_least=None):
            if i == 9:
                raise RuntimeError("unplugged")
            return super().read(i, at_least)

    (tmp_path / "t.csv").write_text("the old one")
    with pytest.raises(RuntimeError, match="unplugged"):
        omma.predict(run, Broken(pictures(12)), tmp_path / "t.csv", **CPU)
    assert [f.name for f in tmp_path.iterdir()] == ["t.csv"]
    assert (tmp_path / "t.csv").read_text() == "the old one"


def test_what_cannot_be_done_is_one_line(run, folder, tmp_path, capsys):
    bare = saved(tmp_path / "bare", weight=None)
    out = str(tmp_path / "t.csv")
    for words, text in (
        ([str(bare), str(folder), "--out", out], "no classifier: train one with `omma finetune"),
        ([str(run), str(folder), "--out", out, "--move", "x"], "moves no images"),
        ([str(run), str(folder), "--out", str(tmp_path / "t.txt")], "*.csv, *.parquet or *.jsonl"),
        ([str(run), str(folder), "--out", out, "--error", "2"], "between 0 and 1"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["predict", *words, "--device", "cpu"])
        assert end.value.code == 2
        printed = capsys.readouterr()
        assert text in printed.err
        assert printed.err.count("\n") == 1
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", str(run), str(folder), "--out", out, "--device", "cpu", "--precision", "fp32"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "5 images in" in printed
    assert "right: " in printed
    assert "skipped cat/2.png" in printed
