"""Two views of an image: made the same each time, and told from other images as far as features allow."""

import torch

from omma.pretraining import alignment


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_views_that_agree_are_told_and_noise_is_not():
    images = draw(100, 16)
    noise = 0.1 * draw(100, 16, seed=1)
    assert alignment.view_auc(images, images + noise).mean() > 0.99
    assert abs(alignment.view_auc(images, draw(100, 16, seed=2)).mean() - 0.5) < 0.1
    assert (alignment.view_auc(torch.ones(9, 4), torch.ones(9, 4)) == 0.5).all()
    assert alignment.view_auc(torch.ones(1, 4), torch.ones(1, 4)).isfinite().all()
    assert alignment.view_auc(images, images * torch.inf).isnan().all()


def test_the_share_is_that_of_images_farther_than_the_own_view():
    one = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [-1.0, -0.1]])
    auc = alignment.view_auc(one, one[[0, 2, 1]])  # the second and third image are each other's view
    assert auc[0] == 1
    assert auc[1] == auc[2] == 0.5


def test_a_common_direction_hides_nothing():
    images = draw(100, 16)
    views = images + 0.1 * draw(100, 16, seed=1)
    common = torch.zeros(16)
    common[0] = 1e3
    assert alignment.view_auc(images + common, views + common).mean() > 0.99
    stretched = torch.ones(16)
    stretched[0] = 5.0  # this direction is noise
    images[:, 0], views[:, 0] = draw(100, seed=3), draw(100, seed=4)
    assert alignment.view_auc(images * stretched, views * stretched).mean() > 0.9


def test_views_differ_and_repeat():
    pixels = draw(4, 3, 16, 16)
    first = alignment.view(pixels, 5, 0)
    assert first.shape == pixels.shape
    assert torch.equal(first, alignment.view(pixels, 5, 0))
    assert torch.equal(first[:2], alignment.view(pixels[:2], 5, 0))
    assert not torch.allclose(first, alignment.view(pixels, 5, 1))
    assert not torch.allclose(first, alignment.view(pixels, 6, 0))
    assert alignment.view(draw(2, 13, 8, 8), 0, 0).shape == (2, 13, 8, 8)


def test_the_interval_of_a_change_holds_it():
    start, gained = 0.2 * draw(200), 0.1 * draw(200, seed=1) + 0.05
    low, high = alignment.change(start + gained, start)
    assert low < gained.mean() < high
    assert 0.03 < high - low < 0.05  # 2 * 2.576 * .1 / sqrt(200)
