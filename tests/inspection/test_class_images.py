"""Maximising images: closed forms of linear models, the parametrisation, and what is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from omma import backbones
from omma.core.protocols import Backbone, Extras, Features, Preprocess
from omma.inspection import class_images
from omma.inspection.class_images import Ascent, of_classes, of_directions
from omma.inspection.maps import subject_of
from omma.weights import Model

SIZE = 16
QUIET = Ascent(steps=300, rate=0.3, shift=0.0, scale=(1.0, 1.0), turn=0.0, variation=0.0)


class Mean(Backbone):
    """Linear: the feature is the mean of each channel of the left half, then of the right half."""

    name, dim, patch, channels, drops_tokens = "mean", 6, 8, 3, False

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.built_from = {}

    def tokenize(self, images, keep=None):
        half = images.shape[-1] // 2
        means = [side.mean((-1, -2)) for side in (images[..., :half], images[..., half:])]
        return self.scale * torch.cat(means, 1)[:, None]

    def encode(self, tokens, grid, keep=None):
        return Features(tokens[:, 0], tokens, (1, 1))


def preprocess(**changes):
    given = {
        "size": SIZE, "channels": 3, "low": (0.0,) * 3, "high": (255.0,) * 3, "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
    }  # fmt: skip
    return Preprocess(**(given | changes))


def linear(weights, classes=("red left", "blue right"), **changes):
    extras = Extras({"classifier.weight": torch.tensor(weights)}, {"classes": list(classes)})
    return Model(Mean(), preprocess(**changes), {}, extras)


def test_a_linear_models_image_is_its_weights_at_the_ends_of_the_range():
    """The logit (left red - left blue) is largest where the left half is red: all values 0 or 255."""
    model = linear([[3.0, 0, -3.0, 0, 0, 0], [0, 0, 0, -3.0, 0, 3.0]])
    red, blue = of_classes(model, ["red left", "blue right"], QUIET)
    assert red.picture.shape == (SIZE, SIZE, 3)
    assert red.picture.dtype == np.uint8
    left, right = red.picture[:, : SIZE // 2].mean((0, 1)), red.picture[:, SIZE // 2 :].mean((0, 1))
    assert left[0] > 235
    assert left[2] < 50
    assert abs(right[0] - 127) < 60  # nothing asks for it
    assert blue.picture[:, SIZE // 2 :, 2].mean() > 235
    best = 3 * (0.5 / 0.25) * 2  # every pixel at its end
    assert 0.75 * best < red.value <= best  # the ends are reached slowly, through a sigmoid
    assert red.found
    assert red.first == "red left"
    assert red.probability == pytest.approx(model.classify([red.picture]).probabilities[0, 0], abs=1e-6)


def test_a_direction_needs_no_classifier_and_is_made_of_length_1():
    model = Model(Mean(), preprocess())
    down, far = of_directions(
        model, np.array([[0, -1.0, 0, 0, 0, 0], [0, -50.0, 0, 0, 0, 0]]), ["a", "b"], QUIET
    )
    assert down.value == pytest.approx(2.0, abs=0.2)  # (0 - mean) / std of black green
    assert far.value == pytest.approx(down.value, abs=0.15)
    assert down.probability is None
    assert not down.found
    assert down.picture[:, : SIZE // 2, 1].mean() < 20


def test_the_picture_passes_the_models_own_resize_and_crop():
    model = linear([[3.0, 0, -3.0, 0, 0, 0], [0, 0, 0, -3.0, 0, 3.0]], crop_share=0.8)
    (red,) = of_classes(model, ["red"], Ascent(steps=2))  # a part of a name suffices
    assert red.picture.shape == (20, 20, 3)
    assert red.name == "red left"


def test_values_are_in_the_units_of_the_models_images():
    weights = [[3.0, 0, -3.0, 0, 0, 0], [0, 0, 0, -3.0, 0, 3.0]]
    few = Ascent(steps=2)
    sixteen = linear(weights, high=(65535.0,) * 3, full_scale=65535.0)
    (made,) = of_classes(sixteen, ["red left"], few)
    assert made.picture.dtype == np.uint16
    assert made.picture.max() > 255
    raw = linear(weights, low=(-10.0,) * 3, high=(30.0,) * 3, full_scale=None)
    (made,) = of_classes(raw, ["red left"], few)
    assert made.picture.dtype == np.float32
    assert -10 <= made.picture.min() < made.picture.max() <= 30


def test_coefficients_of_size_1_vary_as_photographs_do():
    spectrum = torch.randn(64, 3, 32, 17, 2, generator=torch.Generator().manual_seed(0))
    logits = class_images.pixels(spectrum, 32).logit()
    axes = torch.einsum("kc,nchw->nkhw", torch.tensor(class_images.OHTA), logits)
    found = axes.std((0, 2, 3)) / class_images.STEEP
    assert found.tolist() == pytest.approx(class_images.DEVIATIONS, rel=0.15)
    power = torch.fft.rfft2(axes[:, 0]).abs().square().mean(0)[0]  # along one axis: amplitude as 1 / f
    assert (power[2] / power[8]).sqrt() == pytest.approx(4, rel=0.35)


def test_total_variation_is_the_sum_of_differences():
    x = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    assert float(class_images.total_variation(x)) == pytest.approx((0.5 + 0.5) + (1.0 + 0.0))


def test_the_same_seed_gives_the_same_picture_and_another_another():
    model = linear([[3.0, 0, -3.0, 0, 0, 0], [0, 0, 0, -3.0, 0, 3.0]])
    a, b, c = (of_classes(model, ["red left"], Ascent(steps=3), seed)[0].picture for seed in (0, 0, 1))
    assert (a == b).all()
    assert (a != c).any()


def test_what_cannot_be_is_refused_in_a_line():
    model = linear([[3.0, 0, -3.0, 0, 0, 0], [0, 0, 0, -3.0, 0, 3.0]])
    with pytest.raises(ValueError, match="no such class: choose"):
        of_classes(model, ["green"])
    with pytest.raises(ValueError, match="has no classifier"):
        of_classes(Model(Mean(), preprocess()), ["red"])
    with pytest.raises(ValueError, match="the model's features have 6 numbers"):
        of_directions(model, np.ones((1, 5)), ["a"])
    with pytest.raises(ValueError, match="a direction is zero"):
        of_directions(model, np.zeros((1, 6)), ["a"])
    with pytest.raises(ValueError, match="both must be at least 1"):
        Ascent(steps=0)


@pytest.mark.parametrize("classes", [True, False], ids=["a classifier", "none"])
def test_the_kind_shows_a_picture_for_each_class_or_feature(classes):
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/4", image_size=SIZE, channels=3)
    extras = Extras({"classifier.weight": torch.randn(2, encoder.dim)}, {"classes": ["cat", "dog"]})
    model = Model(encoder, preprocess(), {}, extras) if classes else Model(encoder, preprocess())
    subject, _ = subject_of(
        model, torch.randn(3, 3, SIZE, SIZE), "dog" if classes else None,
        options={"ascent": Ascent(steps=2), "features": () if classes else (3, 5)},
    )  # fmt: skip
    made = class_images.KIND.explain(subject)
    texts = [cell.text for cell in made.shows[0].rows[0]]
    assert [text.split(":")[0] for text in texts] == (["dog"] if classes else ["feature 3", "feature 5"])
    assert made.arrays["class-max"].shape[1:] == (SIZE, SIZE, 3)
