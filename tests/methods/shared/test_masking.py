"""Masks: never more than asked for, by the image's own key, with the published statistics."""

import math

import numpy as np
import pytest
import torch

from omma import backbones
from omma.core.protocols import Key
from omma.methods.shared import masking

STREAM = 0x0400


def key(n, seed=0, first=0):
    return Key(seed, np.zeros(n, np.int64), np.arange(first, first + n))


def blocks(n, count, grid=14, least=16, **options):
    counts = np.full(n, count, np.float64)
    found = masking.blockwise(key(n), STREAM, (grid, grid), counts, least, **options)
    return found.view(n, grid, grid).numpy()


# ---------------------------------------------------------------- rectangles
@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (2, 9), (1, 1)])
@pytest.mark.parametrize("least", [1, 4, 16])
def test_never_more_than_asked_for(grid, least):
    size = grid[0] * grid[1]
    counts = np.linspace(0, size, 64)
    mask = masking.blockwise(key(64), STREAM, grid, counts, least)
    assert mask.shape == (64, size)
    assert mask.dtype == torch.bool
    assert (mask.sum(1).numpy() <= counts).all()
    assert not mask[0].any()  # nothing was asked for


def test_a_single_block_is_a_rectangle_within_the_ratios(monkeypatch):
    monkeypatch.setattr(masking, "_MAX_BLOCKS", 1)
    for mask in blocks(500, 75):
        if mask.any():
            rows, columns = mask.any(1), mask.any(0)
            assert (mask == rows[:, None] & columns[None, :]).all()
            h, w = int(rows.sum()), int(columns.sum())
            assert h < 14
            assert w < 14
            assert h * w <= 75
            assert 0.3 * (w - 0.5) / (h + 0.5) <= 1.0
            assert (h - 0.5) / (w + 0.5) <= 1 / 0.3


# facebookresearch/dinov2 b8931f7, dinov2.data.masking.MaskingGenerator (BEiT's), min_num_patches=least, with
# 20,000 draws: mean and deviation of the masked count, mean number of masked runs in rows, how many are full
PUBLISHED = [
    (16, 75, 14, 74.473, 0.989, 11.877, 0.666),
    (4, 98, 16, 97.924, 0.275, 16.546, 0.926),
    (1, 5, 4, 5.0, 0.01, 3.184, 1.0),
    (16, 40, 14, 39.355, 1.258, 8.346, 0.661),
]


@pytest.mark.parametrize(("least", "count", "grid", "mean", "deviation", "runs", "full"), PUBLISHED)
def test_statistics_of_the_published_generator(least, count, grid, mean, deviation, runs, full):
    n = 4000
    masks = blocks(n, count, grid, least)
    counts = masks.sum((1, 2))
    starts = (np.diff(np.pad(masks, ((0, 0), (0, 0), (1, 0))).astype(int), axis=2) == 1).sum((1, 2))
    sure = 4 / math.sqrt(n)  # four standard errors
    assert counts.mean() == pytest.approx(mean, abs=sure * deviation + 0.01)
    assert counts.std() == pytest.approx(deviation, rel=0.15, abs=0.03)
    assert starts.mean() == pytest.approx(runs, abs=sure * starts.std())
    assert (counts == count).mean() == pytest.approx(full, abs=sure * 0.5)


def test_first_blocks_are_the_published_generators(monkeypatch):
    """Its `_mask` alone, 20,000 times with 75 of 14x14: area, height, width and the area's quantiles."""
    monkeypatch.setattr(masking, "_MAX_BLOCKS", 1)
    masks = blocks(5000, 75)
    masks = masks[masks.any((1, 2))]  # it tries again where a block has no place
    area, height, width = masks.sum((1, 2)), masks.any(2).sum(1), masks.any(1).sum(1)
    sure = 4 / math.sqrt(len(masks))
    assert area.mean() == pytest.approx(43.517, abs=sure * 16.31)
    assert area.std() == pytest.approx(16.31, rel=0.05)
    for side, mean in ((height, 6.843), (width, 6.835)):
        assert side.mean() == pytest.approx(mean, abs=sure * 2.63)
        assert side.std() == pytest.approx(2.63, rel=0.05)
    assert np.quantile(area, [0.1, 0.25, 0.5, 0.75, 0.9]) == pytest.approx([21, 30, 44, 56, 66], abs=2.01)


def test_every_place_is_masked_alike():
    """Corners less than the middle, but left as right and top as bottom."""
    share = blocks(4000, 75).mean(0)
    for mirrored in (share[::-1], share[:, ::-1], share.T):
        assert np.abs(share - mirrored).max() < 0.06


# ---------------------------------------------------------------- keys
def draws():
    yield lambda k: masking.blockwise(k, STREAM, (8, 8), np.full(len(k.index), 20.0), 4)
    yield lambda k: masking.random_units(k, STREAM, (8, 8), 2, 0.5)
    yield lambda k: masking.random_keep(k, STREAM, 64, 0.75)
    yield lambda k: torch.from_numpy(masking.some_masked(k, STREAM, 0.5, (0.1, 0.5)))


@pytest.mark.parametrize("draw", draws())
def test_an_images_mask_is_its_own(draw):
    """Whatever else is in the batch; another epoch, seed or image has another."""
    whole = draw(key(12))
    assert torch.equal(whole, draw(key(12)))
    assert torch.equal(torch.cat([draw(key(5)), draw(key(7, first=5))]), whole)
    assert not torch.equal(whole, draw(key(12, seed=1)))
    assert not torch.equal(whole, draw(key(12)._replace(epoch=np.ones(12, np.int64))))
    assert any(not torch.equal(whole[0], row) for row in whole[1:])


# ---------------------------------------------------------------- units and kept tokens
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99, 1.0])
@pytest.mark.parametrize(("grid", "unit"), [((8, 8), 2), ((6, 6), 4), ((5, 7), 2), ((4, 4), 1)])
def test_units_are_whole_and_as_many_as_asked_for(grid, unit, share):
    masks = masking.random_units(key(20), STREAM, grid, unit, share).view(20, *grid)
    rows, columns = -(-grid[0] // unit), -(-grid[1] // unit)
    expected = min(math.ceil(rows * columns * share), rows * columns - 1)
    for mask in masks:
        cells = [
            mask[r * unit : (r + 1) * unit, c * unit : (c + 1) * unit]
            for r in range(rows)
            for c in range(columns)
        ]
        assert all(cell.all() or not cell.any() for cell in cells)
        assert sum(bool(cell.any()) for cell in cells) == expected


def test_a_single_unit_would_hide_everything():
    with pytest.raises(ValueError, match="hide all of 6 x 6"):
        masking.random_units(key(2), STREAM, (6, 6), 6, 0.6)


def test_units_are_uniform():
    """SimMIM's generator permutes all units: each is masked as often."""
    share = masking.random_units(key(4000), STREAM, (6, 6), 1, 0.6).float().mean(0)
    assert (share - math.ceil(36 * 0.6) / 36).abs().max() < 4 * math.sqrt(0.24 / 4000)


def test_kept_tokens():
    keep = masking.random_keep(key(4000), STREAM, 16, 0.75)
    assert keep.shape == (4000, 4)
    assert (keep[:, 1:] > keep[:, :-1]).all()  # rising, so without repetition
    often = torch.bincount(keep.flatten(), minlength=16) / 4000
    assert (often - 0.25).abs().max() < 4 * math.sqrt(0.1875 / 4000)
    assert masking.random_keep(key(2), STREAM, 3, 0.9).shape == (2, 1)  # never nothing


# ---------------------------------------------------------------- views
def test_share_of_a_view():
    shares = masking.some_masked(key(8000), STREAM, 0.25, (0.1, 0.5))
    drawn = shares[shares > 0]
    assert len(drawn) / 8000 == pytest.approx(0.25, abs=0.02)
    assert drawn.min() >= 0.1
    assert drawn.max() <= 0.5
    assert drawn.mean() == pytest.approx(0.3, abs=0.02)
    assert drawn.std() == pytest.approx(0.4 / math.sqrt(12), rel=0.05)
    assert not masking.some_masked(key(50), STREAM, 0.0, (0.1, 0.5)).any()
    assert (masking.some_masked(key(50), STREAM, 1.0, (0.3, 0.3)) == np.float32(0.3)).all()


def test_view_masks_are_view_by_view_and_unlike():
    n = 600
    masks = masking.view_masks(key(n), 2, (10, 10), 0.5, (0.1, 0.5), 4)
    assert masks.shape == (2 * n, 100)
    first, second = masks.chunk(2)
    assert torch.equal(first, masking.view_masks(key(n), 1, (10, 10), 0.5, (0.1, 0.5), 4))
    assert not torch.equal(first, second)
    some, other = first.any(1), second.any(1)
    for share, expected in ((some, 0.5), (other, 0.5), (some & other, 0.25)):  # independent
        assert float(share.float().mean()) == pytest.approx(expected, abs=0.08)
    assert masks.sum(1).max() <= 50
    # as many as the share that was drawn, or nearly
    wanted = masking.some_masked(key(n), STREAM, 0.5, (0.1, 0.5)) * 100
    gap = wanted - first.sum(1).numpy()
    assert gap.min() >= 0
    assert gap.mean() < 2


# ---------------------------------------------------------------- uses
def test_enlarged():
    mask = torch.tensor([[True, False, False, False, True, True]])
    found = masking.enlarged(mask, (2, 3), 2).view(4, 6).int().tolist()
    assert found == [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
    assert masking.enlarged(mask, (2, 3), 1) is mask


@pytest.mark.parametrize(("model", "finer"), [("vit-n/8", 1), ("swin", 8)])
def test_hidden_patches_leave_no_trace(model, finer):
    options = {"dim": 8, "depths": (1,) * 4, "heads": (1,) * 4} if model == "swin" else {}
    encoder = backbones.build(name=model, image_size=64, **options)
    grid = encoder.grid(64, 64)
    mask = torch.rand(2, grid[0] * grid[1]) < 0.5
    token = torch.full((1, 1, encoder.token_dim), 7.0, requires_grad=True)
    images = torch.randn(2, 3, 64, 64)
    found, told = masking.hide(encoder, images, mask, token)
    assert told == grid
    small = masking.enlarged(mask, grid, finer)
    assert (found[small] == 7).all()
    assert torch.equal(found[~small], encoder.tokenize(images)[~small])
    found.sum().backward()
    assert (token.grad == small.sum()).all()


def test_places_are_those_of_the_mask_and_then_zeros():
    mask = torch.zeros(3, 5, dtype=torch.bool)
    assert masking.masked_indices(mask).shape == (0,)
    mask[0, 4] = mask[2, 1] = True
    assert masking.masked_indices(mask, 4).tolist() == [4, 11, 0, 0]
    assert masking.masked_indices(mask, 1).tolist() == [4, 11]
    assert masking.masked_indices(torch.ones(8, 8).bool()).tolist() == list(range(64))
