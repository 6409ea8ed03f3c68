"""Losses of tokenizers and of masked prediction: closed forms, and numbers of published code."""

import math

import pytest
import torch
from waves import wave

from omma.losses import pixels, prediction, quantisation


def close(a, b, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=atol)


# ---------------------------------------------------------------- predictions
@pytest.mark.parametrize("k", [2, 11])
def test_uniform_logits_are_log_k(k):
    target = torch.arange(6) % k
    close(prediction.codes(torch.full((6, k), 3.0), target, torch.tensor(6.0)), math.log(k))


def test_nothing_masked_is_zero_with_a_gradient():
    """A batch of one image may have no block that fits."""
    for loss, target in (
        (prediction.codes, torch.zeros(0, dtype=torch.long)),
        (prediction.cosine, torch.zeros(0, 3)),
    ):
        predicted = torch.zeros(0, 3, requires_grad=True)
        value = loss(predicted, target, torch.tensor(0.0))
        value.backward()
        close(value, 0.0)


def test_parts_of_two_processes_add_up_to_the_whole():
    """Each divides by the mean count, and the mean over processes is the loss of all."""
    logits, target = wave(7, 5), torch.arange(7) % 5
    whole = prediction.codes(logits, target, torch.tensor(7.0))
    parts = [prediction.codes(logits[s], target[s], torch.tensor(3.5)) for s in (slice(2), slice(2, 7))]
    close(sum(parts) / 2, whole)


def test_cosine_of_equal_opposite_and_square():
    x, n = wave(4, 6), torch.tensor(4.0)
    close(prediction.cosine(5 * x, x, n), -1.0)
    close(prediction.cosine(-x, x, n), 1.0)
    close(prediction.cosine(torch.eye(4), torch.eye(4).roll(1, 0), n), 0.0)


def test_cosine_of_the_published_code():
    """baaivision/EVA 5623d08, EVA-01/eva/engine_for_pretraining.compute_loss, in fp64."""
    predicted = wave(5, 6, phase=0.3).requires_grad_()
    loss = prediction.cosine(predicted, wave(5, 6, phase=1.2, step=0.9), torch.tensor(5.0))
    loss.backward()
    close(loss, -0.06427785009)
    first = [-0.063680403, -0.027519418, 0.071662791, -0.070444584, 0.0791362, -0.042235989]
    close(predicted.grad[0], first)
    close(predicted.grad.norm(), 0.2319588728)


# ---------------------------------------------------------------- tokenizers
def test_commitment_is_zero_at_the_codes_and_moves_the_encoder_alone():
    z, e = wave(5, 3).requires_grad_(), wave(5, 3, phase=1.0).requires_grad_()
    close(quantisation.commitment(e, e), 0.0)
    loss = quantisation.commitment(z, e)
    close(loss, (z - e).square().mean())
    loss.backward()
    assert e.grad is None
    close(z.grad, 2 * (z - e).detach() / 15)


def test_kl_to_uniform():
    close(quantisation.kl_to_uniform(torch.full((3, 8), 2.0)), 0.0)
    sure = torch.zeros(3, 8)
    sure[:, 2] = 60.0
    close(quantisation.kl_to_uniform(sure), math.log(8))
    half = torch.zeros(1, 8)
    half[:, 4:] = -60.0  # uniform over half of them: log 2
    close(quantisation.kl_to_uniform(half), math.log(2))


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, 0.0), (0.7, -1.0), (-1.5, -0.4)])
def test_logit_laplace_is_a_density(mean, log_scale):
    """exp(-loss) integrates to 1 over (0, 1)."""
    n = 200_001
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    loss = torch.stack(
        [
            pixels.logit_laplace(torch.tensor([mean]), torch.tensor([log_scale]), v[None])
            for v in x[:: n // 2000]
        ]
    )
    close(torch.exp(-loss).mean(), 1.0, atol=2e-3)


def test_logit_laplace_at_its_centre():
    """x = 1/2, mu = 0: -log(1 / (2 b / 4)) = log(b / 2), and |logit x - mu| / b beside it."""
    half, zero = torch.tensor([0.5]), torch.zeros(1)
    close(pixels.logit_laplace(zero, zero, half), math.log(0.5))
    close(pixels.logit_laplace(zero + 3.0, zero + math.log(2), half), math.log(1.0) + 1.5)


def test_pixel_map_of_the_published_code():
    """openai/DALL-E 5be4b23, dall_e/utils.map_pixels and unmap_pixels."""
    x = torch.tensor([0.0, 0.25, 1.0, 0.1, 0.95])
    close(pixels.map_pixels(x), [0.1, 0.3, 0.9, 0.18, 0.86])
    close(pixels.unmap_pixels(x), [0.0, 0.1875, 1.0, 0.0, 1.0])
    close(pixels.unmap_pixels(pixels.map_pixels(x)), x)


def test_against_the_mean_image():
    target = wave(6, 4, 3)
    close(pixels.against_mean_image(target, target), 0.0)
    close(pixels.against_mean_image(target.mean(0, keepdim=True).expand_as(target), target), 1.0)
    same = torch.ones(3, 4, 3)
    close(pixels.against_mean_image(same, same), 1.0)
