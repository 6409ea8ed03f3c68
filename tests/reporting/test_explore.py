"""What the map shows: closed forms of places, clusters and findings, columns, thumbnails, and a safe page."""

import base64
import hashlib
import io
import itertools
import json
import re
import sys

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from omma.core.errors import install_command
from omma.data.sources import collection
from omma.data.sources.collection import ArrayImages
from omma.features.extract import FeatureSet
from omma.ops.nearest import Neighbours, nearest, unit
from omma.reporting.explore import analysis, clusters, facets, findings, layout, page, sprite, target


def near(rows, similarities=None):
    rows = np.array(rows)
    return Neighbours(
        np.array(similarities if similarities is not None else 0.5 + 0 * rows, np.float32), rows
    )


def features(vectors):
    return FeatureSet(np.asarray(vectors, np.float32), np.arange(len(vectors)))


def images(n, **options):
    return ArrayImages(np.random.default_rng(0).integers(0, 256, (n, 12, 20, 3), dtype=np.uint8), **options)


# ---------------------------------------------------------------- places
def test_pca_keeps_the_distances_of_a_plane():
    plane = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    turned = np.hstack([plane, np.zeros((50, 3), np.float32)]) @ np.linalg.qr(
        np.random.default_rng(1).normal(size=(5, 5))
    )[0].astype(np.float32)
    components, share = layout.reduced(turned, 0)
    assert share == pytest.approx(1, abs=1e-5)
    found = layout.layout(components, share, None, "pca")
    ratio = (
        np.linalg.norm(found.xy[:, None] - found.xy, axis=-1)[np.triu_indices(50, 1)]
        / np.linalg.norm(plane[:, None] - plane, axis=-1)[np.triu_indices(50, 1)]
    )
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    assert np.ptp(found.xy, axis=0).max() == pytest.approx(1, abs=1e-5)
    assert found.kind == "pca"
    assert "hold 100% of the variance" in found.note


def test_images_at_one_place_are_set_apart_by_the_same_steps():
    moved = layout.apart(np.full((5, 2), 0.5), step=0.01)
    away = np.linalg.norm(moved[:, None] - moved, axis=-1)[np.triu_indices(5, 1)]
    assert away.min() > 0.1  # the map is framed anew around them
    alone = np.array([[0, 0], [1, 0.5]], np.float32)
    np.testing.assert_array_equal(layout.apart(alone), alone)


def test_hilberts_curve_visits_every_place_by_steps_of_one():
    grid = np.stack(np.meshgrid(np.arange(16), np.arange(16)), -1).reshape(-1, 2)
    order = np.argsort(layout.hilbert(grid / 15, bits=4))
    assert sorted(layout.hilbert(grid / 15, bits=4)) == list(range(256))
    np.testing.assert_array_equal(np.abs(np.diff(grid[order], axis=0)).sum(1), 1)


def test_a_map_that_is_the_vectors_is_faithful_and_a_shuffled_one_is_not():
    angles = np.sort(np.random.default_rng(0).uniform(0, 2, 400))
    circle = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    neighbours = nearest(None, circle, 10)
    assert layout.faithful(circle, neighbours, within=10) > 0.99
    assert layout.faithful(np.random.default_rng(1).permutation(circle), neighbours, within=10) < 0.1


@pytest.mark.parametrize("n", [1, 2, 3, 30])
@pytest.mark.parametrize("kind", ["normal", "identical", "zero"])
def test_few_identical_and_empty_vectors_have_places(n, kind):
    vectors = {"normal": np.random.default_rng(0).normal(size=(n, 8)), "identical": np.ones((n, 8))}.get(
        kind, np.zeros((n, 8))
    )
    found = analysis.analyse(features(vectors), images(n), kind="pca")
    assert found.layout.xy.shape == (n, 2)
    assert np.isfinite(found.layout.xy).all()
    assert len(np.unique(found.layout.xy, axis=0)) == n
    assert found.clusters.of.shape == (n,)
    assert (found.neighbours is None) == (n == 1)
    pairs = n * (n - 1) // 2 if n <= 3 else None  # of 30 each has 10 neighbours
    if kind == "identical" and pairs is not None:
        assert len(found.pairs.i) == pairs


def test_the_same_vectors_give_the_same_map():
    vectors = np.random.default_rng(0).normal(size=(80, 16))
    first, second = (analysis.analyse(features(vectors), images(80), kind="pca") for _ in range(2))
    np.testing.assert_array_equal(first.layout.xy, second.layout.xy)
    np.testing.assert_array_equal(first.clusters.of, second.clusters.of)


@pytest.mark.slow
def test_umap_keeps_groups_apart_and_is_the_same_twice():
    """Slow: numba compiles it."""
    pytest.importorskip("umap", reason="umap-learn (extra map) is not installed")
    rng = np.random.default_rng(0)
    centres = 5 * rng.normal(size=(3, 20))
    vectors = np.repeat(centres, 40, 0) + rng.normal(size=(120, 20))
    first, second = (analysis.analyse(features(vectors), images(120), kind="umap") for _ in range(2))
    np.testing.assert_array_equal(first.layout.xy, second.layout.xy)
    places = first.layout.xy.reshape(3, 40, 2)
    within = max(np.linalg.norm(p - p.mean(0), axis=1).mean() for p in places)
    between = min(np.linalg.norm(a.mean(0) - b.mean(0)) for a, b in itertools.combinations(places, 2))
    assert between > 2 * within
    assert first.layout.kind == "umap"


def test_what_cannot_be_placed_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="layout"):
        layout.check("tsne")
    monkeypatch.setattr(layout.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match=re.escape(install_command("map"))):
        layout.check("umap")
    with pytest.raises(ValueError, match="neighbours=0"):
        analysis.analyse(features(np.eye(3)), images(3), neighbours=0)
    with pytest.raises(ValueError, match="clusters=9: must be from 1 to 3"):
        analysis.analyse(features(np.eye(3)), images(3), kind="pca", clusters=9)
    with pytest.raises(ValueError, match="alike=2"):
        analysis.analyse(features(np.eye(3)), images(3), kind="pca", alike=2)


def test_features_that_are_not_finite_are_left_out():
    vectors = np.eye(4)
    vectors[2, 0], vectors[3, 1] = np.nan, np.inf
    kept, bad = analysis.finite(features(vectors), images(4))
    assert kept.indices.tolist() == [0, 1]
    assert [path for path, _ in bad] == ["array[2]", "array[3]"]
    with pytest.raises(ValueError, match="none of 2 images has finite features"):
        analysis.finite(features(np.full((2, 3), np.nan)), images(2))


# ---------------------------------------------------------------- clusters
def test_clusters_are_the_groups_the_largest_first_named_by_class():
    rng = np.random.default_rng(0)
    sizes = (10, 30, 20)
    of = np.repeat([0, 1, 2], sizes)
    vectors = 20 * np.eye(3)[of] + rng.normal(size=(60, 3))
    found = clusters.clusters(vectors, 3, classes=[["cat", "dog", None][c] for c in of])
    np.testing.assert_array_equal(found.of, np.array([2, 0, 1])[of])
    assert found.names == ("1: dog", "2", "3: cat")
    captions = [["a cat sits", "a dog runs", "a red car"][c] for c in of]
    assert clusters.clusters(vectors, 3, captions=captions).names == (
        "1: dog, runs",
        "2: car, red",
        "3: cat, sits",
    )


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 1), (8, 2), (100, 5), (1000, 16), (10**5, 24)])
def test_the_number_of_clusters_grows_with_the_collection(n, k):
    assert clusters.number(n) == k


# ---------------------------------------------------------------- findings
def test_pairs_are_each_named_once_the_most_similar_first():
    found = findings.near_pairs(
        near([[1, 2], [0, 2], [3, 0], [2, 1]], [[0.99, 0.96], [0.99, 0.5], [1.0, 0.96], [1.0, 0.2]]), 0.95
    )
    assert list(zip(found.i, found.j)) == [(2, 3), (0, 1), (0, 2)]
    np.testing.assert_allclose(found.similarity, [1.0, 0.99, 0.96], rtol=1e-6)


def test_agreement_is_the_share_of_labelled_neighbours():
    labels = np.array([0, 0, 1, -1])
    share = findings.agreement(near([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]), labels)
    np.testing.assert_array_equal(share, np.array([0.5, 0.5, 0, np.nan], np.float32))


def test_suspects_are_those_whose_neighbours_agree_on_another_label():
    labels = np.array([0, 1, 1, 1, 2, -1])
    found = findings.suspects(
        near([[1, 2, 3], [2, 3, 0], [1, 3, 0], [1, 2, 5], [0, 0, 1], [0, 1, 2]]), labels
    )
    assert found.rows.tolist() == [0, 4]
    assert found.instead.tolist() == [1, 0]
    np.testing.assert_allclose(found.share, [1, 2 / 3], rtol=1e-6)


def test_neighbour_distance_is_the_mean_distance():
    found = findings.neighbour_distance(near([[1, 2], [0, 2], [0, 1]], [[1, 0.5], [1, 0], [0.5, -1]]))
    np.testing.assert_allclose(found, [0.25, 0.5, 1.25])


def test_an_outlier_is_the_loneliest_and_a_copy_is_found():
    rng = np.random.default_rng(0)
    vectors = np.array([1, 0, 0, 0]) + 0.2 * rng.normal(size=(40, 4))
    vectors[7], vectors[8] = [-1, 0, 0, 0.1], 3 * vectors[9]
    found = analysis.analyse(features(vectors), images(40), kind="pca", alike=0.99999)
    assert found.neighbour_distance.argmax() == 7
    assert (8, 9) in set(zip(found.pairs.i.tolist(), found.pairs.j.tolist()))
    rows = unit(vectors)
    expected = np.sort(1 - rows @ rows[7])[1:11].mean()
    assert found.neighbour_distance[7] == pytest.approx(expected, abs=1e-5)


# ---------------------------------------------------------------- columns
def test_columns_are_classes_numbers_or_texts():
    n = 60
    shown = images(n, labels=np.arange(n) % 3 - 1, classes=("cat", "dog"))
    shown.columns = pa.table({
        "domain": ["photo", "sketch", None] * 20,
        "score": [str(k / 7) for k in range(n)],
        "fold": [str(k % 5) for k in range(n)],
        "plot": [f"{k:03d}" for k in range(n)],
        "note": [f"image {k}" for k in range(n)],
        "copy": [["", "cat", "dog"][k % 3] for k in range(n)],
        "empty": [None] * n,
    })  # fmt: skip
    found = {facet.name: facet for facet in facets.of_collection(shown)}
    kinds = {name: facet.kind for name, facet in found.items()}
    assert kinds == {
        "label": "class", "domain": "class", "score": "number", "fold": "class", "plot": "text",
        "note": "text",
    }  # fmt: skip
    assert found["label"].column().to_pylist()[:3] == [None, "cat", "dog"]
    assert found["domain"].codes is not None
    assert found["domain"].codes[:3].tolist() == [0, 1, -1]
    assert found["score"].column()[7].as_py() == 1.0
    twice = facets.joined([found["fold"]], [found["fold"], found["score"]])
    assert [facet.name for facet in twice] == ["fold", "fold 2", "score"]


# ---------------------------------------------------------------- thumbnails
def test_sheets_hold_the_thumbnails_in_order_with_their_sizes(monkeypatch):
    monkeypatch.setattr(sprite, "SHEET", 48)  # two by two
    array = (
        np.zeros((5, 12, 24, 3), np.uint8) + np.array([0, 50, 100, 150, 200], np.uint8)[:, None, None, None]
    )
    made = list(sprite.sheets(ArrayImages(array), np.array([4, 0, 2, 1, 3]), 24))
    assert [sheet.sizes for sheet in made] == [[(24, 12)] * 4, [(24, 12)]]
    opened = [np.asarray(Image.open(io.BytesIO(sheet.jpeg))) for sheet in made]
    assert opened[0].shape == (48, 48, 3)
    for value, (row, column) in zip((200, 0, 100, 50), itertools.product((0, 24), (0, 24))):
        np.testing.assert_allclose(opened[0][row + 4, column + 12], value, atol=4)
    np.testing.assert_allclose(opened[1][4, 12], 150, atol=4)


def test_thumbnails_are_as_large_as_the_bytes_allow_and_the_images_are():
    noise = np.random.default_rng(0).integers(0, 256, (8, 100, 100, 3), dtype=np.uint8)
    rows = np.arange(8)
    assert sprite.fitting_side(ArrayImages(noise), rows, 1e9) == 128  # the next above 100
    side = sprite.fitting_side(ArrayImages(noise), rows, 8_000)
    assert 16 <= side < 64
    total = sum(len(sheet.jpeg) for sheet in sprite.sheets(ArrayImages(noise), rows, side))
    assert total <= 8_800
    assert sprite.fitting_side(ArrayImages(noise), rows, 10) == 16


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_thumbnails_of_sixteen_bits_and_many_channels(channels):
    values = np.random.default_rng(0).integers(0, 60_000, (3, 30, 20, channels), dtype=np.uint16)
    (sheet,) = sprite.sheets(ArrayImages(values), np.arange(3), 16)
    assert sheet.sizes == [(11, 16)] * 3
    assert np.ptp(np.asarray(Image.open(io.BytesIO(sheet.jpeg)))) > 100


# ---------------------------------------------------------------- the page
@pytest.fixture(scope="module")
def written(tmp_path_factory):
    place = tmp_path_factory.mktemp("page") / "map.html"
    shown = images(12, labels=np.arange(12) % 2, classes=("</script><script>alert(1)</script>", "\u2028&<b>"))
    found = analysis.analyse(features(np.random.default_rng(0).normal(size=(12, 6))), shown, kind="pca")
    known = facets.joined(facets.of_collection(shown), facets.of_analysis(found))
    content = page.Content("</title><script>alert(2)</script>", known, [], [("a\udcff</script>.png", "torn")])
    page.write(place, shown, found, content)
    return place.read_text(encoding="utf-8"), found


def test_no_name_can_end_an_element_or_begin_one(written):
    text, _ = written
    assert "alert(1)</script>" not in text
    assert "<script>alert" not in text
    assert "\u2028" not in text
    assert text.count("</title>") == 1
    scripts = re.findall(r"<script\b[^>]*>", text)
    kinds = [s for s in scripts if "type=" not in s]
    assert len(kinds) == len(page.SCRIPTS)
    assert len(scripts) == len(page.SCRIPTS) + 2  # a sheet, and the facts
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)


def test_the_page_may_run_its_own_scripts_alone(written):
    text, _ = written
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith(
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'sha"
    )
    assert "unsafe-eval" not in policy[1]
    for script in re.findall(r"<script>(.*?)</script>", text, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]


def test_the_facts_are_those_of_the_analysis(written):
    text, found = written
    facts = re.search(r'<script type="application/json" id="facts">(.*?)</script>', text, re.DOTALL)
    assert facts is not None
    facts = json.loads(facts[1])

    def unpacked(name, kind):
        return np.frombuffer(base64.b64decode(facts[name]), kind)

    np.testing.assert_allclose(unpacked("x", "<u2") / 65535, found.layout.xy[:, 0], atol=1e-5)
    np.testing.assert_array_equal(unpacked("near", "<u4").reshape(12, -1), found.neighbours.indices)
    similarity = unpacked("similarity", "<u2").reshape(12, -1) / 65535 * 2 - 1
    np.testing.assert_allclose(similarity, found.neighbours.similarities, atol=4e-5)
    assert sorted(unpacked("tile", "<u4")) == list(range(12))
    assert facts["links"] is None  # arrays are no files
    assert facts["paths"][3] == "array[3]"


def test_links_lead_from_the_page_to_the_files(tmp_path):
    (tmp_path / "my photos").mkdir()
    for k in range(3):
        Image.new("RGB", (9, 9), (80 * k, 0, 0)).save(tmp_path / "my photos" / f"{k}.png")
    shown = collection.open_images(tmp_path / "my photos", cache=tmp_path)
    assert page._links(shown, tmp_path) == "my%20photos/"
    assert page._links(shown, tmp_path / "a" / "b") == "../../my%20photos/"


# ---------------------------------------------------------------- colours
# Machado, Oliveira & Fernandes 2009, table 1: severity 1.0, on linear RGB
BLINDNESS = {
    "none": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]
    ],
}  # fmt: skip
XYZ = np.array(  # of linear sRGB, white D65
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour):
    values = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(colour):
    xyz = XYZ @ np.clip(colour, 0, 1) / np.array([0.95047, 1, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", BLINDNESS)
@pytest.mark.parametrize("palette", ["light", "dark"])
def test_colours_stay_apart_for_readers_of_any_colour_vision(palette, seen):
    """By 18 in CIELAB at least, where 2.3 can just be told apart; against the paper, too."""
    colours = {"light": (*page.LIGHT, "#aab0b6", "#fbfbf9"), "dark": (*page.DARK, "#68727c", "#14171b")}[
        palette
    ]
    places = [lab(np.array(BLINDNESS[seen]) @ linear(colour)) for colour in colours]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2)) > 18


# ---------------------------------------------------------------- where it goes
def test_places_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for out, options, why in (
        ("x.html", {"format": "atlas"}, r"name it \*\.parquet"),
        ("full", {"format": "page"}, "is there already"),
        ("full", {"format": "tensorboard"}, "is there already"),
        ("x.html", {"format": "page", "side": 500}, "thumbnails=500: must be from 16 to 192"),
        ("x.html", {"format": "pdf"}, "format"),
    ):
        with pytest.raises(ValueError, match=why):
            target.checked(tmp_path / out, **options)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "index.html").write_text("")
    assert target.checked(tmp_path / "old", "page").folder
    assert not target.checked(tmp_path / "x.html", "page").folder
