"""The loop: schedules, groups, freezing, steps that are refused."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from omma import backbones, weights
from omma.backbones import layers
from omma.backbones.layers.frozen import Frozen
from omma.core.protocols import Batch, Clock, Extras, Key, ParamGroup, Preprocess, Recipe, StepOutput
from omma.ops.batch_norm import BatchNorm
from omma.train.loop import Position, train
from omma.train.optimizer import make_optimizer, schedule
from omma.train.precision import Cast


class Toy(nn.Module):
    """A line; the second layer is frozen for the first epoch."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)
        self.seen = []
        self.after = 0

    def forward(self, batch, clock):
        self.seen.append(float(torch.rand(())))
        out = self.b(self.a(batch.views[0]))
        return StepOutput(out.square().mean(), {"out": out.detach().mean()}, 1)

    def after_step(self, clock, carries):
        self.after += len(carries)

    def groups(self):
        yield ParamGroup(label="a", params=list(self.a.parameters()), lr_scale=0.5)
        yield ParamGroup(label="b", params=list(self.b.parameters()), decay=False, frozen_until=1.0)


RECIPE = Recipe(config=None, batch=4, lr=0.1, lr_end=0.01, warmup=0.2, weight_decay=0.1, weight_decay_end=0.4)


def batches(n=100, value=1.0):
    return (Batch((torch.full((4, 1), value),), Key(0, None, None), None) for _ in range(n))


def test_schedule_reaches_its_peak_and_its_end():
    optimizer = make_optimizer(Toy(), RECIPE)
    rates, decays = [], []
    for step in range(100):
        rates.append(schedule(optimizer, RECIPE, Clock(step, 100, 0.0)))
        decays.append(optimizer.param_groups[0]["weight_decay"])
    assert rates[0] == pytest.approx(0.1 / 20)
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) in (19, 20)
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)
    assert decays[0] == pytest.approx(0.1)
    assert decays[-1] == pytest.approx(0.4, abs=1e-3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rates[-1] * 0.5)
    assert optimizer.param_groups[1]["weight_decay"] == 0


def test_a_group_is_frozen_for_as_long_as_it_says():
    toy = Toy()
    before = toy.b.weight.clone()
    optimizer = make_optimizer(toy, RECIPE)
    position = Position(0, 5, 4, 8)  # two steps an epoch
    frozen = []
    for _ in train(toy, optimizer, batches(), RECIPE, position):
        frozen.append(torch.equal(toy.b.weight, before))
    assert frozen == [True, True, False, False, False]


def test_randomness_in_a_step_depends_on_seed_and_step_alone():
    def seen(first, seed):
        toy = Toy()
        position = Position(first, 6, 4, 8)
        list(train(toy, make_optimizer(toy, RECIPE), batches(), RECIPE, position, seed=seed))
        return toy.seen

    assert seen(0, 1)[3:] == seen(3, 1)
    assert seen(0, 1) != seen(0, 2)


def test_accumulation_hands_every_carry_over():
    toy = Toy()
    list(train(toy, make_optimizer(toy, RECIPE), batches(), RECIPE, Position(0, 3, 4, 8), accumulate=4))
    assert toy.after == 12


def test_the_next_batch_is_asked_for_within_a_step_and_none_at_the_end():
    """Of a batch in two parts the first is there early, the second when its turn comes."""
    for accumulate, early in ((1, [2, 3, 3]), (2, [3, 5, 6])):
        asked = []
        source = (asked.append(1) or batch for batch in batches())
        toy = Toy()
        steps = train(
            toy, make_optimizer(toy, RECIPE), source, RECIPE, Position(0, 3, 4, 8), accumulate=accumulate
        )
        assert [len(asked) for _ in steps] == early


def test_a_rejected_step_is_reported_and_training_goes_on():
    toy = Toy()
    stream = [*batches(2), *batches(1, float("inf")), *batches(2)]
    steps = list(train(toy, make_optimizer(toy, RECIPE), iter(stream), RECIPE, Position(0, 5, 4, 8)))
    assert [step.rejected is not None for step in steps] == [False, False, True, False, False]
    assert toy.after == 4
    assert all(torch.isfinite(p).all() for p in toy.parameters())


def test_the_total_may_change_while_it_runs():
    toy = Toy()
    position = Position(0, 100, 4, 8)
    done = 0
    for _ in train(toy, make_optimizer(toy, RECIPE), batches(), RECIPE, position):
        done += 1
        if done == 3:
            position.total = 5
    assert done == 5


def test_recipes_refuse_nonsense():
    with pytest.raises(ValueError, match="lr"):
        dataclasses.replace(RECIPE, lr=0.0)
    with pytest.raises(ValueError, match="warmup"):
        dataclasses.replace(RECIPE, warmup=1.0)


def test_what_bf16_leaves_alone():
    """Batch norms, single numbers, and what picks a frozen tokenizer's codes."""
    seen = {}

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.norm = nn.Parameter(torch.tensor(2.6592)), BatchNorm(4)
            self.linear = nn.Linear(4, 4)
            self.frozen = Frozen(trained, None, "codes")

        def forward(self, batch, clock):
            seen.update({n: p.dtype for n, p in self.named_parameters()}, weight=self.frozen.weight.dtype)
            seen["codes"] = self.frozen(batch.views[0].bfloat16(), (2, 2)).dtype
            return StepOutput(self.scale * self.linear.weight.sum(), {})

    encoder = backbones.build(name="vit/8", image_size=16, depth=1, dim=12, heads=2, hidden=24)
    seen_as = Preprocess(size=16, channels=3, low=(0,) * 3, high=(1,) * 3, mean=(0,) * 3, std=(1,) * 3)
    trained = weights.Model(encoder, seen_as, extras=Extras({"codes.weight": torch.randn(5, 12)}))
    batch = Batch((torch.zeros(2, 3, 16, 16),), Key(0, None, None))
    Cast(Parts(), torch.bfloat16)(batch, Clock(0, 1, 0.0)).loss.backward()
    assert seen["linear.weight"] == seen["frozen.encoder.norm.weight"] == torch.bfloat16
    assert seen["scale"] == seen["norm.weight"] == seen["weight"] == seen["codes"] == torch.float32


@pytest.mark.parametrize("tokens", [17, 65])
def test_bf16_gradients_are_those_of_fp64(tokens):
    """Every parameter's, those of layer norms too, which torch's own kernel sums in bf16 on a CPU."""
    torch.manual_seed(0)
    x, weight = torch.randn(64, tokens, 96).bfloat16(), torch.randn(64, tokens, 96).double()

    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = layers.blocks(layers.Size(2, 96, 3))

        def forward(self, batch, clock):
            return StepOutput((self.blocks(*batch.views).double() * weight).sum(), {})

    net = Blocks()
    net.apply(layers.init_linear)
    exact = copy.deepcopy(net).double()
    for call, view in ((Cast(net, torch.bfloat16), x), (exact, x.double())):
        call(Batch((view,), Key(0, None, None), None), Clock(0, 1, 0.0)).loss.backward()
    for (name, ours), theirs in zip(net.named_parameters(), exact.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() < 0.015 * theirs.grad.norm(), name
