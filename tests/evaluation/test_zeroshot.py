"""Zero-shot classification and retrieval: by hand, against sorting, and with everything alike."""

import json
import re

import numpy as np
import pytest
import torch

from omma.backbones.layers import prompts, text
from omma.backbones.layers.prompts import Learned
from omma.data.text_tokenizer import Tokenizer
from omma.evaluation import confidence, retrieval, zeroshot


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_prompts_and_classes():
    found = zeroshot.prompts(["sea_lion", "cat"], ["a {}.", "the {}, drawn"])
    assert found == ["a sea lion.", "the sea lion, drawn", "a cat.", "the cat, drawn"]
    embedded = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]], np.float32)
    vectors = zeroshot.classifier(embedded, [2, 2])
    np.testing.assert_allclose(vectors, [[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]], rtol=1e-6)
    assert zeroshot.predict(unit(np.array([[1.0, 1, 0.1], [0, 0.4, 1]])), vectors).tolist() == [0, 1]


def test_prompts_that_cancel_out_give_no_nan():
    embedded = np.array([[1, 0], [-1, 0]], np.float32)
    assert np.isfinite(zeroshot.classifier(embedded, [2])).all()


def test_templates(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("a photo of a {}.\n\n  a drawing of the {}. \n", encoding="utf-8")
    assert zeroshot.read_templates(file) == ("a photo of a {}.", "a drawing of the {}.")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_templates_of_any_editor(tmp_path, encoding, end):
    (tmp_path / "t.txt").write_bytes(f"a photo of a {{}}.{end}{end}un café {{}}{end}".encode(encoding))
    assert zeroshot.read_templates(tmp_path / "t.txt") == ("a photo of a {}.", "un café {}")


def test_classes_of_equal_prompts():
    assert zeroshot.alike(["sea_lion", "cat", "sea lion", "dog", "cat"]) == [
        ["sea_lion", "sea lion"],
        ["cat", "cat"],
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\n\n", "no template"),
        (b"a {}\na cat\n", "line 2: 'a cat' needs one {}"),
        (b"{} and {}", "line 1"),
        (b"\xff{}", "cannot be read"),
    ],
)
def test_templates_that_are_none(tmp_path, content, why):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(ValueError, match=why):
        zeroshot.read_templates(tmp_path / "t.txt")
    with pytest.raises(ValueError, match="cannot be read"):
        zeroshot.read_templates(tmp_path / "none.txt")


# ---------------------------------------------------------------- descriptions (CuPL)
def reader(**options):
    torch.manual_seed(0)
    tower = text.TextTower(vocabulary=514, end=513, context=24, depth=1, dim=16, heads=2, out=8).eval()
    paired = text.Paired(tower, torch.eye(8), Tokenizer(context=24))
    return zeroshot.TextReader(paired, **options)


def described(tmp_path, content):
    file = tmp_path / "d.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return zeroshot.by_words(zeroshot.read_descriptions(file))


def test_descriptions_by_hand(tmp_path):
    """Means of unit vectors; classes without sentences are read in CLIP's template."""
    sentences = described(tmp_path, {"Sea Lion": ["It swims.", "A grey body."], "cat": ["It purrs."]})
    read = reader(descriptions=sentences)
    found = read.vectors(["sea_lion", "cat", "dog"])
    unit_vectors = read.paired.texts(["It swims.", "A grey body.", "It purrs.", "a photo of a dog."])
    mean = unit_vectors[:2].mean(0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(found[1:], unit_vectors[2:], atol=1e-6)
    assert read.settings(["sea_lion", "cat"]) == {"texts": 3, "templates": 1, "template": "a photo of a {}."}
    both = reader(descriptions=sentences, templates=("see {}", "the {}"))
    texts = ["see sea lion", "the sea lion", "It swims.", "A grey body."]
    assert both.texts("sea_lion") == texts
    mean = both.paired.texts(texts).mean(0)
    np.testing.assert_allclose(both.vectors(["sea_lion"])[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_what_descriptions_lack_is_said(tmp_path):
    long = "a sentence that is much longer than the text tower's context"
    read = reader(descriptions=described(tmp_path, {"cat": ["It purrs.", long]}))
    notes = read.notes(["cat", "dog", "bee"])
    assert notes == [
        "zero-shot: 3 classes by 2 texts: their descriptions",
        "2 classes without a description, by their names, as 'a photo of a {}.': dog, bee",
        "1 of 2 texts are longer than 24 tokens and are cut",
    ]
    with pytest.raises(ValueError, match=r"none of the classes dog, bee, ...: they are of cat, ..."):
        read.vectors(["dog", "bee"])


def test_a_learned_context_is_read_unless_prompts_are_given(tmp_path):
    learned = Learned(torch.randn(4, 16))
    read = reader(learned=learned)
    np.testing.assert_allclose(
        read.vectors(["cat"]), prompts.class_vectors(read.paired, learned, ["cat"]), atol=1e-6
    )
    assert read.settings(["cat"]) == {"learned_context": 4, "position": "end"}
    assert "in a learned context of 4 vectors for all" in read.notes(["cat"])[0]
    other = reader(learned=learned, templates=("a {}",))
    np.testing.assert_allclose(other.vectors(["cat"]), other.paired.texts(["a cat"]), atol=1e-6)
    sentences = described(tmp_path, {"cat": ["It purrs."]})
    third = reader(learned=learned, descriptions=sentences)
    np.testing.assert_allclose(third.vectors(["cat"]), third.paired.texts(["It purrs."]), atol=1e-6)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[1]", "no classes in it; write JSON"),
        (b"{}", "no classes"),
        (b"{'cat': []}", "is not JSON"),
        (b'{"cat": "It purrs."}', "'cat' has 'It purrs.': a list of one or more sentences"),
        (b'{"cat": []}', "'cat' has"),
        (b'{"cat": ["a", 3]}', "'cat' has"),
        (b'{"cat": ["a", " "]}', "'cat' has"),
        (b"\xff\xff\xff", "cannot be read"),
    ],
)
def test_descriptions_that_are_none(tmp_path, content, why):
    (tmp_path / "d.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(why)):
        zeroshot.read_descriptions(tmp_path / "d.json")
    with pytest.raises(ValueError, match="cannot be read"):
        zeroshot.read_descriptions(tmp_path / "none.json")


# ---------------------------------------------------------------- retrieval
def test_ranks_by_hand():
    images = np.eye(3, dtype=np.float32)
    captions = unit(np.array([[1, 0.1, 0], [0, 1, 0], [0, 0.9, 1], [0.2, 1, 0.9]], np.float32))
    owner = np.array([0, 1, 2, 2])
    found = retrieval.ranks(images, captions, owner)
    assert found.captions.tolist() == [0, 0, 0]  # of image 2's two captions the nearer one counts
    assert found.images.tolist() == [0, 0, 0, 1]
    figures = {r.metric: r for r in retrieval.recalls(found)}
    assert figures["recall@1, image to caption"].value == 1.0
    assert figures["recall@1, caption to image"].value == 0.75
    assert figures["recall@1, caption to image"].hits.tolist() == [1, 1, 1]
    assert figures["recall@1, caption to image"].queries.tolist() == [1, 1, 2]
    assert figures["recall@1, image to caption"].chance == pytest.approx((1 / 4 + 1 / 4 + 2 / 4) / 3)
    assert figures["recall@1, caption to image"].chance == pytest.approx(1 / 3)
    assert figures["recall@5, image to caption"].chance == 1.0


def test_ranks_are_those_of_sorting(monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", 7)
    rng = np.random.default_rng(0)
    images, captions = unit(rng.normal(size=(20, 5))), unit(rng.normal(size=(50, 5)))
    owner = np.concatenate([np.arange(20), rng.integers(0, 20, 30)])
    found = retrieval.ranks(images, captions, owner)
    near = images @ captions.T
    for i in range(20):
        order = owner[np.argsort(-near[i])]
        assert found.captions[i] == np.flatnonzero(order == i)[0]
    for j in range(50):
        assert np.argsort(-near[:, j])[found.images[j]] == owner[j]


def test_a_collapsed_model_finds_nothing():
    same = np.ones((6, 1), np.float32)
    found = retrieval.ranks(same, same, np.arange(6))
    assert next(retrieval.recalls(found)).value == 0.0


def test_intervals_of_captions_that_belong_together():
    hits, queries = np.array([0, 5] * 50), np.full(100, 5)
    low, high = confidence.clustered(hits, queries)
    apart = confidence.bootstrap(np.repeat(hits > 0, 5))
    assert low == pytest.approx(0.40, abs=0.02)  # as of 100 throws of a coin ...
    assert high == pytest.approx(0.60, abs=0.02)
    assert apart[1] - apart[0] < 0.5 * (high - low)  # ... and not of 500
    assert confidence.clustered(queries, queries)[1] == 1.0
    assert confidence.clustered(0 * hits, queries)[0] == 0.0
    assert confidence.ratio(hits - hits, queries) == (0.0, 0.0)
    assert confidence.ratio(queries, queries) == (1.0, 1.0)
