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
from omma.reporting.html import Section, Verdict
from omma.reporting.pictures import Cell, Grid
from omma.reporting.results import ReportedEvaluation, ReportedScore

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


def evaluation(scores, word="plain", **kw):
    given = {"verdict": f"It helped {word}", "level": "warn", "notes": [word]}
    return ReportedEvaluation(data=word, scores=scores, **(given | kw))


def full(path, word="plain", **kw):
    random = np.random.default_rng(0)
    images = random.integers(0, 255, (5, 32, 32, 3), dtype=np.uint8)
    query = Cell(pictures.tile(images[0]), word, path=f"folder/{word}")
    names = (("a/b.png", True), (word, False), ("c.png", None))
    near = [Cell(pictures.tile(images[1]), f"0.90 {word}", mark, name) for name, mark in names]
    grid = Grid(("query", "nearest", "", ""), ((query, *near), (query, *near)))
    results = [
        ReportedScore(
            subject=s,
            protocol=p,
            metric="top1",
            value=v,
            low=v - 0.1,
            high=v + 0.1,
            conditions=("seed=7", f"k=20 {word}"),
        )
        for s, p, v in (("pixels", "knn", 0.41), ("trained", "knn", 0.56), (word, word, 0.6))
    ]
    curve = line_chart(word, [Series(word, [0, 1, 2], [1, np.nan, 3])])
    given = {
        "title": word, "verdicts": [Verdict(word, f"It learned {word}", "good", word)],
        "facts": [(word, word)],
        "evaluations": [evaluation(results, word)],
        "sections": [Section(word, word, [grid, Image.new("RGB", (8, 8)), curve])],
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
    text = html.page(title="t", verdicts=[Verdict("of", "v", "bad")])
    Reader(text)
    assert "<h2>" not in text


def test_a_failure_leaves_the_older_report_whole(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    before = full(path)
    with pytest.raises(TypeError, match="must come from"):
        full(path, curves=["<svg></svg>"])
    with pytest.raises(ValueError, match="level='great'"):
        Verdict("of", "v", "great")

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


def test_what_all_results_share_is_said_once_and_what_differs_with_its_name(tmp_path):
    def score(subject, protocol, *conditions):
        common = ("split=own", "seed=0", *conditions)
        return ReportedScore(subject=subject, protocol=protocol, metric="top1", value=0.5, conditions=common)

    results = [
        score(subject, protocol, layer, k)
        for subject, layer in (("pixels", "layer=input"), ("trained", "layer=last"))
        for protocol, k in (("knn", "k=20"), ("linear", "d=192"))
    ]
    seen = Reader(full(tmp_path / "r.html", evaluations=[evaluation(results)])).text
    assert seen.count("split=own") == seen.count("k=20") == seen.count("layer=last") == 1
    assert "split=own, seed=0, layer=last" in seen
    assert "k-NN top1: k=20" in seen
    assert "Raw pixels: layer=input" in seen
    told = Reader(
        full(tmp_path / "r.html", evaluations=[evaluation(results, protocol="Told in a sentence")])
    ).text
    assert "Told in a sentence" in told
    assert "split=own" not in told
    assert "Raw pixels: layer=input" in told


def test_names_of_files_stand_below_their_pictures(tmp_path):
    text = full(tmp_path / "r.html")
    assert text.count(">b.png</span>") == 2
    assert text.count('title="a/b.png"') == 2


def test_every_evaluation_has_its_own_results(tmp_path):
    score = ReportedScore(subject="trained", protocol="knn", metric="top1", value=0.5)
    both = [evaluation([score], "birds", verdict="It helped"), evaluation([score], "trees", verdict="Not")]
    text = full(tmp_path / "r.html", evaluations=both, verdicts=[Verdict("Evaluated on birds", "It helped")])
    assert text.count("It helped") == 1  # at the top, not below the heading again
    assert text.index("Results on birds") < text.index("Results on trees") < text.index("Not</p>")
