"""Sinkhorn-Knopp: what it promises, the plain algorithm in fp64, extreme logits, a batch in parts."""

import threading

import pytest
import torch
from balanced import sinkhorn
from sizes import Sizes
from waves import wave

from omma.methods.shared.sinkhorn import centre


def plain(logits, temperature, iterations):
    """[Caron 2020, section 3.1], with the matrix itself written over, in fp64."""
    q = (logits.double() / temperature).exp()
    q /= q.sum()
    n, k = q.shape
    for _ in range(iterations):
        q /= q.sum(0, keepdim=True) * k
        q /= q.sum(1, keepdim=True) * n
    return q * n


@pytest.mark.parametrize("shape", [(6, 4), (3, 17), (40, 8), (1, 5)])
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_equals_the_plain_algorithm(shape, iterations):
    logits = wave(*shape, phase=0.4)
    for temperature in (0.05, 0.5):
        found = sinkhorn(logits, temperature, iterations)
        torch.testing.assert_close(
            found.double(), plain(logits, temperature, iterations), rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(found.sum(1), torch.ones(shape[0]))


def test_columns_are_used_alike_in_the_end():
    found = sinkhorn(wave(12, 5), 0.3, iterations=200)
    torch.testing.assert_close(found.sum(0), torch.full((5,), 12 / 5), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(12))


def test_equal_logits_are_uniform():
    torch.testing.assert_close(sinkhorn(torch.full((3, 7), 2.5), 0.04), torch.full((3, 7), 1 / 7))


def test_a_permutation_stays_one():
    logits = 30 * torch.eye(6)[torch.tensor([3, 0, 5, 1, 4, 2])]
    torch.testing.assert_close(sinkhorn(logits, 0.05), logits / 30)


@pytest.mark.parametrize("temperature", [0.025, 0.04])
def test_cosines_at_the_coldest_temperatures_stay_distributions(temperature):
    """Rows that are 80 apart: exp(logits / temperature) would be 0 in whole rows, in fp32."""
    logits = wave(9, 4) - 1
    logits[0] -= 2 - wave(9, 4)[0].max()
    found = sinkhorn(logits, temperature)
    torch.testing.assert_close(found.sum(1), torch.ones(9))
    torch.testing.assert_close(found.double(), plain(logits, temperature, 3), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_extreme_logits_stay_finite(scale):
    """No row is lost, however far it lies below the others."""
    found = sinkhorn(scale * wave(9, 4), 0.05)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(1), torch.ones(9))


def test_rows_of_unlike_size_weigh_what_they_do_in_fp64():
    logits = wave(6, 4)
    logits[2] -= 1.5
    torch.testing.assert_close(sinkhorn(logits, 0.05).double(), plain(logits, 0.05, 3), rtol=1e-4, atol=1e-6)


def test_a_prototype_far_from_everyone_gets_its_share():
    """Its column's sum is e^-400: 0 in fp32."""
    logits = wave(5, 4)
    logits[:, 2] = -20
    found = sinkhorn(logits, 0.05)
    torch.testing.assert_close(found.double(), plain(logits, 0.05, 3), rtol=1e-4, atol=1e-6)
    assert found[:, 2].sum() > 0.5


@pytest.mark.parametrize("values", [1, 12, 1 << 22])
def test_a_centre_balances_whatever_part_of_the_matrix_is_held(values):
    logits, scale = wave(7, 5), wave(5, phase=0.3).abs()
    c = centre(logits, 0.05, scale=scale, values=values)
    found = ((logits * scale - c) / 0.05).softmax(-1)
    torch.testing.assert_close(found, plain(logits * scale, 0.05, 3), rtol=1e-4, atol=1e-6)


def test_no_more_of_the_matrix_is_held_than_allowed():
    logits = wave(64, 32).float()
    with Sizes() as sizes:
        centre(logits, 0.05, values=256)
    assert max(sizes.made) == 256


# facebookresearch/dinov2 b8931f7, DINOLoss(k).sinkhorn_knopp_teacher(wave(n, k, phase=.2), temperature)
GOLDEN = [
    (6, 4, 0.5, [0.406046629, 0.429412007, 0.116153121, 0.048388287],
     [0.076556936, 0.032259472, 0.394862652, 0.496320963]),
    (7, 5, 0.07, [9.2692e-05, 0.428197652, 0.566258609, 0.0, 0.005451043],
     [0.0, 0.596513927, 0.403486103, 0.0, 2e-09]),
]  # fmt: skip


@pytest.mark.parametrize(("n", "k", "temperature", "first", "fifth"), GOLDEN)
def test_numbers_of_the_published_code(n, k, temperature, first, fifth):
    found = sinkhorn(wave(n, k, phase=0.2), temperature)
    torch.testing.assert_close(found[0], torch.tensor(first), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(found[4], torch.tensor(fifth), rtol=1e-5, atol=2e-6)


def in_parts(parts, temperature):
    """Each part in a thread of its own, which waits for the others' sums and maxima."""
    barrier, lent = threading.Barrier(len(parts), timeout=20), {}
    found = [None] * len(parts)

    def run(rank):
        def reduced(x, how):
            lent[rank] = x
            barrier.wait()
            out = how(torch.stack([lent[i] for i in range(len(parts))]))
            barrier.wait()
            return out

        found[rank] = sinkhorn(
            parts[rank],
            temperature,
            total=lambda x: reduced(x, lambda stack: stack.sum(0)),
            largest=lambda x: reduced(x, lambda stack: stack.amax(0)),
        )

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return torch.cat(found)


@pytest.mark.parametrize("temperature", [0.05, 0.02])
@pytest.mark.parametrize("cut", [0, 1, 4, 8, 9])
def test_a_batch_in_two_parts_equals_the_whole(cut, temperature):
    """One of them may have no rows at all, as with hidden patches."""
    logits = wave(9, 5)
    logits[:3] -= 2.0  # another part's maximum is larger
    found = in_parts([logits[:cut], logits[cut:]], temperature)
    torch.testing.assert_close(found, sinkhorn(logits, temperature), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.02, 0.01, 0.003])
def test_sharp_assignments_of_cosines_are_exact(temperature):
    """Prototypes that no image is near to leave fp32's range: what their images get must not depend on it."""
    logits = torch.linspace(-1, 1, 15).view(3, 5)[[0, 1, 2, 0, 1, 2, 2]] * wave(7, 5).sign()
    found = sinkhorn(logits, temperature).double()
    torch.testing.assert_close(found, plain(logits, temperature, 3), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.02])
def test_nobody_has_a_row(temperature):
    assert sinkhorn(torch.zeros(0, 5), temperature).shape == (0, 5)


def test_no_gradient_passes():
    assert not centre(wave(3, 4).requires_grad_(), 0.05).requires_grad
