"""Losses of pushes, grasps and objects: closed forms; rows without a task count for nothing."""

import math

import pytest
import torch
from waves import wave

from omma.losses import interaction

NAN = float("nan")


def test_regression_counts_rows_that_have_the_task():
    predicted = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 5.0]], requires_grad=True)
    target = torch.tensor([[0.0, 0.0], [NAN, NAN], [3.0, 1.0]])
    has = target.isfinite().all(1)
    loss = interaction.regression(predicted, target, has, has.sum())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(((1 + 4) / 2 + (0 + 16) / 2) / 2)
    assert predicted.grad is not None
    assert torch.equal(predicted.grad[1], torch.zeros(2))


def test_nothing_to_learn_is_zero():
    y = wave(2, 3).requires_grad_()
    none = torch.zeros(2, dtype=torch.bool)
    loss = interaction.regression(y, torch.full((2, 3), NAN), none, none.sum())
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(y.grad, torch.zeros(2, 3).double())


def test_only_the_angle_that_was_tried_learns():
    logits = torch.zeros(3, 18, requires_grad=True)
    angle, success = torch.tensor([25.0, 185.0, NAN]), torch.tensor([1.0, 0.0, NAN])
    has = angle.isfinite()
    loss, wrong = interaction.tried(logits, angle, success, has, has.sum())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2))
    assert float(wrong) == pytest.approx(0.5)  # a logit of 0 says failure
    assert logits.grad is not None
    assert logits.grad.nonzero().tolist() == [[0, 2], [1, 0]]
    assert float(logits.grad[0, 2]) == pytest.approx(-0.25)


@pytest.mark.parametrize(
    ("angle", "place"),
    [
        (0.0, 0),
        (9.99, 0),
        (10.0, 1),
        (179.99, 17),
        (180.0, 0),
        (-5.0, 17),
        (355.0, 17),
        (-180.0, 0),
        (-1e-7, 17),
    ],
)
def test_angles_are_modulo_180(angle, place):
    assert interaction.bins(torch.tensor([angle]), 18).tolist() == [place]


def test_identity_has_the_closed_form():
    """Equal within objects, orthogonal between them: 0; all alike: the cosine to others above the margin."""
    code = torch.tensor([0, 1, 2])
    z = torch.eye(3)
    args = (code, (z, code), 0.25, code.new_tensor(3))
    assert float(interaction.identity(z, z, *args)) == 0
    same = torch.ones(3, 3)
    assert float(
        interaction.identity(same, same, code, (same, code), 0.25, code.new_tensor(3))
    ) == pytest.approx(0.75)


def test_an_object_without_a_name_is_left_out():
    first, second = wave(4, 5), wave(4, 5, phase=1.0)
    code = torch.tensor([0, -1, 2, 0])
    rows = torch.tensor([0, 2, 3])
    loss = interaction.identity(first, second, code, (second, code), 0.0, torch.tensor(3))
    alone = interaction.identity(
        first[rows], second[rows], code[rows], (second[rows], code[rows]), 0.0, torch.tensor(3)
    )
    assert float(loss) == pytest.approx(float(alone))
