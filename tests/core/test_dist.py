"""Collectives: two processes compute what one does on the joined batch; one alone is unchanged."""

from pathlib import Path

import processes
import pytest
import torch
from torch import nn
from waves import wave

from omma.core import collectives, dist
from omma.losses import contrastive
from omma.ops.batch_norm import BatchNorm

# rows of each process; in "far" the means are a hundred standard deviations from 0
ROWS = {"2d": (3, 5), "4d": (3, 5), "plain": (3, 5), "single": (1, 1), "far": (3, 5)}
STEPS = 3


def inputs(kind: str, step: int) -> torch.Tensor:
    """The joined batch, neither of zero mean nor of unit variance."""
    shape = (sum(ROWS[kind]), 4, 2, 3) if kind == "4d" else (sum(ROWS[kind]), 4)
    x = 2 * wave(*shape, phase=step) + 1.5
    if kind == "single":
        x = x + torch.tensor([[3.0], [-3.0]])  # far apart, so that the test is about the variance
    return (x + 150 if kind == "far" else x).float()


def norm_of(kind: str, cls=BatchNorm) -> nn.Module:
    norm = cls(4, affine=kind != "plain")
    if norm.affine:
        norm.weight.data = 1 + wave(4, phase=0.3, scale=0.5).float()
        norm.bias.data = wave(4, phase=0.7, scale=0.5).float()
    return norm


def train(norm: nn.Module, kind: str, part: slice) -> dict[str, torch.Tensor]:
    """Outputs, gradients and running statistics of three steps on rows `part`, then an evaluation."""
    out = {}
    for step in range(STEPS):
        whole = inputs(kind, step)
        x = whole[part].clone().requires_grad_()
        y = norm(x)
        (y * wave(*whole.shape, phase=step + 0.5).float()[part]).sum().backward()
        assert x.grad is not None
        out |= {f"output {step}": y.detach(), f"gradient {step}": x.grad}
    out |= {f"parameter {name}": p.grad for name, p in norm.named_parameters()}
    out |= {f"state {name}": b.clone() for name, b in norm.named_buffers()}
    norm.eval()
    out["evaluated"] = norm(inputs(kind, STEPS)[part]).detach()
    return out


def contrast(part: slice) -> dict[str, torch.Tensor]:
    """NT-Xent of these rows against the rows of all processes, as SimCLR calls it."""
    a, b = (wave(6, 5, phase=p)[part].float().requires_grad_() for p in (0.1, 0.9))
    loss = contrastive.ntxent(
        (a, b), 0.2, (collectives.gather(a), collectives.gather(b)), offset=dist.rank() * len(a)
    )
    loss.backward()
    assert a.grad is not None
    assert b.grad is not None
    return {"loss": loss.detach(), "a": a.grad, "b": b.grad}


def main(rank: int, folder: Path) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    assert dist.is_distributed()
    assert (dist.rank(), dist.world_size()) == (rank, 2)
    results = {}
    for kind, rows in ROWS.items():
        part = slice(0, rows[0]) if rank == 0 else slice(rows[0], sum(rows))
        results[kind] = train(norm_of(kind), kind, part)

    x = wave(3, 2, phase=rank).requires_grad_()
    average = collectives.mean(x)
    rows_of_all = collectives.gather(x)
    (rows_of_all * wave(6, 2, phase=5 + rank)).sum().backward()
    assert x.grad is not None
    results["plain functions"] = {
        "mean": average,
        "mean needs gradient": torch.tensor(average.requires_grad),
        "untouched": (x.detach() == wave(3, 2, phase=rank)).all(),
        "gathered": rows_of_all.detach(),
        "gradient": x.grad,
    }
    results["contrast"] = contrast(slice(3 * rank, 3 * rank + 3))
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Results of each of two processes."""
    return processes.run(__file__, tmp_path_factory.mktemp("two"))


def close(got: torch.Tensor, want: torch.Tensor, what: str) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("kind", ROWS)
def test_batch_norm_of_two_processes_is_torchs_of_the_joined_batch(two: list[dict], kind: str) -> None:
    alone = train(norm_of(kind, nn.BatchNorm2d if kind == "4d" else nn.BatchNorm1d), kind, slice(None))
    first, second = two[0][kind], two[1][kind]
    assert set(first) == set(second) == set(alone)
    for what, want in alone.items():
        if kind == "far" and what.startswith("output"):  # x - mean rounds to 150 eps in torch's as well
            torch.testing.assert_close(torch.cat([first[what], second[what]]), want, atol=1e-4, rtol=0)
        elif what.startswith("state"):  # equal on all processes, so that any of them may save them
            close(first[what], want, what)
            close(second[what], want, what)
        elif what.startswith("parameter"):  # the sum here is 2 x the mean that DDP forms
            close(first[what] + second[what], want, what)
        else:
            close(torch.cat([first[what], second[what]]), want, what)


def test_mean(two: list[dict]) -> None:
    want = (wave(3, 2, phase=0) + wave(3, 2, phase=1)) / 2
    for result in two:
        got = result["plain functions"]
        close(got["mean"], want, "mean")
        assert not got["mean needs gradient"]
        assert got["untouched"]


def test_gather_and_its_gradient(two: list[dict]) -> None:
    """Each row's gradient is summed over processes."""
    rows = torch.cat([wave(3, 2, phase=0), wave(3, 2, phase=1)])
    gradient = wave(6, 2, phase=5) + wave(6, 2, phase=6)
    for rank, result in enumerate(two):
        close(result["plain functions"]["gathered"], rows, "rows")
        close(result["plain functions"]["gradient"], gradient[3 * rank : 3 * rank + 3], "gradient")


def test_ntxent_of_two_processes_is_that_of_the_joined_batch(two: list[dict]) -> None:
    """The mean loss of the processes; the sum of their gradients, of which DDP takes the mean."""
    alone = contrast(slice(None))
    close((two[0]["contrast"]["loss"] + two[1]["contrast"]["loss"]) / 2, alone["loss"], "loss")
    assert two[0]["contrast"]["loss"] != two[1]["contrast"]["loss"]
    for view in "ab":
        got = torch.cat([two[0]["contrast"][view], two[1]["contrast"][view]]) / 2
        close(got, alone[view], f"gradient of {view}")


def test_one_process_is_the_identity() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    assert not dist.is_distributed()
    assert (dist.rank(), dist.world_size()) == (0, 1)
    assert collectives.mean(x) is x
    assert collectives.gather(x) is x


@pytest.mark.parametrize("kind", ["2d", "4d", "plain"])
def test_batch_norm_alone_is_torchs(kind: str) -> None:
    ours = train(norm_of(kind), kind, slice(None))
    theirs = train(norm_of(kind, nn.BatchNorm2d if kind == "4d" else nn.BatchNorm1d), kind, slice(None))
    for what, want in theirs.items():
        assert torch.equal(ours[what], want), what


@pytest.mark.parametrize("rows", [1, 4])
def test_batch_norm_of_constants_is_the_bias(rows: int) -> None:
    norm = norm_of("2d")
    x = torch.full((rows, 4), 7.0, requires_grad=True)
    y = norm(x)
    y.sum().backward()
    # the mean's rounding error is divided by the root of eps, in torch's as well
    torch.testing.assert_close(y, norm.bias.expand(rows, -1), atol=1e-3, rtol=0)
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_batch_norm_of_one_row_has_no_gradient() -> None:
    """The row is its own mean: the output is the bias whatever the row is."""
    x = torch.full((1, 4), 7.0, requires_grad=True)
    norm_of("2d")(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() == 0


def test_batch_norm_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="expects"):
        BatchNorm(4)(torch.zeros(2, 3, 4))
