"""Order: which frames make the three tuples, their weights, and what is not to be seen by."""

import numpy as np
import pytest
import torch

from omma import backbones
from omma.core.protocols import Batch, Clock, Context, Key
from omma.methods import order


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/4", image_size=8, depth=1, dim=16, heads=2, hidden=16, pool="mean")
    return order.Method(encoder, order.Config(negatives=0.75, hidden=8), Context(image_size=8)).eval()


def tuples(net, x, backwards):
    f = net.encoder(x.flatten(0, 1)).pooled.unflatten(0, (len(x), 5))
    rows = []
    for sample, turned in zip(f, backwards.tolist(), strict=True):
        named = dict(zip("abcde", sample, strict=True))
        three = [
            torch.cat([named[k] for k in (word[::-1] if turned else word)]) for word in ("bcd", "bad", "bed")
        ]
        x = torch.stack(three)
        i, j, k = x.split(16, dim=1)
        rows.append(net.head(torch.cat([x, (i - j).abs(), (j - k).abs(), (k - i).abs()], dim=1)))
    return torch.stack(rows)


def test_tuples_are_the_papers(net):
    """(b, c, d) in order; (b, a, d) and (b, e, d) not; all of a sample reversed, or none."""
    x = torch.randn(4, 5, 3, 8, 8)
    backwards = torch.tensor([False, True, True, False])
    torch.testing.assert_close(net.logits(x, backwards), tuples(net, x, backwards))


def test_the_loss_weighs_both_kinds(net):
    x = torch.randn(6, 5, 3, 8, 8)
    key = Key(3, np.zeros(6, np.int64), np.arange(6))
    out = net(Batch((x,), key), Clock(0, 10, 0.0))
    loss, best = {}, {}
    for turned in (False, True):
        logs = net.logits(x, torch.full((6,), turned)).log_softmax(-1)
        loss[turned] = -(0.25 * logs[:, 0, 1] + 0.375 * logs[:, 1:, 0].sum(1))
        best[turned] = logs.argmax(-1)
    turned = np.array([bool(u < 0.5) for u in order.uniform(key, order.Stream.METHOD, 1)[:, 0]])
    assert 0 < turned.sum() < 6
    expected = torch.stack([loss[bool(t)][i] for i, t in enumerate(turned)]).mean()
    torch.testing.assert_close(out.loss, expected)
    chosen = torch.stack([best[bool(t)][i] for i, t in enumerate(turned)])
    balanced = (chosen[:, 0] == 1).float().mean() / 2 + (chosen[:, 1:] == 0).float().mean() / 2
    torch.testing.assert_close(out.metrics["balanced_accuracy"], balanced)


def test_frames_are_cut_alike_and_five_in_ascending_order():
    frames = order.frames(order.Config())
    assert (frames.count, frames.order, frames.together, frames.alone) == (5, "ascending", True, False)


def test_options():
    with pytest.raises(ValueError, match=r"method\.negatives=1: must lie between 0 and 1"):
        order.Config(negatives=1)
    linear = order.Method(
        backbones.build(name="vit-n/4", image_size=8, depth=1, dim=16, heads=2, hidden=16), order.Config(),
        Context(image_size=8),
    )  # fmt: skip
    assert [m.weight.shape for m in linear.head] == [(2, 48)]
