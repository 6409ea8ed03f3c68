"""Pairs of images are mixed as timm mixes two, by shares of the right distribution, in any batch alike."""

import numpy as np
import pytest
import torch
from scipy import stats

from omma.core.protocols import Key
from omma.core.random import Stream, uniform
from omma.train import mixing

BOTH = {"mixup": 0.8, "cutmix": 1.0, "p": 1.0, "switch": 0.5}


def key(n, first=0, seed=1):
    return Key(seed, np.zeros(n, np.int64), np.arange(first, first + n))


def pictures(n, size=12):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, size, size, generator=g), torch.eye(5)[torch.arange(n) % 5]


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha):
    drawn = mixing.beta(uniform(key(4000), 0, 1)[:, 0], alpha)
    assert np.isfinite(drawn).all()
    expected = stats.beta(alpha, alpha).cdf
    assert stats.kstest(np.minimum(drawn, 1 - 1e-7), expected).statistic < 0.03
    ends = np.array([0, 1 - 2.0**-24], np.float32)
    assert np.isfinite(mixing.beta(ends, 1e-3)).all()
    np.testing.assert_allclose(mixing.beta(ends, alpha).sum(), 1, rtol=1e-6)


def test_half_of_the_pairs_are_blended_and_half_cut():
    mix = mixing.draw(key(8000), Stream.MIX, 32, 32, **BOTH)
    assert len(mix.share) == 4000
    cut = mix.box.any(1)
    assert abs(cut.mean() - 0.5) < 0.03
    area = (mix.box[:, 2] - mix.box[:, 0]) * (mix.box[:, 3] - mix.box[:, 1])
    np.testing.assert_allclose(mix.share[cut], 1 - area[cut] / 1024, atol=1e-6)
    assert abs(mix.share.mean() - 0.5) < 0.1
    rarely = mixing.draw(key(8000), Stream.MIX, 32, 32, **(BOTH | {"p": 0.25}))
    assert abs((rarely.share == 1).mean() - 0.75) < 0.04


@pytest.mark.parametrize(
    ("off", "cut"), [({"mixup": 0.0}, True), ({"cutmix": 0.0}, False), ({"mixup": 0.0, "cutmix": 0.0}, None)]
)
def test_what_is_off_is_not_drawn(off, cut):
    mix = mixing.draw(key(400), Stream.MIX, 16, 16, **(BOTH | off))
    if cut is None:
        assert (mix.share == 1).all()
    elif cut:
        assert mix.box[mix.share < 1].any(1).all()
    else:
        assert (mix.share < 1).mean() > 0.95
    assert cut or not mix.box.any()


@pytest.mark.parametrize("n", [2, 7, 8])
def test_pairs_are_mixed_as_timm_mixes_two(n):
    timm = pytest.importorskip("timm.data.mixup")
    images, targets = pictures(n)
    mix = mixing.draw(key(n), Stream.MIX, 12, 12, **BOTH)
    got, soft = mixing.mixed(images, targets, mix)
    for i, (share, (top, left, bottom, right)) in enumerate(zip(mix.share.tolist(), mix.box.tolist())):
        theirs = timm.Mixup(mixup_alpha=1.0, num_classes=5, label_smoothing=0.0)
        pair = images[2 * i : 2 * i + 2].clone()
        labels = torch.arange(2 * i, 2 * i + 2) % 5
        theirs._params_per_batch = lambda share=share, box=bottom: (share, box > 0)
        with pytest.MonkeyPatch.context() as patch:
            drawn = (top, bottom, left, right), share
            patch.setattr(timm, "cutmix_bbox_and_lam", lambda *a, drawn=drawn, **k: drawn)
            pair, expected = theirs(pair, labels)
        torch.testing.assert_close(got[2 * i : 2 * i + 2], pair)
        torch.testing.assert_close(soft[2 * i : 2 * i + 2], expected)
    if n % 2:
        assert torch.equal(got[-1], images[-1])
        assert torch.equal(soft[-1], targets[-1])
    torch.testing.assert_close(soft.sum(1), torch.ones(n))
    torch.testing.assert_close(got.sum(), images.sum(), atol=1e-3, rtol=1e-5)  # nothing is lost in a pair


def test_boxes_are_timms():
    timm = pytest.importorskip("timm.data.mixup")
    mix = mixing.draw(key(6000), Stream.MIX, 40, 24, mixup=0.0, cutmix=1.0, p=1.0, switch=0.5)
    np.random.seed(0)
    theirs = [timm.cutmix_bbox_and_lam((3, 40, 24), np.random.beta(1, 1)) for _ in range(3000)]
    boxes, shares = np.array([box for box, _ in theirs]), np.array([share for _, share in theirs])
    for q in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert abs(np.quantile(mix.share, q) - np.quantile(shares, q)) < 0.04
        for ours, column in ((0, 0), (2, 1), (1, 2), (3, 3)):
            assert abs(np.quantile(mix.box[:, ours], q) - np.quantile(boxes[:, column], q)) <= 2


def test_halves_of_a_batch_are_mixed_as_the_whole():
    images, targets = pictures(8)

    def run(rows):
        k = Key(1, np.zeros(len(rows), np.int64), np.arange(8)[rows])
        mix = mixing.draw(k, Stream.MIX, 12, 12, **BOTH)
        return mixing.mixed(images[rows], targets[rows], mix)

    whole, halves = run(np.arange(8)), [run(np.arange(4)), run(np.arange(4, 8))]
    for a, *parts in zip(whole, *halves):
        assert torch.equal(a, torch.cat(parts))


def test_an_image_without_a_label_is_mixed_into_nothing():
    images, targets = pictures(6)
    mix = mixing.draw(key(6), Stream.MIX, 12, 12, **BOTH)
    got, soft = mixing.mixed(images, targets, mix, torch.tensor([True, False, True, True, False, False]))
    for row in (0, 1, 4, 5):
        assert torch.equal(got[row], images[row])
        assert torch.equal(soft[row], targets[row])
    assert not torch.equal(got[2], images[2])


def test_smoothing():
    targets = mixing.smoothed(torch.tensor([2, -1, 0]), 4, 0.1)
    expected = torch.tensor([[0.025, 0.025, 0.925, 0.025], [0, 0, 0, 0], [0.925, 0.025, 0.025, 0.025]])
    torch.testing.assert_close(targets, expected)
    timm = pytest.importorskip("timm.data.mixup")
    torch.testing.assert_close(targets[::2], timm.mixup_target(torch.tensor([2, 0]), 4, 1.0, 0.1))
