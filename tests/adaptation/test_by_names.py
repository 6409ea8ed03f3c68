"""`omma finetune --adapt coop|zeroshot`: the run folder, its classifier, new names, repeated and refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import omma
from omma import backbones, weights
from omma.adaptation import named
from omma.backbones.layers import text
from omma.core.protocols import Preprocess
from omma.evaluation.job import text_reader
from omma.verbs.evaluate import evaluate
from omma.verbs.finetune import finetune
from omma.weights.classifier import Classifier

COLOURS = {"red": (220, 30, 30), "sea_green": (30, 200, 120), "blue": (30, 30, 220)}
SIZE = 16


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP-like model without training, whose towers tell colours and names from each other."""
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/8", image_size=SIZE)
    tower = text.TextTower(vocabulary=514, end=513, context=40, depth=1, dim=32, heads=2, out=8)
    projection = torch.randn(8, encoder.dim)
    extras = text.extras(tower, projection, np.zeros((0, 2), np.int32), {"logit_scale": torch.tensor(3.0)})
    preprocess = Preprocess(
        size=SIZE, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    folder = tmp_path_factory.mktemp("clip")
    weights.save(folder, encoder, preprocess, {}, extras)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(8):
            noise = rng.integers(-25, 25, (SIZE, SIZE, 3))
            Image.fromarray(np.uint8(np.array(colour) + noise)).save(folder / name / f"{i}.png")
    return folder


def test_coop(clip, images, tmp_path):
    said = []
    options = {"adapt": "coop", "adapt_options": {"tokens": "3"}, "epochs": 6, "lr": 0.02, "device": "cpu"}
    out = finetune(clip, images, out=tmp_path / "run", listen=said.append, **options).out
    model = omma.load(out)
    classifier = Classifier.of(model)
    assert set(classifier.classes) == set(COLOURS)
    assert classifier.calibration.images == 6
    notes = [event.text for event in said if hasattr(event, "text")]
    assert any(note.startswith("CoOp: 3 learned vectors around the class's name, 6 epochs") for note in notes)
    assert any("held out, 6 labelled images" in note for note in notes)
    reader = text_reader(model, "run")
    expected = np.exp(3.0) * reader.vectors(classifier.classes)
    np.testing.assert_allclose(classifier.weight, expected, rtol=1e-4, atol=1e-5)
    # new names, in the context that was learned
    other = named.with_names(model, reader, ("yellow", "blue"), "run")
    again = Classifier.of(other)
    assert again.classes == ("yellow", "blue")
    torch.testing.assert_close(again.weight[1], classifier.weight[classifier.classes.index("blue")])
    # as the evaluation classifies by the names
    found = evaluate(out, images, protocols=("zeroshot", "classifier"), floors=False, device="cpu")
    by_names, own = (r for r in found.results if r.metric == "top1")
    assert by_names.value == own.value
    assert by_names.settings == {"learned_context": 3, "position": "end"}
    written = (out / "model.json").stat().st_mtime_ns
    finetune(clip, images, out=out, **options)  # it is finished
    assert (out / "model.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="another configuration"):
        finetune(clip, images, out=out, **{**options, "epochs": 7})


def test_zeroshot(clip, images, tmp_path):
    sentences = {"red": ["It is red."], "sea green": ["Like the sea.", "Green."], "blue": ["A sky."]}
    (tmp_path / "d.json").write_text(json.dumps(sentences))
    chosen = {"descriptions": str(tmp_path / "d.json")}
    out = finetune(clip, images, adapt="zeroshot", adapt_options=chosen, out=tmp_path / "run").out
    classifier = Classifier.of(omma.load(out))
    reader = text_reader(omma.load(clip), "clip", descriptions=tmp_path / "d.json")
    np.testing.assert_allclose(
        classifier.weight, np.exp(3.0) * reader.vectors(classifier.classes), rtol=1e-4, atol=1e-5
    )
    pooled = torch.randn(5, omma.load(out).encoder.dim)
    cosines = torch.from_numpy(reader.paired.images(pooled.numpy()) @ reader.vectors(classifier.classes).T)
    torch.testing.assert_close(classifier.logits(pooled), np.exp(3.0) * cosines, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"adapt": "coop", "steps": 5}, "--steps has no meaning with --adapt coop"),
        ({"adapt": "zeroshot", "epochs": 5}, "--epochs has no meaning with --adapt zeroshot"),
        ({"adapt": "coop", "epochs": 2.5}, "CoOp trains whole epochs"),
        ({"adapt": "coop", "adapt_options": {"rank": "8"}}, "--adapt.rank: coop has no such option"),
        ({"adapt": "coop", "adapt_options": {"position": "front"}}, "adapt.position='front'"),
    ],
)
def test_refused(clip, images, tmp_path, options, why):
    with pytest.raises(ValueError, match=why):
        finetune(clip, images, out=tmp_path / "run", **options)


def test_a_model_without_a_text_tower_is_refused(images, tmp_path, clip):
    model = omma.load(clip)
    weights.save(tmp_path / "plain", model.encoder, model.preprocess)
    with pytest.raises(ValueError, match="has no text tower"):
        finetune(tmp_path / "plain", images, adapt="coop", out=tmp_path / "run")
