"""KoLeo: closed forms, the definition written out, parts of a batch, and numbers of the published code."""

import math

import pytest
import torch
import torch.nn.functional as F
from waves import wave

from omma.losses.koleo import koleo


def close(a, b, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=atol)


def test_closed_forms():
    points = torch.tensor([[1.0, 0, 0], [-5.0, 0, 0]])
    close(koleo(points), -math.log(2))  # antipodes
    close(koleo(3 * torch.eye(6)), -math.log(2) / 2)  # right angles, whatever the lengths
    hexagon = torch.tensor([[math.cos(i * math.pi / 3), math.sin(i * math.pi / 3)] for i in range(6)])
    close(koleo(hexagon), 0.0)  # neighbours at distance 1


def test_one_row_is_zero_with_a_gradient():
    x = wave(1, 4).float().requires_grad_()
    loss = koleo(x)
    loss.backward()
    close(loss, 0.0)
    close(x.grad, torch.zeros(1, 4))


def test_equal_rows_are_finite():
    x = torch.ones(3, 4, requires_grad=True)
    loss = koleo(x)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 10  # it is what they are to get away from
    assert torch.isfinite(x.grad).all()


def test_equals_the_definition():
    x = wave(7, 5, phase=0.3)
    z = F.normalize(x, dim=1)
    nearest = [min(float((z[i] - z[j]).norm()) for j in range(7) if j != i) for i in range(7)]
    close(koleo(x), -sum(map(math.log, nearest)) / 7)


def test_parts_of_a_batch_look_at_everyone():
    x = wave(9, 5)
    parts = [koleo(x[rows], everyone=x, offset=rows.start) for rows in (slice(0, 4), slice(4, 9))]
    close((4 * parts[0] + 5 * parts[1]) / 9, koleo(x))


def test_gradients_of_parts_add_up():
    x = wave(8, 5).float().requires_grad_()
    twin = x.detach().clone().requires_grad_()
    koleo(x).backward()
    sum(koleo(twin[r : r + 4], everyone=twin, offset=r) / 2 for r in (0, 4)).backward()
    close(twin.grad, x.grad)


# facebookresearch/dinov2 b8931f7, dinov2.loss.KoLeoLoss in fp64 on wave(n, 6, phase=n, scale=3):
# loss, the first row's gradient, the gradient's norm
GOLDEN = [
    (5, -0.063033294,
     [0.012230234, 0.010352109, -0.002827612, -0.012357835, 0.004804588, -0.002153441], 0.110767106),
    (9, 0.102678496,
     [0.006076876, 0.005102219, 0.026123493, 0.009891771, -0.001665308, 0.025721719], 0.121273984),
]  # fmt: skip


@pytest.mark.parametrize(("n", "loss", "first", "norm"), GOLDEN)
def test_numbers_of_the_published_code(n, loss, first, norm):
    x = wave(n, 6, phase=n, scale=3.0).requires_grad_()
    ours = koleo(x)
    ours.backward()
    close(ours, loss)
    close(x.grad[0], first)
    close(x.grad.norm(), norm)
