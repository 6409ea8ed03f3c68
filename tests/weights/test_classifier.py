"""The classifier saved beside an encoder: written, read, and what it computes."""

import numpy as np
import pytest
import torch
from torch import nn

from omma import backbones, weights
from omma.core.protocols import Extras, Preprocess
from omma.weights import Model
from omma.weights.classifier import Calibration, Classifier, HeldOut

PREPROCESS = Preprocess(
    size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)


def tiny(**options):
    torch.manual_seed(0)
    return backbones.build(name="vit-n/8", image_size=16, depth=1, **options).eval()


def test_it_is_read_as_it_was_written(tmp_path):
    encoder = tiny()
    classifier = Classifier(
        classes=("cat", "dog"),
        weight=torch.randn(2, encoder.dim),
        bias=torch.randn(2),
        calibration=Calibration(temperature=0.7, thresholds=(0.2, 0.6), images=9),
        held_out=HeldOut(torch.tensor([0.9, 0.6]), torch.tensor([True, False])),
    )
    weights.save(tmp_path, encoder, PREPROCESS, {}, classifier.extras())
    found = weights.load(tmp_path).classifier
    assert found is not None
    assert found.held_out is not None
    assert torch.equal(found.weight, classifier.weight)
    assert (found.classes, found.calibration) == (classifier.classes, classifier.calibration)
    assert found.held_out.correct.tolist() == [True, False]


def test_probabilities_and_names_of_images(tmp_path):
    encoder = tiny()
    classifier = Classifier(classes=tuple("abc"), weight=torch.randn(3, encoder.dim) * 9).calibrated(
        temperature=2.0
    )
    model = Model(encoder, PREPROCESS, extras=classifier.extras())
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    found = model.classify(images, batch=2)
    logits = model.embed(images) @ classifier.weight.numpy().T
    assert np.allclose(found.probabilities, torch.from_numpy(logits / 2).softmax(1), atol=1e-5)
    assert found.names == ["abc"[i] for i in logits.argmax(1)]
    with pytest.raises(ValueError, match="no classifier"):
        Model(encoder, PREPROCESS).classify(images)


def test_two_heads_average_their_probabilities():
    encoder = tiny(pool="token", distilled=True)
    first, second = nn.Linear(encoder.dim, 3), nn.Linear(encoder.dim, 3)
    classifier = Classifier(
        classes=tuple("abc"),
        weight=first.weight,
        bias=first.bias,
        distilled=(second.weight, second.bias),
    )
    model = Model(encoder, PREPROCESS, extras=classifier.extras())
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    with torch.inference_mode():
        features = model(model.preprocess(images))
        assert features.prefix is not None
        expected = (first(features.pooled).softmax(1) + second(features.prefix[:, 1]).softmax(1)) / 2
    assert np.allclose(model.classify(images).probabilities, expected, atol=1e-6)


def test_classes_without_names_are_numbers_and_files_of_two_models_are_refused():
    encoder = tiny()
    model = Model(encoder, PREPROCESS, extras=Extras({"classifier.weight": torch.zeros(3, encoder.dim)}))
    assert model.classifier is not None
    assert model.classifier.classes == ("0", "1", "2")
    other = Model(encoder, PREPROCESS, extras=Extras({"classifier.weight": torch.zeros(3, 5)}))
    with pytest.raises(ValueError, match="do not belong together"):
        _ = other.classifier
