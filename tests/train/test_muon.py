"""Muon against its definition, and against AdamW where it leaves parameters to it."""

import pytest
import torch

from omma.train.muon import Muon, orthogonalised


def matrix(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9)])
def test_orthogonalised_keeps_directions_and_makes_singular_values_alike(shape):
    x = matrix(2, *shape) * torch.tensor([1e-4, 1e3]).view(2, 1, 1)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    for y, left, right in zip(orthogonalised(x), u, vh, strict=True):
        inside = left.T @ y @ right.T  # diagonal, if the singular vectors are kept
        values = inside.diagonal()
        torch.testing.assert_close(inside, values.diag(), atol=1e-9, rtol=0)
        assert ((values > 0.3) & (values < 1.3)).all()
    assert torch.equal(orthogonalised(torch.zeros(1, 3, 5)), torch.zeros(1, 3, 5))


def test_the_iterations_in_bf16_are_close_to_those_in_fp32():
    x = matrix(1, 32, 64).float()
    torch.testing.assert_close(orthogonalised(x, torch.bfloat16), orthogonalised(x), atol=0.03, rtol=0)


def test_a_step_is_nesterov_momentum_orthogonalised_and_decay_apart():
    weights = torch.nn.Parameter(matrix(4, 6))
    kernel = torch.nn.Parameter(matrix(4, 3, 2, 2, seed=1))
    tall = torch.nn.Parameter(matrix(6, 4, seed=2))
    every = [weights, kernel, tall]
    optimizer = Muon([{"params": every, "weight_decay": 0.1}], lr=0.25, matrix_lr=2, momentum=0.9)
    expected, momenta = [p.detach().clone() for p in every], [0.0, 0.0, 0.0]
    for step in range(3):
        for i, p in enumerate(every):
            p.grad = matrix(*p.shape, seed=10 * step + i)
            momenta[i] = 0.9 * momenta[i] + 0.1 * p.grad
            ahead = (0.1 * p.grad + 0.9 * momenta[i]).flatten(1)
            scale = 0.5 * 0.2 * max(ahead.shape) ** 0.5
            ahead = ahead.T if len(ahead) == 6 else ahead
            update = orthogonalised(ahead[None])[0]
            update = update.T if p is tall else update
            expected[i] = expected[i] * (1 - 0.05) - scale * update.reshape(p.shape)
        optimizer.step()
    for p, want in zip(every, expected, strict=True):
        torch.testing.assert_close(p.detach(), want)
    change = orthogonalised(matrix(1, 64, 96)) * 0.2 * 96**0.5
    assert change.square().mean().sqrt() == pytest.approx(0.2, rel=0.15)  # as large as AdamW's


def test_vectors_tokens_and_depthwise_kernels_are_adamws():
    shapes = [(5,), (8, 1, 3, 3)]
    mine = [torch.nn.Parameter(matrix(*shape).float()) for shape in shapes]
    token = torch.nn.Parameter(matrix(1, 4, 5).float())
    groups = [{"params": mine, "weight_decay": 0.1}, {"params": [token], "decay": False}]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in (*mine, token)]
    muon = Muon(groups, lr=0.01, betas=(0.9, 0.99))
    adamw = torch.optim.AdamW(
        [{"params": theirs[:2], "weight_decay": 0.1}, {"params": theirs[2:], "weight_decay": 0.0}],
        lr=0.01, betas=(0.9, 0.99),
    )  # fmt: skip
    for step in range(3):
        for p, q in zip((*mine, token), theirs, strict=True):
            p.grad = matrix(*p.shape, seed=step).float()
            q.grad = p.grad.clone()
        muon.step()
        adamw.step()
    for p, q in zip((*mine, token), theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_parameters_without_a_gradient_stay():
    still, moved = (torch.nn.Parameter(matrix(3, 3)) for _ in range(2))
    before = still.detach().clone()
    moved.grad = matrix(3, 3, seed=2)
    optimizer = Muon([{"params": [still, moved], "weight_decay": 0.1}], lr=0.1)
    optimizer.step()
    assert torch.equal(still.detach(), before)
    assert still not in optimizer.state
    assert set(optimizer.state[moved]) == {"step", "momentum"}
