"""Weights of classes by their sizes, worked by hand."""

import numpy as np
import torch

from omma.train.class_weights import class_weights, positive_weights


def test_class_weights():
    labels = np.array([0] * 6 + [1] * 3 + [3] * 2 + [-1] * 9)
    # 1/6, 1/3, 1/2 have a mean of 1/3; class 2 has no image
    np.testing.assert_allclose(class_weights(labels, 4), [0.5, 1.0, 1.0, 1.5])
    assert class_weights(np.array([-1]), 2).tolist() == [1, 1]


def test_positive_weights_balance_a_cross_entropy():
    sets = np.array([[1, 1, 0, -1], [0, 1, 0, -1], [0, 1, 0, -1], [0, -1, 0, -1], [0, 0, 0, -1]], np.int8)
    weights = positive_weights(sets)
    np.testing.assert_allclose(weights, [4, 1 / 3, 1, 1], rtol=1e-6)
    column = torch.tensor([1.0, 0, 0, 0, 0])
    logits = torch.zeros(5, requires_grad=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, column, pos_weight=torch.tensor(weights[0])
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    assert abs(gradient.sum().item()) < 1e-7  # the one positive weighs as much as the four negatives
