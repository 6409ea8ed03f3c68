"""The report stands alone, escapes what it is told, and is never seen half-written."""

import base64
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from omma.reporting import html, pictures
from omma.reporting.charts import Series, line_chart
from omma.reporting.html import Section
from omma.reporting.results import ReportedScore

HOSTILE = "</style></script><script>alert(1)</script><img src=x onerror=alert(1)>' \" & \x00\udc80"
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in its turn."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.attributes, self.open = [], "", [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def full(path, word="plain", **kw):
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    grid = pictures.neighbours(images[:2], images[None, :3].repeat(2, 0), [word] * 2, [[word, "b", "c"]] * 2)
    results = [
        ReportedScore(
            subject=s, protocol=p, metric="top1", value=v, low=v - 0.1, high=v + 0.1, detail=f"k=20 {word}"
        )
        for s, p, v in (("pixels", "knn", 0.41), ("trained", "knn", 0.56), (word, word, 0.6))
    ]
    curve = line_chart(word, [Series(word, [0, 1, 2], [1, np.nan, 3])])
    given = {
        "title": word, "verdict": f"It learned {word}", "level": "good", "reason": word,
        "facts": [(word, word)],
        "results": results, "sections": [Section(word, word, [grid, Image.new("RGB", (8, 8)), curve])],
        "curves": [curve], "config": [(word, word)], "notes": [word],
    }  # fmt: skip
    return html.write(path, html.page(**(given | kw))).read_text(encoding="utf-8")


def test_it_opens_with_the_verdict_then_results_pictures_curves_configuration(tmp_path):
    text = full(tmp_path / "new" / "report.html")
    places = [
        text.index(mark) for mark in ("It learned", "<h2>Results", "data:image", "<h2>Training", "<details")
    ]
    assert places == sorted(places)
    seen = Reader(text).text
    for words in ("41.0 %", "31.0 to 51.0", "Raw pixels", "k=20 plain", "Configuration"):
        assert words in seen


def test_it_asks_for_nothing_from_anywhere(tmp_path):
    text = full(tmp_path / "report.html")
    assert set(re.findall(r"https?://[^\"' >]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import|<script|<link|<iframe", text)
    sources = [value for name, value in Reader(text).attributes if name in ("src", "href")]
    assert sources
    assert all(s.startswith("data:image/") for s in sources)
    assert "default-src 'none'" in text


def test_hostile_words_stay_words(tmp_path):
    reader = Reader(full(tmp_path / "report.html", HOSTILE))
    assert "script" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in reader.text
    plain = Reader(full(tmp_path / "plain.html"))
    assert reader.tags == plain.tags


def test_the_least_report():
    text = html.page(title="t", verdict="v", level="bad")
    Reader(text)
    assert "<h2>" not in text


def test_a_failure_leaves_the_older_report_whole(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    before = full(path)
    with pytest.raises(TypeError, match="must come from"):
        full(path, curves=["<svg></svg>"])
    with pytest.raises(ValueError, match="level='great'"):
        full(path, level="great")

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        full(path, "other")
    assert path.read_text(encoding="utf-8") == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX")
def test_a_report_can_be_read_by_others_as_any_file(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    full(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_mode == ordinary.stat().st_mode


def test_pictures_survive_the_way_into_the_page():
    flat, photo = Image.new("RGB", (9, 7), "red"), np.random.default_rng(0).integers(0, 255, (192, 192, 3))
    for picture, kind in ((flat, "png"), (Image.fromarray(photo.astype(np.uint8)), "jpeg")):
        head, body = html.data_uri(picture).split(",")
        assert kind in head
        assert Image.open(io.BytesIO(base64.b64decode(body))).size == picture.size


def test_details_that_differ_are_told_apart(tmp_path):
    results = [
        ReportedScore(subject=s, protocol="linear", metric="top1", value=0.5, detail=d)
        for s, d in (("pixels", "d=3072"), ("trained", "d=192"))
    ]
    seen = Reader(full(tmp_path / "r.html", results=results)).text
    assert "Linear top1, Raw pixels: d=3072" in seen
    assert "Linear top1, Trained: d=192" in seen
