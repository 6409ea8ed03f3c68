"""Pictures have the size, the colours and the order that a reader relies on."""

import numpy as np
import pytest

from omma.reporting import pictures

RANDOM = np.random.default_rng(0)


def images(n=3, size=(32, 32), channels=3, dtype=np.uint8):
    high = {"uint8": 255, "uint16": 4000}.get(np.dtype(dtype).name, 1)
    return (RANDOM.random((n, *size, channels)) * high).astype(dtype)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((32, 32), (96, 96)), ((28, 28), (112, 112)), ((96, 96), (96, 96)), ((400, 300), (144, 192)),
     ((1, 1), (96, 96)), ((1000, 1), (1, 192)), ((20, 40), (120, 60))],
)  # fmt: skip
def test_pictures_are_large_enough_to_see_and_small_enough_to_carry(size, expected):
    assert pictures.tile(images(1, size)[0]).size == expected


def test_small_pictures_are_enlarged_pixel_for_pixel():
    image = images(1)[0]
    assert (np.asarray(pictures.tile(image))[1::3, 1::3] == image).all()


def test_grey_stays_grey_and_8_bit_values_stay():
    image = images(1, (96, 96), 1)[0]
    shown = np.asarray(pictures.tile(image))
    assert (shown == image).all()


@pytest.mark.parametrize(("channels", "dtype"), [(1, "uint16"), (2, "uint8"), (6, "uint16"), (13, "float32")])
def test_any_channel_count_is_shown_in_full_contrast(channels, dtype):
    image = images(1, (96, 96), channels, dtype)[0]
    shown = np.asarray(pictures.tile(image))
    assert shown.shape == (96, 96, 3)
    assert shown.min() == 0
    assert shown.max() >= 250
    if channels == 2:
        assert (shown[..., 2] == 0).all()


def test_constant_and_hidden_values_do_no_harm():
    for value in (0.0, 7.0, np.nan, np.inf):
        shown = np.asarray(pictures.tile(np.full((8, 8, 3), value, np.float32)))
        assert shown.shape == (96, 96, 3)


def test_a_map_shows_where_the_weight_lies_and_does_not_invent_a_pattern():
    flat, peak = np.full((8, 8), 1 / 64), np.zeros((8, 8))
    peak[1, 6] = 1
    base = pictures.tile(np.zeros((32, 32, 3), np.uint8))
    even = np.asarray(pictures.overlay(base, flat, 2 / 64), dtype=int)
    assert np.ptp(even, axis=(0, 1)).max() <= 2
    shown = np.asarray(pictures.overlay(base, peak, 1.0), dtype=int).sum(-1)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert (row // 12, column // 12) == (1, 6)
    assert np.asarray(pictures.overlay(base, np.zeros((8, 8)), 0.0)).max() <= 4


def test_the_colour_map_grows_lighter():
    colours = pictures.inferno(np.linspace(0, 1, 256))
    light = colours @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(light) > 0).all()
    assert colours[-1].tolist() == [0xFC, 0xFF, 0xA4]
