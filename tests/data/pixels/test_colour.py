"""Each operation against torchvision's for the same factor."""

import pytest
import torch

from omma.data.pixels import colour

FACTORS = torch.tensor([0.0, 0.4, 1.0, 1.6, 0.9])
SHIFTS = torch.tensor([-0.5, 0.5, 0.1, -0.23, 0.0])


def pictures(channels=3):
    x = torch.rand(5, channels, 24, 30, generator=torch.Generator().manual_seed(0))
    x[0, :, :10] = 0.5  # grey, where hue and saturation are undefined
    x[1, :, :10] = 0
    x[1, :, 10:15] = 1
    x[2] = (x[2] * 3).round() / 3  # ties between channels, pure colours
    return x


@pytest.mark.parametrize(
    ("name", "factors", "tolerance"),
    [
        ("brightness", FACTORS, 1e-5),
        ("contrast", FACTORS, 1e-5),
        ("saturation", FACTORS, 1e-5),
        ("hue", SHIFTS, 1e-4),
    ],
)
def test_jitter_equals_torchvision(name, factors, tolerance):
    reference = getattr(pytest.importorskip("torchvision.transforms.functional"), f"adjust_{name}")
    x = pictures()
    expected = torch.stack([reference(image, float(f)) for image, f in zip(x, factors)])
    torch.testing.assert_close(getattr(colour, f"{name}_")(x, factors), expected, atol=tolerance, rtol=0)


def test_grey_and_solarise_equal_torchvision():
    functional = pytest.importorskip("torchvision.transforms.functional")
    x = pictures()
    torch.testing.assert_close(colour.grey_(x.clone()), functional.rgb_to_grayscale(x, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(colour.solarise_(x.clone()), functional.solarize(x, 0.5), atol=0, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_number_of_channels(channels):
    x = pictures(channels)
    bright = colour.brightness_(x.clone(), FACTORS)
    torch.testing.assert_close(bright[1], x[1] * 0.4)
    contrast = colour.contrast_(x.clone(), FACTORS)
    torch.testing.assert_close(contrast[1], (0.4 * x[1] + 0.6 * x[1].mean()).clamp(0, 1))
    torch.testing.assert_close(contrast[0], x[0].mean().expand_as(x[0]))


def test_hue_turns():
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(3, 3, 2, 2).clone()
    turned = colour.hue_(red, torch.tensor([1 / 3, -1 / 3, 0.5]))
    expected = torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 1, 1]])  # green, blue, cyan
    torch.testing.assert_close(turned[:, :, 0, 0], expected, atol=1e-5, rtol=0)


def test_constant_and_tiny_images_stay_finite():
    for value in (0.0, 0.5, 1.0):
        x = torch.full((2, 3, 1, 1), value)
        for operation in (colour.brightness_, colour.contrast_, colour.saturation_, colour.hue_):
            assert operation(x.clone(), torch.tensor([0.3, 0.5])).isfinite().all()
