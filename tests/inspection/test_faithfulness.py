"""Insertion and deletion: areas in closed form, and maps that are better than chance."""

import numpy as np
import pytest
import torch
from explained import bright, squares, subject

from omma.inspection import faithfulness, registry
from omma.inspection.kinds import Kind


@pytest.fixture(scope="module")
def asked():
    return bright(squares(12)[0])


def box_maps(asked) -> np.ndarray:
    return asked.pixels[:, 0].numpy()  # the square, exactly


def test_the_area_of_a_curve_is_its_mean():
    assert faithfulness.Curve(np.array([[0.0, 1.0, 1.0]])).area == pytest.approx(0.75)
    assert faithfulness.Curve(np.ones((2, 5))).area.tolist() == [1, 1]


def test_pixels_go_by_their_values_and_equal_ones_by_chance():
    maps = np.array([[[3.0, 1.0], [2.0, 0.0]]])
    assert faithfulness.order(maps).tolist() == [[0, 2, 1, 3]]
    flat = faithfulness.order(np.zeros((1, 8, 8)))
    assert sorted(flat[0]) == list(range(64))
    assert flat[0].tolist() != list(range(64))


def test_deleting_the_square_takes_all_of_its_score(asked):
    found = faithfulness.curve(asked, box_maps(asked), "deletion", steps=64)
    whole = asked.target.share(asked.encoder(asked.pixels), torch.arange(12)).detach().numpy()
    np.testing.assert_allclose(found.scores[:, 0], whole, atol=1e-6)
    np.testing.assert_allclose(found.scores[:, -1], 0.5, atol=1e-6)  # grey: both logits are 0
    np.testing.assert_allclose(found.scores[:, 3:], 0.5, atol=1e-6)  # 3 x 16 pixels hold all 36 of it
    inserted = faithfulness.curve(asked, box_maps(asked), "insertion", steps=64)
    np.testing.assert_allclose(inserted.scores[:, -1], whole, atol=1e-6)


def test_a_blurred_image_keeps_its_mean_and_loses_detail():
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    blurred = faithfulness.blurred(images)
    assert blurred.shape == images.shape
    assert blurred.std() < 0.6 * images.std()
    torch.testing.assert_close(faithfulness.blurred(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, 8, 8))


def test_a_true_map_is_better_than_chance_and_than_the_middle(asked):
    true = Kind(name="true", explain=registry.find("occlusion").explain, one_map=box_maps)
    section, sentences = faithfulness.test([true], asked)
    assert section.judged[0].good is True
    assert "better than random maps, and than a blob" in sentences["true"]
    areas = section.arrays
    assert (areas["deletion.true"] < areas["deletion.true: random map"]).all()


def test_a_wrong_map_is_not(asked):
    wrong = Kind(name="wrong", explain=registry.find("occlusion").explain, one_map=lambda s: 2 - box_maps(s))
    section, sentences = faithfulness.test([wrong], asked)
    assert section.judged[0].good is False
    assert "not shown to be better than random" in sentences["wrong"]


def test_intervals():
    rng = np.random.default_rng(0)
    mean, low, high = faithfulness.interval(rng.normal(1, 0.1, 100))
    assert low < 1 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 10, rel=0.2)
    assert faithfulness.interval(np.ones(50)) == (1, 1, 1)
    assert np.isnan(faithfulness.interval(np.ones(4))[1:]).all()
    assert mean == pytest.approx(1, abs=0.05)


def test_random_maps_are_as_coarse_as_the_kinds():
    assert faithfulness.random_maps(3, (7, 5), 0).shape == (3, 7, 5)
    middle = faithfulness.centred(2, (9, 9))
    assert middle[0].argmax() == 40
    made = subject(n=2, classified=False)
    found = faithfulness.areas([registry.find("attention")], made)
    assert set(found["insertion"]) == {"attention", "attention: random map", "centre"}
    assert all(len(values) == 2 for values in found["deletion"].values())
