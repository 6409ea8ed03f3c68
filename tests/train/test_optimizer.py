"""Clipping by tensor and part, LARS, groups that decay by kind, and groups that age."""

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from torch import nn

from omma import backbones
from omma.backbones.layers.text import TextTower
from omma.core.dtensor import is_sharded, to_full
from omma.core.recipe import Clock, ParamGroup, Recipe
from omma.train import checkpoint, clipping, fsdp, param_groups
from omma.train.optimizer import freeze, make_optimizer, schedule

# a large eps: AdamW else makes steps of rounding errors, where a gradient is 0 but for these
RECIPE = Recipe(config=None, batch=4, lr=0.1, weight_decay=0.1, warmup=0.0, clip=0.3, eps=1e-2)
SIZE = 8


class Net(nn.Module):
    """A transformer, and a head of its own part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = backbones.build(
            name="vit-n/4", image_size=SIZE, depth=2, dim=16, heads=2, hidden=16, registers=2
        )
        self.head = nn.Linear(16, 4)
        torch.manual_seed(1)
        for p in self.parameters():
            nn.init.normal_(p, std=0.3)

    def groups(self):
        yield from param_groups.standard(self.encoder, "encoder", part="encoder")
        yield from param_groups.standard(self.head, "head", part="head")

    def repeated(self):
        return self.encoder.repeated()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).pooled).square().sum()


def inputs(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def gradients(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: to_full(p.grad) for name, p in net.named_parameters() if p.grad is not None}


def clipped(by: str) -> Net:
    """A network whose gradients are clipped."""
    net = Net()
    optimizer = make_optimizer(net, dataclasses.replace(RECIPE, clip_by=by))
    net(inputs()).backward()
    norm = clipping.norm([p.grad for p in net.parameters() if p.grad is not None])
    clipping.clip(optimizer, RECIPE.clip, by, norm)
    return net


# ---------------------------------------------------------------- clipping
@pytest.mark.parametrize("by", ["all", "part", "tensor"])
def test_clipping_is_torchs_called_on_each(by):
    reference = Net()
    reference(inputs()).backward()
    before = copy.deepcopy(gradients(reference))
    chunks = {
        "all": [list(reference.parameters())],
        "part": [list(reference.encoder.parameters()), list(reference.head.parameters())],
        "tensor": [[p] for p in reference.parameters()],
    }[by]
    norms = [nn.utils.clip_grad_norm_(chunk, RECIPE.clip, foreach=False) for chunk in chunks]
    assert max(norms) > RECIPE.clip  # some are clipped ...
    if by == "tensor":
        assert min(norms) < RECIPE.clip  # ... and some are not
    want, got = gradients(reference), gradients(clipped(by))
    assert any(not torch.equal(got[name], before[name]) for name in got)
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-8)


def test_what_is_small_is_not_clipped():
    for by in ("part", "tensor"):
        net = Net()
        net(inputs()).backward()
        before = copy.deepcopy(gradients(net))
        clipping.clip(make_optimizer(net, RECIPE), 1e6, by, torch.tensor(2e6))  # as if it were large
        for name, gradient in gradients(net).items():
            assert torch.equal(gradient, before[name])


# ---------------------------------------------------------------- LARS
def by_hand(weights, gradient, velocity, lr, *, momentum, decay, trust=1e-3):
    """google-research/simclr 383d414, tf2/lars_optimizer.py: classic momentum, no Nesterov.

    decay: None for names that are left out of weight decay and layer adaptation.
    """
    ratio = 1.0
    if decay is not None:
        gradient = gradient + decay * weights
        w, g = float(weights.norm()), float(gradient.norm())
        ratio = trust * w / g if w > 0 and g > 0 else 1.0
    velocity = momentum * velocity + lr * ratio * gradient
    return weights - velocity, velocity


def test_lars_is_the_published_formula():
    torch.manual_seed(0)
    weights = [torch.randn(4, 3), torch.randn(5), torch.zeros(2, 2), torch.randn(3, 3)]
    params = [nn.Parameter(w.clone()) for w in weights]
    groups = [
        ParamGroup(label="a", params=[params[0], params[2], params[3]]),
        ParamGroup(label="b", params=[params[1]], decay=False),
    ]
    recipe = dataclasses.replace(RECIPE, optimizer="lars", betas=(0.9, 0.0), weight_decay=0.02)
    method = SimpleNamespace(groups=lambda: groups, named_parameters=list, modules=list)
    optimizer = make_optimizer(method, recipe)
    velocities = [torch.zeros_like(w) for w in weights]
    for step in range(4):
        lr = schedule(optimizer, recipe, Clock(step, 4, 0.0))
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape) if (i, step) != (3, 1) else torch.zeros(p.shape)
            decay = None if i == 1 else 0.02
            weights[i], velocities[i] = by_hand(
                weights[i], p.grad, velocities[i], lr, momentum=0.9, decay=decay
            )
        optimizer.step()
        for p, w in zip(params, weights, strict=True):
            torch.testing.assert_close(p.detach(), w, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- weight decay
def decaying(encoder: nn.Module, *kinds: str) -> set[str]:
    """Names of what decays."""
    groups = param_groups.with_decay(param_groups.standard(encoder, "encoder"), encoder, kinds)
    names = {id(p): name for name, p in encoder.named_parameters()}
    found = [names[id(p)] for group in groups for p in group.params]
    assert sorted(found) == sorted(names.values())
    assert len({group.label for group in groups}) == len(groups)
    return {names[id(p)] for group in groups if group.decay for p in group.params}


def test_what_decays_in_a_vit_with_registers():
    encoder = Net().encoder
    matrices = decaying(encoder)
    assert decaying(encoder, "token") - matrices == {"cls_token", "reg_token"}
    assert decaying(encoder, "position") - matrices == {"pos_embed"}
    vectors = {name for name, p in encoder.named_parameters() if p.ndim == 1}
    assert "norm.weight" in vectors
    assert decaying(encoder, "vector") - matrices == vectors
    assert decaying(encoder, "table") == matrices
    every = decaying(encoder, "token", "position", "table", "vector")
    assert every == {name for name, _ in encoder.named_parameters()}


@pytest.mark.parametrize("bias", ["shared", "layer"])
def test_what_decays_in_a_beit_with_tables(bias):
    shape = {"depth": 2, "dim": 16, "heads": 2, "hidden": 16}
    encoder = backbones.build(name="beit-ti/16", image_size=32, bias=bias, **shape)
    matrices = decaying(encoder)
    tables = decaying(encoder, "table") - matrices
    assert tables
    assert all("bias" in name or "table" in name for name in tables)
    assert len(tables) == (1 if bias == "shared" else 2)
    assert "cls_token" in decaying(encoder, "token") - matrices


def test_what_decays_in_a_text_tower():
    """Its positions are a matrix, which decays as open_clip's does; norms and biases are vectors."""
    text = TextTower(vocabulary=20, end=19, context=6, depth=1, dim=8, heads=2, out=8)
    matrices = decaying(text)
    assert {name for name, p in text.named_parameters() if p.ndim > 1} == matrices
    assert decaying(text, "vector") == {name for name, _ in text.named_parameters()}
    assert decaying(text, "token", "position", "table") == matrices


# ---------------------------------------------------------------- groups that age
def test_a_group_that_ages_stands_still_while_its_moments_grow():
    torch.manual_seed(0)
    layers = [nn.Linear(3, 3) for _ in range(3)]
    kinds = ({}, {"frozen_until": 2.0}, {"frozen_until": 2.0, "ages": True})
    groups = [
        ParamGroup(label=str(i), params=list(layer.parameters()), **options)
        for i, (layer, options) in enumerate(zip(layers, kinds, strict=True))
    ]
    method = SimpleNamespace(groups=lambda: groups, named_parameters=list, modules=list)
    recipe = dataclasses.replace(RECIPE, weight_decay=0.5)
    optimizer = make_optimizer(method, recipe)
    before = copy.deepcopy(layers)
    moments = []
    for step in range(4):
        clock = Clock(step, 8, step / 2, 4.0)
        schedule(optimizer, recipe, clock)
        freeze(optimizer, clock)
        optimizer.zero_grad()
        x = torch.randn(5, 3)
        for layer in layers:
            x = layer(x)
        x.square().sum().backward()
        optimizer.step()
        still = [torch.equal(a.weight, b.weight) for a, b in zip(layers, before, strict=True)]
        assert still == [False, True, True]
        assert layers[1].weight not in optimizer.state
        moments.append(optimizer.state[layers[2].weight]["exp_avg_sq"].sum().item())
    assert moments == sorted(moments)
    assert moments[0] > 0
    assert optimizer.state[layers[2].weight]["step"] == 4
    clock = Clock(4, 8, 2.0, 4.0)
    schedule(optimizer, recipe, clock)
    assert all(group["lr"] > 0 for group in optimizer.param_groups)


# ---------------------------------------------------------------- two processes
def trained(net: Net, recipe: Recipe, steps: range, folder: Path | None = None) -> dict[str, torch.Tensor]:
    """Weights after some steps; folder: of a checkpoint to go on from, and to write after half of them."""
    optimizer = make_optimizer(net, recipe)
    for step in steps:
        if folder is not None and step == steps[len(steps) // 2]:
            optimizer = saved_and_loaded(net, optimizer, recipe, folder)
        schedule(optimizer, recipe, Clock(step, 8, step / 4))
        optimizer.zero_grad()
        net(inputs(step)).backward()
        present = [p.grad for p in net.parameters() if p.grad is not None]
        clipping.clip(optimizer, recipe.clip, recipe.clip_by, clipping.norm(present))
        optimizer.step()
    return {name: to_full(p.detach()) for name, p in net.named_parameters()}


def saved_and_loaded(net, optimizer, recipe, folder):
    """Another optimizer, with what a checkpoint of the first holds, and the network's weights from there."""
    checkpoint.save(folder, net, optimizer, step=1, total=8, elapsed=0.0, notes={})
    torch.manual_seed(5)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    new = make_optimizer(net, recipe)
    saved, damaged = checkpoint.newest(folder, together=True)
    assert not damaged
    checkpoint.restore(saved, net, new)
    return new


RULES = {
    "all": {"clip_by": "all"},
    "part": {"clip_by": "part"},
    "tensor": {"clip_by": "tensor", "decayed": ("token", "position", "vector")},
    "lars": {"optimizer": "lars", "clip_by": "tensor", "lr": 10.0},
}


def main(rank: int, folder: Path) -> None:
    """One of two processes that train the same images, with sharded blocks, and resume half way."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    results = {}
    for name, options in RULES.items():
        net = Net()
        fsdp.shard(net, torch.device("cpu"), torch.float32)
        assert any(is_sharded(p) for p in net.parameters())
        recipe = dataclasses.replace(RECIPE, **options)
        results[name] = trained(net, recipe, range(4), folder / name)
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_sharded_networks_are_clipped_trained_and_resumed_as_whole_ones(tmp_path):
    two = processes.run(__file__, tmp_path)
    for name, options in RULES.items():
        want = trained(Net(), dataclasses.replace(RECIPE, **options), range(4))
        for result in two:
            for parameter, value in want.items():
                torch.testing.assert_close(result[name][parameter], value, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("name", RULES)
def test_resumed_bit_for_bit(name, tmp_path):
    recipe = dataclasses.replace(RECIPE, **RULES[name])
    whole, parted = trained(Net(), recipe, range(4)), trained(Net(), recipe, range(4), tmp_path)
    assert all(torch.equal(value, parted[key]) for key, value in whole.items())
    assert any(not torch.equal(value, dict(Net().named_parameters())[key]) for key, value in whole.items())
