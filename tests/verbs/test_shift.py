"""`omma shift`: from folders or a column to matrices, a page and JSON, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from omma import backbones, weights
from omma.cli import main
from omma.core.protocols import Preprocess
from omma.data.sources.collection import open_images
from omma.verbs.shift import shift

PREPROCESS = Preprocess(
    size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)
CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(5)
    encoder = backbones.build(name="vit-ti/8", image_size=16, dim=24, heads=3, depth=1)
    folder = tmp_path_factory.mktemp("runs") / "x"
    weights.save(folder, encoder, PREPROCESS)
    return folder


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """Two sites of two classes, ten pictures each: what is light at one site is dark at the other."""
    root, rng = tmp_path_factory.mktemp("sites"), np.random.default_rng(0)
    rows = []
    for k in range(40):
        site, label = ("north", "south")[k % 2], ("cell", "empty")[k // 2 % 2]
        tone = 60 + 130 * ((site == "north") == (label == "cell"))
        file = root / site / label / f"{k:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = (tone + rng.normal(0, 20, (16, 16, 3))).clip(0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        rows.append(f"{file.relative_to(root)},{label},{'' if k > 35 else site},plate{k // 8}")
    (root / "table.csv").write_text("\n".join(["path,label,place,sequence", *rows]) + "\n")
    return root


def test_folders_are_domains(model, sites, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # which pytest-xdist sets
    figures, page = tmp_path / "shift.json", tmp_path / "shift.html"
    with pytest.raises(SystemExit) as end:
        main(
            ["shift", str(model), str(sites), "--label-depth", "-1", "--protocol", "knn",
             "--align", "standardise", "--json", str(figures), "--report", str(page),
             "--device", "cpu", "--precision", "fp32"]
        )  # fmt: skip
    assert not end.value.code
    text = capsys.readouterr().out
    for words in (
        "trained on north",
        "mean of the others",
        "worst domain",
        "Accuracy falls by",
        "no label of a",
    ):
        assert words in text
    content = json.loads(figures.read_text())
    assert [domain["name"] for domain in content["domains"]] == ["north", "south"]
    assert [domain["images"] for domain in content["domains"]] == [20, 20]
    titles = [each["title"] for each in content["matrices"]]
    assert titles == ["raw pixels", "untrained", "trained", "trained, standardise"]
    accuracy = np.array(content["matrices"][0]["accuracy"])  # of pixels: tones say the opposite elsewhere
    assert (np.diag(accuracy) == 1).all()
    assert (accuracy + np.eye(2) < 0.1).sum() == 2
    assert content["matrices"][0]["gap"]["value"] == pytest.approx(1, abs=0.1)
    assert "<svg" in figures.with_suffix(".svg").read_text()
    html = page.read_text()
    assert "north on south" in html
    assert "Matrix of raw pixels" in html


def test_a_column_makes_domains_and_groups_stay_whole(model, sites):
    found = shift(model, sites / "table.csv", by="place", protocol="knn", floors=False, **CPU)
    assert found.by == "place"
    assert found.images.sum() == 36
    assert "folds, none of which divides a sequence" in found.protocol()
    assert "left out, without label or domain, or of these: 4 images" in found.notes
    alone = shift(model, sites / "table.csv", by="place", protocol="knn", floors=False, group="none", **CPU)
    assert "5 folds: every image is tested once" in alone.protocol()
    assert alone.matrix().chosen == {"north": [14, 14], "south": [14, 14]}


def test_a_run_keeps_the_last_shift(model, sites, tmp_path):
    folder = tmp_path / "run"
    weights.save(folder, weights.load(model).encoder, PREPROCESS)
    (folder / "config.json").write_text(json.dumps({"method": "mae"}))
    found = shift(folder, open_images(str(sites / "table.csv")), by="place", protocol="knn", **CPU)
    assert found.files == (str(folder / "shift.json"), str(folder / "shift.svg"))
    assert json.loads((folder / "shift.json").read_text())["digest"] == weights.load(folder).digest


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"by": "label"}, r"two classes in common"),
        ({"by": "sequence"}, r"name another column with --by"),
        ({"by": "colour"}, r"has no column colour; choose among path, "),
        ({"by": "path"}, r"has 40 values, and a matrix needs 2 to 12"),
        ({"by": "place", "align": "dann"}, r"choose among standardise, coral, clusters"),
        ({"by": "place", "protocol": "svm"}, r"choose among linear, knn"),
        ({"by": "place", "group": "site"}, r"--group site: .* has no column site"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_what_cannot_be_compared_is_refused(model, sites, options, says):
    with pytest.raises(ValueError, match=says):
        shift(model, sites / "table.csv", floors=False, **options, **CPU)


def test_folders_of_classes_are_no_domains(model, sites):
    with pytest.raises(ValueError, match="name a column with --by COLUMN"):
        shift(model, sites / "north" / "cell", floors=False, **CPU)
    with pytest.raises(ValueError, match="two classes in common"):
        shift(model, sites / "north", floors=False, **CPU)
