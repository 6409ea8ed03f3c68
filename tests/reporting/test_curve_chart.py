"""The chart over numbers of labels: a line an adapter, and a section of the report only for these weights."""

import json
import re

import numpy as np
import pytest

from omma.core import files
from omma.evaluation.curve import Cell, Curve, Labels
from omma.reporting.curve_chart import Line, curve_chart, draw, section


def content(adapters=("pixels-knn", "pixels-linear", "linear", "lora"), labels=("1", "4", "16")):
    rng = np.random.default_rng(0)
    cells = [
        Cell(adapter=a, labels=Labels.parse(k), images=10, correct=rng.random((3, 50)) < 0.3 + 0.1 * n)
        for n, a in enumerate(adapters)
        for k in labels
    ]
    return Curve(
        model="m", digest="d", data="x", cells=tuple(cells), protocol="a split", recipes={}
    ).to_json()


def circles(chart):
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([0-9.]+)" cy="([0-9.]+)"', chart)]


def test_a_line_for_each_adapter_and_one_floor():
    chart = draw(content())
    assert chart.count("<polyline") == 3
    assert [name in chart for name in ("LoRA", "linear head", "linear, raw pixels", "k-NN, raw")] == [
        True, True, True, False,
    ]  # fmt: skip
    assert "labels a class" in chart
    assert "share of labels" in draw(content(labels=("1%", "10%")))


def test_points_stand_on_a_logarithmic_axis_at_their_heights():
    lines = [Line("a", [(0.2, 0.1, 0.3), (0.4, 0.3, 0.5), (0.6, 0.5, 0.7)])]
    (x1, y1), (x2, y2), (x3, y3) = circles(curve_chart("t", ["1", "10", "100"], [1, 10, 100], lines))
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y1 > y2
    assert len(circles(curve_chart("t", ["4"], [4], [Line("a", [(0.2, 0.1, 0.3)])]))) == 1


def test_a_report_shows_the_curve_of_its_weights(tmp_path):
    file, notes = tmp_path / "curve.json", []
    assert section(file, "d", notes) is None
    files.write_json(file, content())
    found = section(file, "d", notes)
    assert found is not None
    assert found.caption.endswith("A split.")
    assert not notes
    assert section(file, "e", notes) is None
    assert "earlier weights" in notes.pop()
    for damaged in ("{", json.dumps({"digest": "d"}), json.dumps(content() | {"results": []})):
        file.write_text(damaged)
        assert section(file, "d", notes) is None
        assert "omma evaluate --curve` writes it again" in notes.pop()
