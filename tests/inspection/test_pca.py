"""PCA of patches: planted features come back, signs are fixed, and what is missing is said."""

import numpy as np
import pytest
from explained import bright, squares, subject

from omma.inspection import pca


def planted(n: int = 3, side: int = 8, d: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Patches with an object in the middle, which has two parts; what is foreground [n, side, side]."""
    rng = np.random.default_rng(seed)
    front = np.zeros((n, side, side), bool)
    front[:, 2:6, 2:6] = True
    axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
    x = 0.01 * rng.normal(size=(n, side, side, d))
    x += np.where(front, 3.0, -3.0)[..., None] * axes[0]
    x[:, 2:4, 2:6] += axes[1]  # the upper part of the object
    x[:, 4:6, 2:6] -= axes[1]
    x[:, :, :4] += 0.3 * axes[2] * front[:, :, :4, None]
    return x, front


def test_the_planted_object_is_the_foreground_and_its_parts_have_colours():
    x, front = planted()
    found = pca.components(x)
    np.testing.assert_array_equal(np.isfinite(found.colours).all(-1), front)
    np.testing.assert_array_equal(found.first > 0, front)
    upper, lower = found.colours[:, 2:4, 2:6, 0], found.colours[:, 4:6, 2:6, 0]
    assert abs(upper.mean() - lower.mean()) > 0.9  # the first colour tells the parts apart ...
    assert max(upper.std(), lower.std()) < 0.1  # ... in all images alike
    assert found.explained[0] > 0.8
    assert np.nanmin(found.colours) == 0
    assert np.nanmax(found.colours) == 1
    assert (found.border, found.inside) == (0, 16 / 36)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_borders_are_background_whatever_the_sign(sign):
    x, front = planted()
    np.testing.assert_array_equal(pca.components(sign * x).first > 0, front)


def test_components_are_those_of_the_singular_value_decomposition():
    rows = np.random.default_rng(1).normal(size=(40, 6)) * np.array([5, 3, 2, 1, 1, 1])
    mean, directions, shares = pca.principal(rows, 3)
    _, values, vectors = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    np.testing.assert_allclose(mean, rows.mean(0))
    np.testing.assert_allclose(np.abs(directions.T @ vectors[:3].T), np.eye(3), atol=1e-10)
    np.testing.assert_allclose(shares, values[:3] ** 2 / (values**2).sum())
    largest = np.abs(directions).argmax(0)
    assert (directions[largest, range(3)] > 0).all()


def test_bad_patches_are_left_out():
    x, front = planted()
    bad = x.copy()
    bad[0, 3, 3], bad[1, 0, 0] = np.nan, np.inf
    found, clean = pca.components(bad), pca.components(x)
    assert np.isnan(found.colours[0, 3, 3]).all()
    front[0, 3, 3] = False
    np.testing.assert_array_equal(np.isfinite(found.colours).all(-1), front)
    np.testing.assert_allclose(found.colours[..., 0][front], clean.colours[..., 0][front], atol=0.05)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.ones((2, 4, 4, 5)), "no foreground"),
        (np.full((1, 4, 4, 5), np.nan), "NaN or infinite"),
        (np.ones((1, 2, 2, 5)), "too few"),
        (np.zeros((1, 5, 5, 3)), "no foreground"),
    ],
    ids=["alike", "nan", "few", "zeros"],
)
def test_no_foreground_is_said(x, words):
    with pytest.raises(ValueError, match=words):
        pca.components(x)


def test_a_page_says_what_is_missing():
    images, _ = squares(2)
    empty = pca.explain(bright(0 * images))
    assert not empty.shows
    assert "no foreground" in empty.notes[0]
    made = subject(n=3)
    found = pca.explain(made)
    assert found.arrays["pca"].shape == (3, 4, 4, 3)
    small = subject(size=8, n=1)
    assert "2 x 2 patches" in (pca.lacks(small) or "")


def test_registers_and_class_token_are_no_patches():
    made = subject(registers=2)
    assert pca.features(made).shape == (2, 4, 4, 32)
    np.testing.assert_allclose(
        pca.features(made)[0, 0, 1], made.encoder(made.pixels).patches[0, 1].detach().numpy(), atol=1e-6
    )
