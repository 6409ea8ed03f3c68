"""LARS against its formulas, step by step."""

import pytest
import torch

from omma.train.lars import Lars


@pytest.mark.parametrize("momentum_of", ["updates", "gradients"])
def test_momentum_is_of_updates_or_of_gradients(momentum_of):
    """SimCLR's code multiplies by the rate what enters the momentum, BYOL's and VICReg's what leaves it."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (4,))]
    weights = [torch.nn.Parameter(x.clone()) for x in start]
    groups = [
        {"params": weights[:1], "decay": True, "weight_decay": 0.1},
        {"params": weights[1:], "decay": False},
    ]
    optimizer = Lars(groups, lr=1.0, momentum=0.9, trust=0.01, momentum_of=momentum_of)
    expected, velocity = [x.clone() for x in start], [torch.zeros_like(x) for x in start]
    for rate in (0.5, 0.2, 1.0):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for i, (p, x) in enumerate(zip(weights, expected, strict=True)):
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            g = p.grad
            if i == 0:
                g = g + 0.1 * x
                g = 0.01 * x.norm() / g.norm() * g
            inside, outside = (rate, 1.0) if momentum_of == "updates" else (1.0, rate)
            velocity[i] = 0.9 * velocity[i] + inside * g
            x -= outside * velocity[i]
        optimizer.step()
    for p, x in zip(weights, expected, strict=True):
        torch.testing.assert_close(p.detach(), x)


def test_weights_of_zero_have_the_plain_rate():
    """Else they would never leave 0."""
    p = torch.nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.ones(2, 2)
    optimizer = Lars([{"params": [p], "decay": True}], lr=0.5)
    optimizer.step()
    assert torch.equal(p.detach(), torch.full((2, 2), -0.5))
