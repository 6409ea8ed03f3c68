"""Gradients of two processes: their mean, whatever arrives where and when; norm and clipping; buckets."""

from pathlib import Path

import processes
import pytest
import torch
from torch import nn

from omma.core import dist
from omma.core.dtensor import is_sharded, to_full, to_local
from omma.train import clipping, ddp
from omma.train.ddp import Gradients


class Net(nn.Module):
    """Layers that are used by some, by one process, or by nobody."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.nobody, self.a, self.b, self.second = (nn.Linear(3, 3) for _ in range(4))

    def forward(self, x: torch.Tensor, order: str) -> torch.Tensor:
        for name in order:
            x = {"a": self.a, "b": self.b, "s": self.second}[name](x)
        return x.square().sum()


def inputs(rank: int, part: int) -> torch.Tensor:
    return torch.linspace(-1, 1, 6).view(2, 3) + rank + 0.5 * part


def main(rank: int, folder: Path) -> None:
    """One of two processes: two steps of two parts each, and what becomes of frozen layers."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    net = Net()
    sent = []
    gradients = Gradients(net, list(net.parameters()), size=40)  # a bucket for each layer, or two
    send = gradients._send
    gradients._send = lambda: (sent.append(gradients._sent), send())  # type: ignore[method-assign]
    results = {}
    for step in range(2):
        net.b.requires_grad_(step == 1)
        net.zero_grad()
        gradients.begin()
        early = 0
        for part in range(2):
            if part == 1:
                early = len(sent)
                gradients.expect_last()
            net(inputs(rank, part), "ab" if rank == 0 else "bas").backward()
        before = len(sent)
        found = gradients.finish()
        gradients.drop_absent(dist.sum_floats(found))
        results[f"step {step}"] = {
            name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()
        }
        results[f"sent {step}"] = {"in parts": early, "backward": before, "order": list(sent)}
        sent.clear()
        assert not any(p._post_accumulate_grad_hooks for p in net.parameters())
    # lower copies have gradients of their own
    net.requires_grad_(False).a.requires_grad_(True)
    net.zero_grad()
    gradients.begin()
    gradients.expect_last()
    gradients.add(net.a.weight, torch.full((3, 3), 1.0 + 2 * rank, dtype=torch.bfloat16))
    gradients.drop_absent(dist.sum_floats(gradients.finish()))
    results["added"] = net.a.weight.grad
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two processes computed."""
    return processes.run(__file__, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("step", [0, 1])
def test_the_mean_of_what_arrives(two, step):
    """A layer that one process uses counts half; a frozen one and one that nobody uses have no gradient."""
    net = Net()
    net.b.requires_grad_(step == 1)
    for rank in range(2):
        for part in range(2):
            (net(inputs(rank, part), "ab" if rank == 0 else "bas") / 2).backward()
    for result in two:
        for name, p in net.named_parameters():
            got = result[f"step {step}"][name]
            assert (got is None) == (p.grad is None), name
            if p.grad is not None:
                torch.testing.assert_close(got, p.grad)
    assert two[0][f"step {step}"]["nobody.weight"] is None


def test_sent_once_a_step_in_one_order(two):
    """With the last part, and where the first bucket fills, before the backward pass is over."""
    for step in range(2):
        orders = [result[f"sent {step}"]["order"] for result in two]
        assert orders[0] == orders[1] == sorted(orders[0])
        assert all(result[f"sent {step}"]["in parts"] == 0 for result in two)
        assert two[0][f"sent {step}"]["backward"] == 0  # it lacks the layer whose turn is first
        assert two[1][f"sent {step}"]["backward"] > 0


def test_gradients_of_lower_copies(two):
    for result in two:
        assert torch.equal(result["added"], torch.full((3, 3), 2.0))


def test_one_process_sends_nothing():
    net = Net()
    gradients = Gradients(net, list(net.parameters()))
    gradients.begin()
    gradients.expect_last()
    net(inputs(0, 0), "ab").backward()
    alone = net.a.weight.grad
    assert gradients.finish() == []
    gradients.drop_absent([])
    assert net.a.weight.grad is alone


def test_buckets_are_cut_in_order():
    params = [nn.Parameter(torch.zeros(n)) for n in (2, 3, 10, 1, 1)]
    params[4] = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    cut = ddp._bucketed(params, 20)
    assert [[p.numel() for p in piece] for piece in cut] == [[2, 3], [10], [1], [1]]
    assert ddp._bucketed([], 20) == []


def test_norm_and_clipping_are_torchs():
    net = Net()
    net(inputs(0, 0), "ab").backward()
    params = [p for p in net.parameters() if p.grad is not None]
    want = nn.utils.get_total_norm([p.grad for p in params])
    norm = clipping.norm([p.grad for p in params])
    assert torch.equal(norm, want)
    clipping.clip(torch.optim.SGD(net.parameters()), 1.0, "all", norm)
    assert nn.utils.get_total_norm([p.grad for p in params]) == pytest.approx(1.0, rel=1e-4)


def test_a_tensor_that_is_whole():
    x = torch.ones(2)
    assert not is_sharded(x)
    assert to_local(x) is x
    assert to_full(x) is x
