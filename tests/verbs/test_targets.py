"""`omma evaluate --target`: numbers of a table by ridge and k-NN, beside the floors, and what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from omma import backbones, weights
from omma.cli import main
from omma.core.protocols import Preprocess
from omma.verbs.evaluate import evaluate

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
def doses(tmp_path_factory):
    """60 pictures that are the lighter the higher the dose; some doses are missing or no number."""
    root, rng = tmp_path_factory.mktemp("doses"), np.random.default_rng(0)
    rows = ["path,dose,turn,plate,drug"]
    for k in range(60):
        dose = rng.uniform(0, 10)
        pixels = (20 + 20 * dose + rng.normal(0, 10, (16, 16, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{k:02}.png")
        text = {7: "", 8: "nan", 9: "?"}.get(k, f"{dose:.3f}")
        rows.append(f"{k:02}.png,{text},{dose * 36:.1f},p{k // 5},{'xyz'[k % 3]}")
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    return root / "table.csv"


def test_a_column_is_regressed_beside_its_floors(model, doses, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # which pytest-xdist sets
    file = tmp_path / "dose.json"
    with pytest.raises(SystemExit) as end:
        main(
            ["evaluate", str(model), str(doses), "--target", "dose", "--json", str(file), "--device", "cpu",
             "--precision", "fp32"]
        )  # fmt: skip
    assert not end.value.code
    text = capsys.readouterr().out
    for words in (
        "ridge probe, R2", "k-NN, MAE", "with numbers in dose", "the train part's mean scores R2 -",
        "left out, without a finite number: 3 images",
    ):  # fmt: skip
        assert words in text
    results = json.loads(file.read_text())["results"]
    assert len(results) == 12
    assert {(r["n_train"], r["n_test"]) for r in results} == {(47, 10)}
    pixels = {(r["protocol"], r["metric"]): r for r in results if r["subject"] == "pixels"}
    assert pixels["ridge", "r2"]["value"] > 0.95  # the tone is the dose
    assert pixels["ridge", "mae"]["value"] < 0.6
    assert pixels["ridge", "mae"]["settings"]["constant"] > 1.5
    low, high = pixels["knn", "r2"]["interval95"]
    assert low < pixels["knn", "r2"]["value"] < high
    assert {"penalty", "held_out_r2"} <= pixels["ridge", "r2"]["settings"].keys()
    assert pixels["knn", "r2"]["settings"]["k"] in (1, 2, 5, 10, 20)


def test_groups_stay_whole_and_angles_are_regressed(model, doses):
    found = evaluate(model, doses, target="turn", target_period=360, group="plate", floors=False, **CPU)
    assert {r.metric for r in found.results} == {"circular_r2", "mae"}
    first = found.results[0]
    assert first.split.startswith("split by plate, ")
    assert (first.group, first.settings["period"]) == ("plate", 360)
    assert any("too few" in note for note in found.notes)
    assert "No floor was measured" in found.verdict()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "weight"}, "no column weight"),
        ({"target": "drug"}, "column drug holds texts such as 'x'"),
        ({"target": "dose", "protocols": ("linear",)}, "with --target choose among ridge, knn"),
        ({"target": "dose", "metrics": ("f1",)}, "leave them out with --target"),
        ({"target": "turn", "target_period": -1.0}, "must be above 0"),
        ({"target_period": 360.0}, "give that too"),
    ],
    ids=["unknown", "texts", "protocol", "metrics", "period", "alone"],
)
def test_what_cannot_be_regressed_is_refused(model, doses, options, says):
    with pytest.raises(ValueError, match=says):
        evaluate(model, doses, floors=False, **options, **CPU)
