"""Where a step's time goes: every second has one owner, and a run is the same with and without the watch."""

import contextlib
import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as global_hooks

from omma import backbones, methods
from omma.core import protocols
from omma.core.protocols import Backbone, Batch, Clock, Context, Features, Key, ParamGroup, Recipe, StepOutput
from omma.ops import linear
from omma.ops.cost import Flops
from omma.train import ema, profile
from omma.train.loop import Position, train
from omma.train.optimizer import make_optimizer
from omma.train.precision import Cast
from omma.train.profile import OFF, Phase, Profiler

CPU = torch.device("cpu")
RECIPE = Recipe(config=None, batch=4, lr=0.01, clip=None)


class Time:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds


TIME = Time()


class Spends(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.weight = seconds, nn.Parameter(torch.ones(1))

    def forward(self, x):
        TIME.spend(self.seconds)
        return x * self.weight


class Encoder(Backbone):
    patch, dim = 1, 3

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Spends(2.0), Spends(1.0))

    def tokenize(self, images, keep=None):
        return images

    def encode(self, tokens, grid, keep=None):
        return Features(self.blocks(tokens).flatten(1), tokens, grid)


class Toy(protocols.Method):
    """Every part takes a number of seconds of its own."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.teacher = ema.teacher_of(self.encoder)
        self.head = nn.Sequential(Spends(4.0), nn.Sequential(Spends(8.0)))

    def forward(self, batch, clock):
        (x,) = batch.views
        TIME.spend(0.25)
        student = self.head(self.encoder.encode(self.encoder.tokenize(x), (1, 1)).pooled)
        with torch.no_grad():
            self.teacher(x)
        student.register_hook(lambda gradient: TIME.spend(16.0))
        TIME.spend(0.5)
        return StepOutput(student.square().mean(), {})

    def after_step(self, clock, carries):
        TIME.spend(32.0)

    def groups(self):
        trained = [*self.encoder.parameters(), *self.head.parameters()]
        yield ParamGroup(label="all", params=trained)


def batches(watch):
    while True:
        TIME.spend(64.0)
        watch.to(Phase.VIEWS)
        TIME.spend(128.0)
        yield Batch((torch.ones(4, 3),), Key(0, np.zeros(4, int), np.arange(4)), None)


def run(steps, accumulate=1, watched=True, stop=None):
    """Train a toy; what is found on the way, and at the end."""
    torch.manual_seed(0)
    toy = Toy()
    watch = Profiler(toy, CPU, torch.float32) if watched else OFF
    loop = train(
        toy, make_optimizer(toy, RECIPE), batches(watch), RECIPE, Position(0, steps, 4, 8),
        accumulate=accumulate, watch=watch,
    )  # fmt: skip
    taken = []
    with contextlib.closing(watch):
        for step in loop:
            TIME.spend(256.0)
            taken.append(watch.pop_profile(4))
            if step.clock.step == stop:
                break
    taken.append(watch.pop_profile(4))
    return toy, [found for found in taken if found is not None]


def hooks():
    return len(global_hooks._global_forward_hooks) + len(global_hooks._global_forward_pre_hooks)


@pytest.fixture
def timed(monkeypatch):
    monkeypatch.setattr(profile, "perf_counter", TIME)
    monkeypatch.setattr("omma.core.device.best_product", lambda device, dtype: 1e9)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_second_has_one_owner(timed, accumulate):
    _, (found,) = run(40, accumulate)
    each = {
        Phase.WAIT: 64.0, Phase.VIEWS: 128.0, Phase.STUDENT: 3.0, Phase.TEACHER: 3.0, Phase.HEADS: 12.0,
        Phase.LOSS: 0.75, Phase.BACKWARD: 16.0,
    }  # fmt: skip
    once = {Phase.OPTIMIZER: 0.0, Phase.AFTER: 32.0, Phase.REST: 256.0}
    assert found.parts == {part: s * accumulate for part, s in each.items()} | once
    assert list(found.parts) == list(Phase)
    assert found.steps == [found.seconds] * profile.STEPS
    assert found.working == found.seconds - 256.0
    assert found.images_per_second == 4 / found.working
    assert found.record()["parts"]["readings, saving"]["ms"] == 256_000


@pytest.mark.parametrize(("steps", "timed_"), [(2, 1), (3, 2), (10, 5), (27, 19), (28, 20), (29, 20)])
def test_short_runs_are_profiled_as_far_as_they_go(timed, steps, timed_):
    _, (found,) = run(steps)
    assert len(found.steps) == timed_
    whole = 0.75 + 3 + 3 + 12 + 16 + 32 + 64 + 128 + 256
    ends = steps <= 28  # the last step of a run fetches nothing for a next one
    assert found.steps == [whole] * (timed_ - 1) + [whole - 192 if ends else whole]


def test_a_run_that_is_stopped_tells_what_it_has(timed):
    assert len(run(100, stop=10)[1][0].steps) == 3  # the ninth to the eleventh
    assert run(100, stop=3)[1] == []
    assert run(1)[1] == []


def test_hooks_are_there_only_while_steps_are_timed(timed, monkeypatch):
    seen = []
    monkeypatch.setattr(Toy, "after_step", lambda *_: seen.append(hooks()))
    run(40)
    assert seen == [0] * profile.WARM_UPS + [2] * profile.STEPS + [0] * (40 - 28)

    def broken(*_):
        if hooks():
            raise RuntimeError("broken")

    monkeypatch.setattr(Toy, "after_step", broken)
    with pytest.raises(RuntimeError, match="broken"):
        run(40)
    assert hooks() == 0


def test_the_run_is_the_same_with_and_without(timed):
    watched, plain = run(12)[0].state_dict(), run(12, watched=False)[0].state_dict()
    assert all(torch.equal(watched[name], plain[name]) for name in plain)


@pytest.mark.parametrize("method", ["dino", "moco", "mae"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_real_methods_have_the_parts_that_they_have(method, dtype, monkeypatch):
    """And the operations of the counted step are those of its forward and backward pass."""
    monkeypatch.setattr("omma.core.device.best_product", lambda device, dtype: 1e9)
    file = methods.get(method)
    encoder = backbones.build(name="vit/8", image_size=16, depth=2, dim=24, heads=2, hidden=48)
    config = file.small(16, "vit-n/4").config
    built = file.Method(encoder, config, Context(image_size=16))
    views = tuple(torch.randn(4, crop.count, 3, 16, 16) for crop in file.views(config, 16))
    batch = Batch(views, Key(0, np.zeros(4, int), np.arange(4)), None)
    linear._onednn_has_bf16()  # asks once by a product
    with Flops() as by_hand:
        Cast(copy.deepcopy(built), dtype)(batch, Clock(0, 1, 0.0)).loss.backward()
    watch = Profiler(built, CPU, dtype)
    loop = train(
        built, make_optimizer(built, RECIPE), itertools.repeat(batch), RECIPE, Position(0, 4, 4, 8),
        dtype=dtype, watch=watch,
    )  # fmt: skip
    list(loop)
    watch.close()
    found = watch.pop_profile(4)
    assert found is not None
    assert found.flops == by_hand.total > 0
    assert (found.parts[Phase.TEACHER] > 0) == (method != "mae")
    for part in (Phase.STUDENT, Phase.HEADS, Phase.LOSS, Phase.BACKWARD, Phase.OPTIMIZER):
        assert found.parts[part] > 0
    assert found.parts[Phase.VIEWS] == 0


def test_a_frozen_network_and_what_wraps_it_are_the_teacher(timed):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.layer = Encoder(), nn.Linear(1, 1)

    toy = Toy()
    toy.frozen = Wrapped()
    found = profile.phases_by_module(toy)
    assert found[id(toy)] is Phase.LOSS
    assert {found[id(m)] for m in toy.frozen.modules()} == {Phase.TEACHER}
    assert {found[id(m)] for m in toy.encoder.modules()} == {Phase.STUDENT}
    assert {found[id(m)] for m in toy.head.modules()} == {Phase.HEADS}
