"""Preprocess.translate: images normalised for one network, converted to another's normalisation."""

import pytest
import torch
from waves import wave

from omma.core.protocols import Preprocess


def preprocess(low, high, mean, std):
    return Preprocess(size=8, channels=len(low), low=low, high=high, mean=mean, std=std)


ONE = preprocess((0.0, 0.0), (255.0, 255.0), (0.5, 0.4), (0.2, 0.3))
OTHER = preprocess((0.0, 0.0), (255.0, 255.0), (0.1, 0.2), (0.5, 1.0))


def test_the_same_pixels_in_another_normalisation():
    x = (wave(3, 2, 4, 4) + 1) / 2
    torch.testing.assert_close(ONE.translate(ONE.normalise(x), OTHER), OTHER.normalise(x))
    torch.testing.assert_close(ONE.translate(ONE.normalise(x), ONE), ONE.normalise(x))


def test_any_leading_shape_and_precision():
    x = ONE.normalise((wave(2, 3, 2, 4, 4) + 1) / 2)
    assert ONE.translate(x, OTHER).shape == x.shape
    assert ONE.translate(x.bfloat16(), OTHER).dtype == torch.bfloat16


def test_ranges_of_raw_values_are_respected():
    """16-bit values that one network sees from 100 to 1100, and another from 600 to 2600."""
    narrow = preprocess((100.0,), (1100.0,), (0.5,), (0.25,))
    wide = preprocess((600.0,), (2600.0,), (0.5,), (0.5,))
    raw = torch.tensor([600.0, 850.0, 1100.0]).view(1, 1, 1, 3)
    seen = wide.normalise((raw - 600) / 2000)
    torch.testing.assert_close(narrow.translate(narrow.normalise((raw - 100) / 1000), wide), seen)
    dark = narrow.normalise(torch.zeros(1, 1, 1, 1))  # raw 100: below what the other was made for
    torch.testing.assert_close(narrow.translate(dark, wide), wide.normalise(torch.zeros(1, 1, 1, 1)))


def test_other_channels_are_refused():
    one = preprocess((0.0,), (255.0,), (0.5,), (0.25,))
    with pytest.raises(ValueError, match="images have 1 channels, the trained model was made for 2"):
        one.translate(torch.zeros(1, 1, 4, 4), ONE)
