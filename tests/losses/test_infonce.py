"""InfoNCE with a batch's keys and with a queue's: closed forms, equations written out, MoCo v3's numbers."""

import math

import pytest
import torch
import torch.nn.functional as F
from waves import wave

from omma.losses import contrastive


def close(a, b, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("b", [1, 2, 7])
def test_equal_keys_give_log_of_their_number(b):
    close(contrastive.infonce(wave(b, 4), torch.ones(b, 4), 0.2), math.log(b))


def test_orthogonal_keys():
    """The own key at cosine 1, the n - 1 others at 0, whatever their lengths."""
    eye, t = torch.eye(5), 0.5
    close(contrastive.infonce(2 * eye, 7 * eye, t), math.log(math.exp(1 / t) + 4) - 1 / t)


def test_equals_the_equation():
    q, k = wave(5, 6).requires_grad_(), wave(5, 6, phase=1.0).requires_grad_()
    twin, keys = (x.detach().clone().requires_grad_() for x in (q, k))
    a, b = F.normalize(twin, dim=1), F.normalize(keys, dim=1)
    terms = [
        -torch.log((a[i] @ b[i] / 0.2).exp() / sum((a[i] @ b[j] / 0.2).exp() for j in range(5)))
        for i in range(5)
    ]
    loss, reference = contrastive.infonce(q, k, 0.2), sum(terms) / 5
    loss.backward()
    reference.backward()
    close(loss, reference)
    close(q.grad, twin.grad)
    close(k.grad, keys.grad)  # whoever wants constant keys detaches them


def test_a_part_of_a_larger_batch_finds_its_own_keys():
    q, k = wave(6, 4), wave(6, 4, phase=1.0)
    parts = [contrastive.infonce(q[r], k, 0.2, offset=r.start) for r in (slice(0, 2), slice(2, 6))]
    close((2 * parts[0] + 4 * parts[1]) / 6, contrastive.infonce(q, k, 0.2))


# facebookresearch/moco-v3 c349e6e, moco.builder.MoCo.contrastive_loss in fp64 on waves: temperature, loss
# (times 2 T there), the first query's gradient, the gradient's norm
MOCO = [
    (0.2, 1.567446072,
     [-0.224894053, -0.150342366, 0.326197695, -0.067814763, 0.053703284, 0.112492617], 0.530777667),
    (1.0, 3.36676853,
     [-0.132609545, -0.163315477, 0.280042507, -0.095342181, 0.045514356, 0.098149103], 0.492559313),
]  # fmt: skip


@pytest.mark.parametrize(("temperature", "loss", "first", "norm"), MOCO)
def test_numbers_of_the_published_code(temperature, loss, first, norm):
    q, k = wave(4, 6, phase=0.1).requires_grad_(), wave(4, 6, phase=0.9, step=1.1)
    ours = 2 * temperature * contrastive.infonce(q, k, temperature)
    ours.backward()
    close(ours, loss)
    close(q.grad[0], first)
    close(q.grad.norm(), norm)


# ---------------------------------------------------------------- with a queue
def test_queue_closed_forms():
    x = torch.ones(3, 4)
    close(contrastive.infonce_queue(x, x, torch.ones(9, 4), 0.07), math.log(10))  # all alike
    q = torch.tensor([[1.0, 0, 0]])
    others = torch.tensor([[0, 1.0, 0], [0, 0, 5.0]])
    close(contrastive.infonce_queue(q, 3 * q, others, 0.5), math.log(math.exp(2) + 2) - 2)
    close(contrastive.infonce_queue(q, q, torch.zeros(0, 3), 0.5), 0.0)  # nothing to be told from


def test_queue_equals_the_equation():
    """The batch's other keys are no negatives [He 2019, algorithm 1]."""
    q, k, queue = wave(4, 5).requires_grad_(), wave(4, 5, phase=1.0), wave(6, 5, phase=2.0)
    twin = q.detach().clone().requires_grad_()
    a, own, old = F.normalize(twin, dim=1), F.normalize(k, dim=1), F.normalize(queue, dim=1)
    terms = []
    for i in range(4):
        right = (a[i] @ own[i] / 0.07).exp()
        terms.append(-torch.log(right / (right + (old @ a[i] / 0.07).exp().sum())))
    loss, reference = contrastive.infonce_queue(q, k, queue, 0.07), sum(terms) / 4
    loss.backward()
    reference.backward()
    close(loss, reference)
    close(q.grad, twin.grad)
