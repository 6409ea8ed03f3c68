"""Occlusion finds what the score rests on."""

import numpy as np
import pytest
import torch
from explained import bright, squares, subject

from omma.inspection import maps, occlusion, parts, registry
from omma.inspection.kinds import Heat


def hits(found: np.ndarray, boxes: np.ndarray, size: int) -> float:
    """Share of maps whose highest pixel lies in the box."""
    full = maps.enlarged(found, (size, size))
    peaks = [np.unravel_index(each.argmax(), each.shape) for each in full]
    return np.mean([t <= y < b and le <= x < r for (y, x), (t, le, b, r) in zip(peaks, boxes)])


def test_a_bright_square_is_found():
    images, boxes = squares(100)
    found = occlusion.one_map(bright(images))
    assert hits(found, boxes, 32) >= 0.95


def test_the_fall_is_that_of_the_hidden_brightness():
    """A window of 4 px that lies in the square takes 16 of its pixels, of value 2, out of 1,024."""
    images = torch.zeros(1, 3, 32, 32)
    images[:, :, 8:24, 8:24] = 2.0
    found = occlusion.occlusion(bright(images))
    assert found.window == 4
    np.testing.assert_allclose(found.whole, [256 * 2 / 1024], rtol=1e-6)
    np.testing.assert_allclose(found.drops.max(), 16 * 2 / 1024, rtol=1e-5)
    np.testing.assert_allclose(found.drops[0, :2], 0, atol=1e-7)  # far from the square
    assert found.drops.shape == (1, 16, 16)


def test_windows_reach_both_ends():
    assert occlusion.corners(32, 4, 2).tolist() == list(range(0, 29, 2))
    assert occlusion.corners(33, 4, 2).tolist() == [*range(0, 29, 2), 29]
    assert occlusion.corners(4, 4, 2).tolist() == [0]


def test_equals_captum():
    captum = pytest.importorskip("captum.attr", reason="captum is the reference here")
    made = subject(n=2, size=32)
    found = occlusion.occlusion(made)

    def score(images: torch.Tensor) -> torch.Tensor:
        which = torch.arange(2).repeat_interleave(len(images) // 2)
        return made.target(made.encoder(images), which)

    with torch.no_grad():
        expected = captum.Occlusion(score).attribute(
            made.pixels, sliding_window_shapes=(3, 4, 4), strides=(3, 2, 2), baselines=0.0
        )
    # captum sums over the windows that cover a pixel and divides by their number, as here
    centres = np.arange(1, 32, 2)
    np.testing.assert_allclose(found.drops, expected[:, 0][:, centres][:, :, centres].numpy(), atol=1e-5)


def test_without_a_classifier_the_likeness_falls():
    made = subject(classified=False, size=32)
    found = occlusion.occlusion(made)
    np.testing.assert_allclose(found.whole, 1, atol=1e-6)  # an image is like itself
    assert (found.drops >= -1e-6).all()
    assert found.drops.max() > 0
    text = occlusion.explain(made).caption
    assert "cosine" in text


def test_a_page_has_what_speaks_for_and_against():
    images, _ = squares(2)
    (rows,) = occlusion.explain(bright(-images)).shows
    falls, rises = rows.rows[0]
    assert isinstance(falls, Heat)
    assert falls.values.max() == 0  # a dark square lowers brightness: hiding it raises the score
    assert rises.values.max() > 0


def test_small_images_and_unknown_kinds_are_refused():
    made = subject(size=8, n=1)
    with pytest.raises(ValueError, match="too small"):
        occlusion.occlusion(made)
    with pytest.raises(ValueError, match="--what nothing"):
        registry.find("nothing")
    assert "transfg" in (parts.lacks(made) or "")
    with pytest.raises(ValueError, match=r"--what parts: .* this model has attention, rollout, occlusion"):
        registry.chosen(("parts",), made)


def test_maps_for_programs():
    images, boxes = squares(3)
    asked = bright(images)
    found = maps.maps_of(asked.model, images, "occlusion", "bright")
    assert found.shape == (3, 32, 32)
    assert (found >= 0).all()
    assert hits(found, boxes, 32) == 1
    with pytest.raises(ValueError, match="no such class"):
        maps.maps_of(asked.model, images, "occlusion", "horse")
