"""VICReg: closed forms of its terms, numpy's numbers, and their weights."""

import numpy as np
import pytest
import torch
from waves import wave

from omma import backbones
from omma.core.protocols import Batch, Clock, Context, Key
from omma.methods import vicreg


def test_constant_projections_have_the_closed_form():
    """Each dimension lacks 1 - sqrt(1e-4); nothing is correlated. The gradient stays finite."""
    z = torch.ones(5, 3, requires_grad=True)
    loss = vicreg.variance(z)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.99)
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert float(vicreg.covariance(z.detach())) == 0


def test_repeated_dimensions_have_the_closed_form():
    """Variance 4/3 each, so no hinge; d (d - 1) covariances of 4/3, over d."""
    z = torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None].repeat(1, 5)
    assert float(vicreg.variance(z)) == 0
    assert float(vicreg.covariance(z)) == pytest.approx(4 * (4 / 3) ** 2)


def test_independent_dimensions_cost_nothing():
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert float(vicreg.covariance(z)) == pytest.approx(0, abs=1e-12)


def test_one_row_is_finite():
    z = torch.ones(1, 3)
    assert float(vicreg.variance(z)) == pytest.approx(0.99)
    assert float(vicreg.covariance(z)) == 0


def by_numpy(z, deviation=1.0):
    """Variance and covariance term in fp64, by numpy's own statistics."""
    c = np.cov(z, rowvar=False)
    hinge = np.maximum(0, deviation - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean()
    return hinge, np.square(c[~np.eye(len(c), dtype=bool)]).sum() / len(c)


@pytest.mark.parametrize("deviation", [1.0, 0.7])
def test_terms_by_numpy(deviation):
    """Values far from 0, some dimensions above the hinge and some below."""
    z = wave(9, 6, scale=1.3) * torch.linspace(0.2, 2.0, 6).double() + 3
    hinge, off = by_numpy(z.numpy(), deviation)
    assert hinge > 0.05
    assert float(vicreg.variance(z.float(), deviation)) == pytest.approx(hinge, rel=1e-5)
    assert float(vicreg.covariance(z.float())) == pytest.approx(off, rel=1e-5)


@pytest.fixture
def method():
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/4", image_size=8)
    return vicreg.Method(encoder, vicreg.Config(hidden=12, out=6), Context(image_size=8)).train()


def test_the_terms_weigh_25_25_and_1(method):
    views = torch.stack([wave(5, 3, 8, 8, phase=phase).float() for phase in (0.0, 0.4)], 1)
    with torch.no_grad():
        method.head[-1].weight.mul_(3)  # so that no term is much larger than the others
        output = method(Batch((views,), Key(0, np.zeros(5, np.int64), np.arange(5))), Clock(0, 10, 0.0))
        a, b = (method.head(method.encoder(x).pooled).double().numpy() for x in views.unbind(1))
    (hinge_a, off_a), (hinge_b, off_b) = by_numpy(a), by_numpy(b)
    terms = (25 * np.square(a - b).mean(), 25 * (hinge_a + hinge_b), off_a + off_b)
    assert min(terms) > 0.01 * max(terms)
    assert float(output.loss) == pytest.approx(sum(terms), rel=1e-4)
    assert float(output.metrics["variance"]) == pytest.approx((hinge_a + hinge_b) / 2, rel=1e-4)


def test_projector_and_views_are_the_papers():
    config = vicreg.Config()
    assert (config.hidden, config.out) == (8192, 8192)
    (crop,) = vicreg.views(config, 224)
    assert crop.count == 2
    assert crop.colour is not None
    assert (crop.colour.blur_p, crop.colour.solarise_p) == (0.5, 0.1)


def test_the_trained_encoder_is_exported(method):
    assert method.export_encoder() is method.encoder


@pytest.mark.parametrize("option", [{"variance": -1.0}, {"deviation": 0.0}, {"scale": (0.5, 0.1)}])
def test_wrong_options_are_refused(option):
    with pytest.raises(ValueError, match=f"method.{next(iter(option))}="):
        vicreg.Config(**option)
