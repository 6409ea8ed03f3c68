"""Cross-entropy with soft targets and distillation: closed forms, and numbers of DeiT's published code."""

import math

import pytest
import torch
from waves import wave

from omma.losses import classification as c
from omma.train.mixing import smoothed


def close(a, b, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_uniform_logits_are_log_k(smoothing):
    targets = smoothed(torch.tensor([0, 3, 2]), 7, smoothing)
    close(c.soft_cross_entropy(torch.zeros(3, 7), targets), math.log(7))
    close(c.hard_distillation(torch.zeros(3, 7), wave(3, 7)), math.log(7))


def test_equal_scores_cost_the_hinge_k_minus_1():
    targets = smoothed(torch.tensor([0, 3, 2]), 7)
    close(c.multiclass_hinge(torch.zeros(3, 7), targets), 6.0)
    close(c.multiclass_hinge(torch.full((3, 7), -40.0), targets), 6.0)  # scores, which differences compare


def test_the_hinge_is_torchs_but_for_its_divisor():
    """torch divides by K [nn.MultiMarginLoss]; a lead of 1 over every other class costs nothing."""
    logits, labels = wave(6, 5, scale=3.0).float(), torch.tensor([0, 1, 4, 4, 2, 3])
    expected = 5 * torch.nn.functional.multi_margin_loss(logits, labels)
    close(c.multiclass_hinge(logits, smoothed(labels, 5)), expected)
    ahead = torch.tensor([[3.0, 2.0, -1.0]])
    assert c.multiclass_hinge(ahead, smoothed(torch.tensor([0]), 3)) == 0
    weights, count = torch.tensor([1.0, 0, 1, 0, 0, 0]), torch.tensor(4.0)
    rows = torch.nn.functional.multi_margin_loss(logits, labels, reduction="none")
    close(c.multiclass_hinge(logits, smoothed(labels, 5), weights, count), 5 * (rows[0] + rows[2]) / 4)


def test_label_smoothing_is_torchs():
    logits = wave(6, 5, scale=3.0).float()
    labels = torch.tensor([0, 1, 4, 4, 2, 3])
    for smoothing in (0.0, 0.1, 0.5):
        expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        close(c.soft_cross_entropy(logits, smoothed(labels, 5, smoothing)), expected)


def test_the_least_is_the_targets_entropy():
    targets = smoothed(torch.tensor([1]), 4, 0.1)
    close(c.soft_cross_entropy(targets.log(), targets), -(targets * targets.log()).sum())


def test_a_teacher_that_agrees():
    logits = wave(5, 4, scale=2.0)
    close(c.hard_distillation(3000 * logits, logits), 0.0, atol=1e-4)
    for temperature in (1.0, 3.0):
        close(c.soft_distillation(logits, logits, temperature), 0.0)
        close(c.soft_distillation(logits + 7, logits, temperature), 0.0)  # a softmax sees differences only


def test_the_soft_loss_at_high_temperature_is_half_the_mean_square():
    """t^2 KL -> |z - mean z - (z_t - mean z_t)|^2 / 2K [Hinton 2015, section 2.1]."""
    student, teacher = wave(3, 6), wave(3, 6, phase=1.0)
    difference = student - teacher
    difference = difference - difference.mean(1, keepdim=True)
    expected = difference.square().sum(1).mean() / 12
    close(c.soft_distillation(student, teacher, 200.0), expected, atol=5e-3)


def test_weights_leave_images_out():
    logits, teacher = wave(4, 3, scale=2.0).requires_grad_(), wave(4, 3, phase=1.0)
    targets = smoothed(torch.tensor([0, -1, 2, -1]), 3, 0.1)
    weights = torch.tensor([1.0, 0, 1, 0])
    kept = [0, 2]
    for name, target, more in (
        ("soft_cross_entropy", targets, ()),
        ("hard_distillation", teacher, ()),
        ("soft_distillation", teacher, (3.0,)),
    ):
        loss = getattr(c, name)
        weighted = loss(logits, target, *more, weights)
        close(weighted, loss(logits[kept], target[kept], *more))
        (gradient,) = torch.autograd.grad(weighted, logits)
        assert not gradient[[1, 3]].any()
        assert gradient[kept].any()
        # a part of a larger batch of 8 that counts 5
        close(loss(logits, target, *more, weights, torch.tensor(5.0)), weighted * 2 / 5)
        assert loss(logits, target, *more, torch.zeros(4)) == 0


def test_what_is_left_out_need_not_be_finite():
    logits = torch.tensor([[1.0, 2.0], [math.inf, math.inf]])
    targets = smoothed(torch.tensor([0, -1]), 2)
    assert c.soft_cross_entropy(logits, targets, torch.tensor([1.0, 0.0])).isfinite()


def test_both_heads_together():
    one, two = wave(3, 4, scale=2.0), wave(3, 4, phase=1.0)
    close(c.mean_probabilities(one, two), (one.softmax(1) + two.softmax(1)) / 2)
    close(c.mean_probabilities(one, one), one.softmax(1))


# facebookresearch/deit 7e160fe, losses.DistillationLoss(SoftTargetCrossEntropy(), teacher, kind, alpha, tau)
# in fp64 on waves: loss, and the second row of the gradients by the class token's and the other's logits
GOLDEN = {
    "hard": (0.5, 1.340543483, [0.02378711, -0.008085858, -0.004158033, -0.003903191, -0.007640027],
             [-0.035511057, 0.012729479, 0.005865442, 0.005765786, 0.01115035]),
    "soft": (0.1, 1.478728506, [0.042816797, -0.014554545, -0.007484459, -0.007025745, -0.013752049],
             [-0.000520153, -0.00046171, 0.000619346, 0.000652565, -0.000290048]),
}  # fmt: skip


@pytest.mark.parametrize("kind", GOLDEN)
def test_numbers_of_the_published_code(kind):
    own, told = wave(4, 5, scale=2.0).requires_grad_(), wave(4, 5, phase=0.9, scale=1.5).requires_grad_()
    teacher, targets = wave(4, 5, phase=1.7, scale=3.0), wave(4, 5, phase=0.3).softmax(-1)
    weight, loss, own_row, told_row = GOLDEN[kind]
    if kind == "hard":
        learned = c.hard_distillation(told, teacher)
    else:
        learned = c.soft_distillation(told, teacher, 3.0) / 5  # as that code divides
    ours = (1 - weight) * c.soft_cross_entropy(own, targets) + weight * learned
    ours.backward()
    close(ours, loss)
    close(own.grad[1], own_row)
    close(told.grad[1], told_row)
