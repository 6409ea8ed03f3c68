"""LeJEPA's test of normality: closed forms, the published code's numbers, and what it tells apart."""

import math

import pytest
import torch
from waves import wave

from omma.methods import lejepa
from omma.pretraining import health


def statistic_of_a_point(n: int, knots: int = 17) -> float:
    """All n rows at the origin: phi(t) = 1, so that the integrand is (1 - e^(-t^2/2))^2 e^(-t^2/2)."""
    ts = [3 * i / (knots - 1) for i in range(knots)]
    values = [(1 - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2) for t in ts]
    return n * 2 * 3 / (knots - 1) * (sum(values) - (values[0] + values[-1]) / 2)


@pytest.mark.parametrize("n", [1, 8])
def test_collapsed_embeddings_have_the_closed_form(n):
    found = lejepa.sigreg(torch.zeros(2, n, 3), torch.eye(3))
    assert float(found) == pytest.approx(statistic_of_a_point(n), rel=1e-5)


def test_a_normal_sample_passes_and_others_do_not():
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(4, 32), dim=0)
    normal = torch.randn(1, 4096, 4)
    passed = float(lejepa.sigreg(normal, directions))
    for other in (normal * 0, normal + 1, normal * 2, normal.sign()):
        assert float(lejepa.sigreg(other, directions)) > 20 * passed


# rbalestr-lab/lejepa eddffdd (lejepa.univariate.EppsPulley, its world_size set to 1) on x @ a of waves
GOLDEN_LOSS = 1.59823668
GOLDEN_GRADIENT = [-0.095890410, 0.112932496, -0.002873154]


def test_numbers_of_the_published_code():
    z = wave(2, 6, 3, scale=1.5).float().requires_grad_()
    directions = torch.nn.functional.normalize(wave(3, 5, phase=0.3).float(), dim=0)
    loss = lejepa.sigreg(z, directions)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(GOLDEN_LOSS, rel=1e-5)
    torch.testing.assert_close(z.grad[0, 0], torch.tensor(GOLDEN_GRADIENT), rtol=1e-4, atol=1e-7)


def test_projections_that_hardly_vary_are_a_collapse():
    signals = lejepa.Method.health_signals(None)
    readings = [health.read(torch.randn(64, 16), 0, 0.0), health.read(torch.randn(64, 16), 9, 1.0)]
    verdict = health.judge(readings, {"lacking_deviation": 0.98}, signals)
    assert verdict.state == "collapsed"
    assert "--method.weight" in verdict.remedy
    assert health.judge(readings, {"lacking_deviation": 0.6}, signals).state != "collapsed"
