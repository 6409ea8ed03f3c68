"""Charts are well-formed whatever they are given, and show what they were given."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from omma.reporting.charts import Series, interval_chart, line_chart
from omma.reporting.results import ReportedScore, figure
from omma.reporting.svg import nice_ticks

HOSTILE = "<script>alert('x')</script>\" onload=\"x & \x00\ud800 ]]> é"


def words(svg: str) -> str:
    return "".join(ET.fromstring(svg).itertext())


def curves(svg: str) -> list[np.ndarray]:
    """The points of each curve, [n, 2], in the view box's units."""
    found = re.findall(r'<polyline points="([^"]*)"', svg)
    return [np.array([[float(v) for v in p.split(",")] for p in points.split()]) for points in found]


def result(subject="trained", value=0.5, low=0.4, high=0.6, **kw) -> ReportedScore:
    given = {"protocol": "knn", "metric": "top1", "conditions": ("k=20",)} | kw
    return ReportedScore(subject=subject, value=value, low=low, high=high, **given)


def test_a_straight_line_is_drawn_straight_and_upwards():
    (points,) = curves(line_chart("rank", [Series("a", [0, 1, 2], [10.0, 20.0, 30.0])]))
    steps = np.diff(points, axis=0)
    assert np.allclose(steps[0], steps[1], atol=0.11)
    assert (steps[:, 0] > 0).all()
    assert (steps[:, 1] < 0).all()  # SVG's y runs downwards


def test_what_is_not_finite_is_left_out_and_said():
    chart = line_chart("loss", [Series("a", [0, 1, 2, 3, np.nan], [1.0, np.nan, np.inf, 2.0, 5.0])])
    assert len(curves(chart)[0]) == 2
    assert "3 values left out: not finite" in words(chart)
    assert "nan" not in chart
    assert "inf" not in chart


@pytest.mark.parametrize(
    "series",
    [
        [],
        [Series("a", [], [])],
        [Series("a", [], []), Series("b", [0], [np.nan])],
        [Series("a", [5], [0.5])],
        [Series("a", [0, 1], [0.0, 0.0])],
        [Series("a", [0, 1], [3, 3]), Series("b", [], [])],
        [Series("a", [0, 1], [1e300, -1e300])],
        [Series("a", [2, 2], [1e-30, 2e-30])],
    ],
)
@pytest.mark.parametrize("smooth", [False, True])
def test_odd_series_give_a_sound_chart(series, smooth):
    chart = line_chart("t", series, smooth=smooth)
    assert "nan" not in chart
    if not any(np.isfinite(s.y).any() for s in series):
        assert "nothing measured yet" in words(chart)


def test_hostile_names_stay_text():
    for chart in (
        line_chart(HOSTILE, [Series(HOSTILE, [0, 1], [1, 2])] * 2),
        interval_chart([result(subject=HOSTILE, metric=HOSTILE, protocol=HOSTILE)], HOSTILE),
    ):
        root = ET.fromstring(chart)
        assert not [e for e in root.iter() if e.tag.endswith("script")]
        assert not [k for e in root.iter() for k in e.attrib if k.startswith("on")]
        assert "<script>alert('x')</script>" in words(chart)


def test_a_spike_in_a_long_curve_is_kept():
    y = np.zeros(50_000)
    y[31_234] = 9.0
    (points,) = curves(line_chart("loss", [Series("a", np.arange(50_000), y)]))
    assert len(points) < 700
    assert points[:, 1].max() - points[:, 1].min() > 100


def test_the_moving_mean_of_noise_is_calmer_and_the_mean_of_a_line_is_the_line():
    x = np.arange(2000)
    noise = line_chart("l", [Series("a", x, np.random.default_rng(0).normal(size=2000))], smooth=True)
    raw, mean = curves(noise)
    assert mean[:, 1].std() < raw[:, 1].std() / 3
    raw, mean = curves(line_chart("l", [Series("a", x, 3.0 * x)], smooth=True))
    assert abs(mean[0] - raw[0]).max() < 0.2


def test_legend_and_end_values():
    chart = line_chart(
        "k-NN", [Series("this run", [0, 9], [0.1, 0.56]), Series("pixels", [0, 9], [0.41, 0.41])]
    )
    for text in ("this run", "pixels", "0.56", "0.41"):
        assert text in words(chart)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="3 x for 2 y"):
        Series("a", [1, 2, 3], [1, 2])


def test_interval_chart_names_every_row_and_survives_nothing():
    chart = interval_chart([result("pixels", 0.411), result("trained", 0.563), result("trained", np.nan)])
    for text in ("Raw pixels", "Trained", "41.1 %", "56.3 %", "k-NN top1", "40.0 to 60.0"):
        assert text in words(chart)
    assert "nan" not in chart
    assert "nothing measured yet" in words(interval_chart([]))
    ET.fromstring(interval_chart([result(value=-2.0, low=-3.0, high=None, metric="r2")]))
    ET.fromstring(interval_chart([result(value=0.0, low=None, high=None)]))


def test_ticks_are_round_and_enclose():
    assert nice_ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(3, 97)[0] <= 3
    assert nice_ticks(3, 97)[-1] >= 97
    assert all(3 <= t <= 97 for t in nice_ticks(3, 97, inside=True))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123, "0.0123"), (4.5678, "4.57"), (123.4, "123"), (1234, "1,234"), (12_300, "12.3k"),
     (2_500_000, "2.5M"), (1.2e-5, "1.2e-05"), (-0.5, "-0.5"), (float("nan"), "not finite"),
     (999.9, "1,000"), (999_999, "1M")],
)  # fmt: skip
def test_figures_are_written_for_people(value, text):
    assert figure(value) == text


def test_a_result_is_read_from_the_evaluation_s_json():
    entry = {
        "subject": "trained",
        "protocol": "knn",
        "metric": "top1",
        "value": 0.612,
        "interval95": [0.6, 0.62],
    }
    read = ReportedScore.read({**entry, "k": 20, "n_test": 5000})
    assert (read.value_text, read.interval_text) == ("61.2 %", "60.0 to 62.0")
    assert read.conditions == ("k=20", "n_test=5000")
    assert ReportedScore.read({**entry, "interval95": None}).interval_text == ""
