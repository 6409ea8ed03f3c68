"""DINO's centre as the method keeps it: the published code's numbers, and micro-batches."""

import pytest
import torch
from waves import wave

from omma.backbones.vit import ViT
from omma.core.protocols import Clock, Context
from omma.methods import dino

# facebookresearch/dino 7c446df, main_dino.DINOLoss(7, 5, .04, .07, 3, 5).center in fp64 after three steps
OFFICIAL = [0.027839614, -0.007985513, 0.004920467, 0.024835672, 0.008190875, -0.018475751, 0.02304899]


def method(**options) -> dino.Method:
    encoder = ViT("toy", depth=1, dim=8, heads=2, hidden=32, patch=4, image_size=8)
    config = dino.Config(prototypes=7, head_hidden=8, head_bottleneck=4, **options)
    return dino.Method(encoder, config, Context(image_size=8))


def logits(step: int) -> torch.Tensor:
    return wave(6, 7, phase=step + 0.5, scale=0.3, step=1.1).float()


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_after_three_steps_of_any_micro_batches(parts: int) -> None:
    net = method()
    for step in range(3):
        net.after_step(Clock(step + 1, 3, 0.0), [part.mean(0) for part in logits(step).chunk(parts)])
    torch.testing.assert_close(net.centre, torch.tensor(OFFICIAL), atol=1e-6, rtol=0)
    assert "centre" in net.state_dict()


def test_momentum_and_the_switch() -> None:
    still, off, none = method(centre_momentum=1.0), method(centring="off"), method(centre_momentum=0.0)
    for net in (still, off, none):
        net.after_step(Clock(1, 3, 0.0), [logits(0).mean(0)])
    assert still.centre.abs().max() == 0
    assert off.centre.abs().max() == 0
    torch.testing.assert_close(none.centre, logits(0).mean(0))


def test_teacher_follows_by_the_papers_momentum() -> None:
    """teacher <- m teacher + (1 - m) student, m rising to 1: at the end it stands still."""
    net = method(momentum=0.9)
    for p in [*net.encoder.parameters(), *net.head.parameters()]:
        p.data += 1
    before = [p.clone() for p in [*net.teacher.parameters(), *net.teacher_head.parameters()]]
    net.after_step(Clock(0, 4, 0.0), [torch.zeros(7)])
    after = [*net.teacher.parameters(), *net.teacher_head.parameters()]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old + 0.1, atol=1e-6, rtol=1e-5)
    before = [p.clone() for p in after]
    net.after_step(Clock(4, 4, 0.0), [torch.zeros(7)])
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
