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
    hidden = images(1, (96, 96), 3, "float32")
    seen = hidden.copy()
    seen[:, :48] = np.nan
    grid = pictures.reconstructions(hidden, seen, hidden * 1.5)
    original, masked, predicted = (np.asarray(c.image) for c in grid.rows[0])
    assert (masked[:48] == 128).all()
    assert (masked[48:] == original[48:]).all()
    assert (predicted >= original).all()


def test_neighbours_are_laid_out_marked_and_named():
    queries, near = images(2), images(6).reshape(2, 3, 32, 32, 3)
    near_labels = [["cat", "dog", "cat"], ["cat", "dog", "dog"]]
    grid = pictures.neighbours(queries, near, ["cat", "dog"], near_labels, np.full((2, 3), 0.876))
    assert [[c.mark for c in row] for row in grid.rows] == [
        [None, True, False, True],
        [None, False, True, True],
    ]
    assert grid.rows[0][2].text == "0.88 dog"
    assert (np.asarray(grid.rows[1][3].image)[1::3, 1::3] == near[1, 2]).all()
    bare = pictures.neighbours(queries, near)
    assert all(c.mark is None and not c.text for row in bare.rows for c in row)


def test_attention_shows_where_the_weight_lies_and_does_not_invent_a_pattern():
    flat, peak = np.full((1, 1, 8, 8), 1 / 64), np.zeros((1, 1, 8, 8))
    peak[0, 0, 1, 6] = 1
    image = np.zeros((1, 32, 32, 3), np.uint8)
    even = np.asarray(pictures.attention(image, flat).rows[0][2].image, dtype=int)
    assert np.ptp(even, axis=(0, 1)).max() <= 2
    shown = np.asarray(pictures.attention(image, peak).rows[0][2].image, dtype=int).sum(-1)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert (row // 12, column // 12) == (1, 6)
    dead = pictures.attention(image, np.zeros((1, 1, 8, 8)))
    assert np.asarray(dead.rows[0][2].image).max() <= 4


def test_the_most_focused_heads_are_chosen_and_named():
    maps = np.full((2, 8, 4, 4), 1.0)
    for head in (2, 5):
        maps[:, head, 0, 0] = 50
    grid = pictures.attention(images(2), maps, heads=2)
    assert grid.heads == ("image", "mean", "head 3", "head 6")
    assert all(c.image.size == (96, 96) for row in grid.rows for c in row)


def test_the_colour_map_grows_lighter():
    colours = pictures.inferno(np.linspace(0, 1, 256))
    light = colours @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(light) > 0).all()
    assert colours[-1].tolist() == [0xFC, 0xFF, 0xA4]


def test_chosen_parts_are_outlined_where_they_lie():
    image, maps = np.full((1, 32, 32, 3), 120, np.uint8), np.ones((1, 3, 8, 8))
    boxes = np.array([[[4, 20, 8, 26], [4, 20, 8, 26], [28, 0, 32, 4]]])  # two heads agree
    first, chosen, _ = pictures.parts(image, boxes, maps, ["a.png"]).rows[0]
    assert (first.path, chosen.text) == ("a.png", "3 heads, 2 places")
    changed = (np.asarray(chosen.image, dtype=int) != np.asarray(first.image)).any(-1)  # enlarged 3 times
    rows, columns = np.nonzero(changed[:48])  # two lines around it
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 25, 58, 79)
    assert not changed[12:24, 60:78].any()  # what is chosen can be seen
    rows, columns = np.nonzero(changed[48:])  # at the border the line lies in the image
    assert (rows.min() + 48, rows.max() + 48, columns.min(), columns.max()) == (82, 95, 0, 13)


@pytest.mark.parametrize(
    "call",
    [
        lambda: pictures.neighbours(images(2), images(2)),
        lambda: pictures.parts(images(2), np.zeros((2, 3, 4)), np.ones((2, 2, 8, 8))),
        lambda: pictures.neighbours(images(2), images(2)[:, None], ["a"]),
        lambda: pictures.attention(images(2), np.ones((2, 8, 8))),
        lambda: pictures.reconstructions(images(2), images(3), images(2)),
        lambda: pictures.attention(images(1)[0], np.ones((1, 1, 8, 8))),
    ],
)
def test_shapes_that_do_not_fit_are_named(call):
    with pytest.raises(ValueError, match="must be"):
        call()


def test_cosines_are_written_so_that_they_differ():
    assert pictures.decimals(np.array([[0.91, 0.88], [0.7, 0.6]])) == 2
    assert pictures.decimals(np.array([[0.9991, 0.9978], [0.7, 0.6]])) == 3
    assert pictures.decimals(np.array([[0.99991, 0.99988]])) == 5
    assert pictures.decimals(np.ones((2, 3))) == 2  # equal in truth
    grid = pictures.neighbours(images(1), images(2)[None], similarities=np.array([[0.9991, 0.9978]]))
    assert [cell.text for cell in grid.rows[0]] == ["", "0.999", "0.998"]
