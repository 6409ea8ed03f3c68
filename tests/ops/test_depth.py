"""Stochastic depth: who is dropped and how often, what is added, and compiled graphs that stay the same."""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from omma import backbones
from omma.ops import depth, packing

DRAWS = 2000
CPU = torch.device("cpu")


def added(b, drop, exact=False, draws=DRAWS):
    """What each of b samples gets of a branch that is 1 everywhere: [draws, b]."""
    torch.manual_seed(0)
    x = torch.zeros(b, 2, 3)
    drawn = torch.stack(
        [depth.residual_on_some(x, torch.ones_like, drop, exact=exact)[:, 0, 0] for _ in range(draws)]
    )
    return drawn


@pytest.mark.parametrize("drop", [0.1, 0.4])
@pytest.mark.parametrize("b", [1, 3, 4])
def test_each_sample_is_dropped_on_its_own(b, drop):
    """At the rate `drop`, in the smallest batches too; the number of dropped samples is binomial."""
    found = added(b, drop)
    torch.testing.assert_close(found.unique(), torch.tensor([0, 1 / (1 - drop)]))
    within = 4 * math.sqrt(drop * (1 - drop) / DRAWS)  # four standard errors
    dropped = found == 0
    torch.testing.assert_close(dropped.float().mean(0), torch.full((b,), drop), atol=within, rtol=0)
    torch.testing.assert_close(found.mean(0), torch.ones(b), atol=within / (1 - drop), rtol=0)  # unbiased
    for count in range(b + 1):
        expected = math.comb(b, count) * drop**count * (1 - drop) ** (b - count)
        share = float((dropped.sum(1) == count).float().mean())
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / DRAWS), count


@pytest.mark.parametrize(("b", "drop", "kept"), [(1, 0.9, 1), (3, 0.4, 1), (4, 0.1, 3), (8, 0.3, 5)])
def test_an_exact_share_is_that_of_dinov2s_code(b, drop, kept):
    """max(int(b (1 - drop)), 1) samples, times b over their number."""
    found = added(b, drop, exact=True, draws=500)
    assert ((found > 0).sum(1) == kept).all()
    torch.testing.assert_close(found.unique()[-1], torch.tensor(b / kept))
    torch.testing.assert_close(found.mean(0), torch.ones(b), atol=0.35, rtol=0)  # each of them at times


def test_packed_samples_are_drawn_within_each_length():
    torch.manual_seed(0)
    shapes, seen = [(6, 2), (3, 3), (1, 1)], set()

    def branch(t):
        seen.add(t.shape[1])
        return t

    parts = [torch.full((b, n, 4), float(n)) for b, n in shapes]
    drawn = [depth.residual_on_some(packing.pack(parts), branch, 0.5, shapes=shapes) for _ in range(600)]
    assert len(seen) > 5
    for i, (b, n) in enumerate(shapes):
        found = torch.stack([packing.unpack(x, shapes)[i] for x in drawn]) / n
        assert (found == found[:, :, :1, :1]).all()  # whole samples
        kept = (found[:, :, 0, 0] - 1) / 2
        assert set(kept.unique().tolist()) == {0.0, 1.0}
        torch.testing.assert_close(kept.mean(0), torch.full((b,), 0.5), atol=0.09, rtol=0)


def test_gradients_are_those_of_index_add_and_no_activation_is_saved(monkeypatch):
    rows = torch.tensor([5, 0, 3])
    monkeypatch.setattr(depth, "_draw", lambda *_: rows)
    x = torch.randn(8, 2, 3, dtype=torch.float64, requires_grad=True)
    factor = torch.tensor(1.5, dtype=x.dtype, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        ours = depth.residual_on_some(x, lambda t: t + factor, 0.25)
    theirs = x.index_add(0, rows, x[rows] + factor, alpha=4 / 3)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn(8, 2, 3, dtype=x.dtype)
    gradients = [torch.autograd.grad((y * weights).sum(), [x, factor]) for y in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert max(saved) == len(rows)


@pytest.mark.parametrize("b", [1, 4])
def test_a_branch_that_nobody_keeps_has_zero_gradients(monkeypatch, b):
    monkeypatch.setattr(depth, "_draw", lambda *_: torch.empty(0, dtype=torch.int64))
    network = vit(0.5)
    loss = network(torch.randn(b, 3, 16, 16)).patches.square().sum()
    loss.backward()
    for name, p in network.blocks[1].named_parameters():
        assert p.grad is not None, name
        assert not p.grad.any(), name
    assert network.blocks[0].mlp.fc1.weight.grad.any()  # its rate is 0


def test_what_everybody_keeps_is_the_branch_itself(monkeypatch):
    monkeypatch.setattr(depth, "_draw", lambda b, *_: torch.randperm(b))
    x, order = torch.arange(4.0).reshape(4, 1, 1), []
    found = depth.residual_on_some(x, lambda t: order.append(t) or t, 0.5)
    torch.testing.assert_close(found, 3 * x)
    assert torch.equal(order[0], x)


def vit(drop, **options):
    torch.manual_seed(0)
    spec = {"depth": 2, "dim": 8, "heads": 2, "hidden": 16, "class_token": False, "pool": "mean"}
    network = backbones.build(name="vit/8", image_size=16, channels=3, drop_path=drop, **spec, **options)
    return network.train()


@pytest.mark.parametrize("exact", [False, True])
def test_compiled_blocks_train_without_compiling_again(exact):
    """One graph, whatever is dropped, and the weights of blocks that are not compiled."""
    torch.compiler.reset()
    counter, networks = CompileCounterWithBackend("aot_eager"), []
    for compiled in (False, True):
        network = vit(0.4, drop_uniform=True, drop_exact=exact)
        if compiled:
            for block in network.blocks:
                block.compile(backend=counter, dynamic=False, fullgraph=True)
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        for step in range(8):
            torch.manual_seed(step)
            loss = network(torch.randn(4, 3, 16, 16)).patches.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        networks.append(network.state_dict())
    assert counter.frame_count == 1
    torch.testing.assert_close(networks[1], networks[0], rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


def test_the_rows_named_are_those_of_the_mask():
    """Compiled graphs draw the same numbers."""
    for seed in range(50):
        torch.manual_seed(seed)
        rows = depth._draw(9, 0.3, CPU, False)
        torch.manual_seed(seed)
        assert depth._mask(9, 0.3, CPU).nonzero()[:, 0].tolist() == sorted(rows.tolist())
