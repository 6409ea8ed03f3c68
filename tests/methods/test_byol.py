"""BYOL: closed forms of the loss, a whole step by numpy, and what the target is."""

import math

import numpy as np
import pytest
import torch
from waves import wave

from omma import backbones
from omma.core.protocols import Batch, Clock, Context, Key
from omma.methods import byol

CONFIG = byol.Config(hidden=12, out=6)


@pytest.fixture
def method():
    torch.manual_seed(0)
    return byol.Method(backbones.build(name="vit-n/4", image_size=8), CONFIG, Context(image_size=8)).train()


@pytest.fixture
def batch():
    views = tuple(wave(5, 1, 3, 8, 8, phase=phase).float() for phase in (0.0, 0.4))
    return Batch(views, Key(0, np.zeros(5, np.int64), np.arange(5)))


@pytest.mark.parametrize(("angle", "loss"), [(0, 0), (90, 4), (180, 8), (60, 2)])
def test_the_loss_is_that_of_the_angle(angle, loss):
    """2 - 2 cos for each of the two directions, whatever the lengths."""
    a = torch.tensor([[3.0, 0.0]])
    b = 7 * torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))]])
    assert float(byol.symmetrised([a, a], [b, b])) == pytest.approx(loss, abs=1e-5)


def test_a_view_is_compared_with_the_other_view():
    one, two = torch.eye(2)[:1], torch.eye(2)[1:]
    assert float(byol.symmetrised([one, two], [two, one])) == 0
    assert float(byol.symmetrised([one, two], [one, two])) == 4


def by_numpy(head, x):
    """Linear, batch norm by the batch's own statistics, ReLU, linear."""
    first, norm, last = head[0], head[1], head[3]
    w, scale, shift, v, b = (
        p.detach().double().numpy() for p in (first.weight, norm.weight, norm.bias, last.weight, last.bias)
    )
    x = x @ w.T
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * scale + shift
    return np.maximum(x, 0) @ v.T + b


def test_a_step_by_numpy(method, batch):
    """The formulas of section 3.1 from the encoders' features on, in fp64."""
    with torch.no_grad():
        for p in method.target.parameters():  # so that the networks differ
            p.mul_(0.9)
        for p in method.target_head.parameters():
            p.add_(wave(*p.shape, scale=0.1).float())
        online, target = (
            [encoder(view[:, 0]).pooled.double().numpy() for view in batch.views]
            for encoder in (method.encoder, method.target)
        )
    q = [by_numpy(method.predictor, by_numpy(method.head, x)) for x in online]
    t = [by_numpy(method.target_head, x) for x in target]
    cosines = [
        (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        for a, b in ((q[0], t[1]), (q[1], t[0]))
    ]
    expected = 4 - 2 * np.mean(cosines[0] + cosines[1])
    assert 0.1 < expected < 7.9
    assert float(method(batch, Clock(0, 10, 0.0)).loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_no_gradient_reaches_the_target(method, batch):
    method(batch, Clock(0, 10, 0.0)).loss.backward()
    for part in (method.target, method.target_head):
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    for part in (method.encoder, method.head, method.predictor):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.996), (5, 0.998), (10, 1.0)])
def test_the_target_follows_by_a_cosine(method, step, momentum):
    pairs = ((method.target, method.encoder), (method.target_head, method.head))
    with torch.no_grad():
        for slow, fast in pairs:
            for p, q in zip(slow.parameters(), fast.parameters(), strict=True):
                p.fill_(1.0)
                q.fill_(2.0)
    method.after_step(Clock(step, 10, 0.0), [None])
    for slow, fast in pairs:
        assert all(torch.allclose(p, torch.full_like(p, 2 - momentum)) for p in slow.parameters())
        assert all(torch.equal(q, torch.full_like(q, 2.0)) for q in fast.parameters())


def test_the_online_encoder_is_exported(method):
    assert method.export_encoder() is method.encoder


def test_the_views_differ_in_blur_and_solarisation():
    """Table 6 of the paper."""
    first, second = byol.views(byol.Config(), 224)
    assert first.colour is not None
    assert second.colour is not None
    assert (first.colour.blur_p, second.colour.blur_p) == (1.0, 0.1)
    assert (first.colour.solarise_p, second.colour.solarise_p) == (0.0, 0.2)


@pytest.mark.parametrize("option", [{"momentum": 1.1}, {"hidden": 0}, {"scale": (0.5, 0.1)}])
def test_wrong_options_are_refused(option):
    with pytest.raises(ValueError, match=f"method.{next(iter(option))}="):
        byol.Config(**option)
