"""Triplets within a batch: closed forms, which negative is chosen, and what takes no part."""

import math

import pytest
import torch

from omma.losses.triplet import semi_hard


def at(*degrees):
    """Unit vectors of the plane."""
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def distance(degrees):
    """Squared distance of unit vectors."""
    return 2 - 2 * math.cos(math.radians(degrees))


def found(x, labels, margin=0.2):
    labels = torch.tensor(labels)
    return semi_hard(x, labels, x, labels, margin)


def test_equal_vectors_give_the_margin():
    result = found(torch.ones(6, 4), [0, 0, 0, 1, 1, 1], margin=0.35)
    assert result.pairs.sum() == 6 * 2
    torch.testing.assert_close(result.loss[result.pairs], torch.full((12,), 0.35))


def test_classes_far_apart_cost_nothing():
    result = found(at(0, 0, 90, 90), [0, 0, 1, 1])
    assert result.pairs.sum() == 4
    assert not result.loss.any()


@pytest.mark.parametrize(
    ("negatives", "chosen"),
    [
        ((10, 25, 60), 25),  # 10 is harder than the positive at 20 degrees, and left alone
        ((5, 10, 15), 15),  # none is farther than the positive: the farthest
        ((90, 120, 40), 40),  # the nearest of those that are farther
        ((20, 50, 60), 50),  # as far as the positive is not farther
    ],
)
def test_the_negative_is_semi_hard(negatives, chosen):
    x = at(0, 20, *negatives)
    result = found(x, [0, 0, 1, 2, 3])
    assert result.pairs[0].tolist() == [False, True, False, False, False]
    torch.testing.assert_close(float(result.negative[0, 1]), distance(chosen), rtol=1e-4, atol=1e-5)
    expected = max(0.0, distance(20) - distance(chosen) + 0.2)
    torch.testing.assert_close(float(result.loss[0, 1]), expected, rtol=1e-4, atol=1e-5)


def test_it_is_a_loop_over_all_pairs():
    """Against the definition, anchor by anchor."""
    torch.manual_seed(0)
    x, labels = torch.randn(20, 5), torch.randint(-1, 4, (20,))
    unit = torch.nn.functional.normalize(x, dim=-1)
    result = semi_hard(x, labels, x, labels, 0.5)
    count = 0
    for a in range(20):
        others = [float((unit[a] - unit[n]).square().sum()) for n in range(20) if -1 < labels[n] != labels[a]]
        for p in range(20):
            if labels[a] < 0 or labels[a] != labels[p] or a == p:
                assert not result.pairs[a, p]
                assert result.loss[a, p] == 0
                continue
            d = float((unit[a] - unit[p]).square().sum())
            farther = [each for each in others if each > d]
            negative = min(farther) if farther else max(others)
            assert float(result.loss[a, p]) == pytest.approx(max(0.0, d - negative + 0.5), abs=1e-5)
            count += 1
    assert count == int(result.pairs.sum()) > 20


def test_one_class_or_no_label_has_no_triplets():
    for labels in ([0, 0, 0], [-1, -1, -1], [-1, 0, 0]):
        result = found(at(0, 50, 100).requires_grad_(), labels)
        assert not result.pairs.any()
        assert result.loss.sum() == 0
        result.loss.sum().backward()


def test_a_share_of_the_anchors():
    """Two processes with half of the anchors have the rows of one with all."""
    torch.manual_seed(1)
    x, labels = torch.randn(8, 3), torch.tensor([0, 1, 0, 1, 2, 2, 0, 1])
    whole = semi_hard(x, labels, x, labels, 0.2)
    for start in (0, 4):
        half = semi_hard(x[start : start + 4], labels[start : start + 4], x, labels, 0.2, offset=start)
        torch.testing.assert_close(half.loss, whole.loss[start : start + 4])
        assert torch.equal(half.pairs, whole.pairs[start : start + 4])


def test_the_gradient_is_finite_where_vectors_coincide():
    x = torch.ones(4, 3).requires_grad_()
    result = found(x, [0, 0, 1, 1])
    result.loss.sum().backward()
    assert x.grad.isfinite().all()
