"""The rate of every step, beside published schedulers; warm-ups in epochs; rates for other batches."""

import dataclasses
import itertools

import pytest

from omma.core.recipe import Clock, Recipe, Schedule
from omma.train.loop import Position
from omma.train.schedules import learning_rate

PER_EPOCH, EPOCHS = 3, 6
RECIPE = Recipe(config=None, batch=4, lr=0.8, lr_end=0.05, warmup_epochs=2)
# each scheduler's own output for 6 epochs of 3 steps, 2 of them warm-up, from 0 to .8 and down to .05
PUBLISHED = {
    # facebookresearch/dino 7c446df, utils.cosine_scheduler; bytedance/ibot da316d8 has the same
    "dino": ({"schedule": Schedule(ramp="closed")}, [
        0, 0.16, 0.32, 0.48, 0.64, 0.8, 0.8, 0.7872222, 0.7497595, 0.690165, 0.6125, 0.5220571,
        0.425, 0.3279429, 0.2375, 0.159835, 0.1002405, 0.06277782,
    ]),
    # facebookresearch/dinov2 b8931f7, utils.utils.CosineScheduler
    "dinov2": ({"schedule": Schedule(ramp="closed")}, [
        0, 0.16, 0.32, 0.48, 0.64, 0.8, 0.8, 0.7872222, 0.7497595, 0.690165, 0.6125, 0.5220571,
        0.425, 0.3279429, 0.2375, 0.159835, 0.1002405, 0.06277782,
    ]),
    # microsoft/unilm 768a3c8, beit/utils.cosine_scheduler, from .01; EVA-01 has the same
    "beit": ({"schedule": Schedule(ramp="closed", start=0.01)}, [
        0.01, 0.168, 0.326, 0.484, 0.642, 0.8, 0.8, 0.7872222, 0.7497595, 0.690165, 0.6125,
        0.5220571, 0.425, 0.3279429, 0.2375, 0.159835, 0.1002405, 0.06277782,
    ]),
    # facebookresearch/mae efb2a80, util/lr_sched.adjust_learning_rate
    "mae": ({"schedule": Schedule(ramp="open")}, [
        0, 0.1333333, 0.2666667, 0.4, 0.5333333, 0.6666667, 0.8, 0.7872222, 0.7497595, 0.690165,
        0.6125, 0.5220571, 0.425, 0.3279429, 0.2375, 0.159835, 0.1002405, 0.06277782,
    ]),
    # facebookresearch/moco-v3 c349e6e, main_moco.adjust_learning_rate
    "moco v3": ({"schedule": Schedule(ramp="open"), "lr_end": 0.0}, [
        0, 0.1333333, 0.2666667, 0.4, 0.5333333, 0.6666667, 0.8, 0.7863703, 0.7464102, 0.6828427,
        0.6, 0.5035276, 0.4, 0.2964724, 0.2, 0.1171573, 0.05358984, 0.01362967,
    ]),
    # microsoft/SimMIM d3e29bc, lr_scheduler.build_scheduler with timm 1.0.31's CosineLRScheduler, from
    # .01, in the order of main_simmim.train_one_epoch
    "simmim cosine": ({"schedule": Schedule(ramp="open", start=0.01, whole=True, late=True)}, [
        0.01, 0.01, 0.1416667, 0.2733333, 0.405, 0.5366667, 0.6683333, 0.6125, 0.5532576, 0.4901181,
        0.425, 0.3598819, 0.2967424, 0.2375, 0.1839546, 0.1377333, 0.1002405, 0.07261527,
    ]),
    # the same, its MultiStepLRScheduler with drops after 4 and 5 epochs
    "simmim multistep": ({"schedule": Schedule(ramp="open", start=0.01, late=True, drops=(4 / 6, 5 / 6))}, [
        0.01, 0.01, 0.1416667, 0.2733333, 0.405, 0.5366667, 0.6683333, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8,
        0.08, 0.08, 0.08, 0.008, 0.008,
    ]),
    # facebookresearch/deit 7e160fe, main.py: timm 1.0.31's CosineLRScheduler, from .01, after each epoch
    "deit": ({"schedule": Schedule(ramp="open", start=0.01, whole=True, by="epoch", late=True)}, [
        0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.405, 0.405, 0.405, 0.6125, 0.6125, 0.6125, 0.425,
        0.425, 0.425, 0.2375, 0.2375, 0.2375,
    ]),
    # mlfoundations/open_clip 89fb801, open_clip_train.scheduler.cosine_lr
    "open_clip": ({"schedule": Schedule(), "lr_end": 0.0}, [
        0.1333333, 0.2666667, 0.4, 0.5333333, 0.6666667, 0.8, 0.8, 0.7863703, 0.7464102, 0.6828427,
        0.6, 0.5035276, 0.4, 0.2964724, 0.2, 0.1171573, 0.05358984, 0.01362967,
    ]),
    # google-research/simclr 383d414, tf2.model.WarmUpAndCosineDecay on numbers of Python's, 19 steps
    "simclr": ({"schedule": Schedule(ramp="open"), "lr_end": 0.0}, [
        0, 0.1333333, 0.2666667, 0.4, 0.5333333, 0.6666667, 0.8, 0.7883767, 0.7541824, 0.6994043,
        0.6272259, 0.541842, 0.4482147, 0.3517853, 0.258158, 0.1727741, 0.1005957, 0.04581759,
        0.01162327,
    ]),
}  # fmt: skip


def clock(step: int, total: int) -> Clock:
    return Clock(step, total, step / PER_EPOCH, total / PER_EPOCH)


def rates(recipe: Recipe, total: int = EPOCHS * PER_EPOCH) -> list[float]:
    return [learning_rate(clock(step, total), recipe) for step in range(total)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_step_has_the_published_rate(name):
    options, numbers = PUBLISHED[name]
    recipe = dataclasses.replace(RECIPE, **options)
    assert rates(recipe, len(numbers)) == pytest.approx(numbers, rel=1e-6, abs=1e-9)


def test_epochs_of_so_many_steps():
    """DINOv2 counts 1,250 steps as an epoch, whatever the images are."""
    position = Position(step=50, total=200, batch=8, images=100, epoch_steps=10)
    now = position.clock()
    assert (now.epoch, now.epochs, now.steps(2), now.passes) == (5, 20, 20, 4)
    assert now.passes == dataclasses.replace(position, epoch_steps=None).clock().passes


@pytest.mark.parametrize("ramp", ["next", "closed", "open"])
def test_a_run_too_short_for_its_warmup_takes_a_share(ramp):
    """Its rates rise to the peak and fall again, whatever its length, and change at each step."""
    schedule = Schedule(ramp=ramp, by="epoch", late=True)
    recipe = dataclasses.replace(RECIPE, warmup=0.25, warmup_epochs=40, schedule=schedule)
    for total in range(1, 40):
        assert recipe.shortened(clock(0, total))
        row = rates(recipe, total)
        peak = row.index(max(row))
        assert max(row) == pytest.approx(0.8, rel=0.15 if ramp == "open" else 1e-9), total
        assert peak <= 0.25 * total + 2
        assert row[:peak] == sorted(row[:peak])
        assert row[peak:] == sorted(row[peak:], reverse=True)
        assert len(set(row)) >= total - 3


def test_no_jump_where_the_total_changes():
    """A run that ends at a time corrects its total: its rate moves with it, and by little."""
    recipe = dataclasses.replace(RECIPE, warmup_epochs=100)
    for step in (10, 100, 250, 299):
        row = [learning_rate(clock(step, total), recipe) for total in range(300, 600)]
        assert max(abs(a - b) for a, b in itertools.pairwise(row)) < 0.04  # of .8
    lengths = [recipe.warmup_steps(clock(0, total)) for total in (150, 300, 375, 3000)]
    assert lengths == pytest.approx([15, 30, 300, 300])
    assert [recipe.shortened(clock(0, total)) for total in (150, 300, 374, 375)] == [True, True, True, False]


def test_without_a_warmup():
    recipe = dataclasses.replace(RECIPE, warmup_epochs=0, schedule=Schedule(ramp="closed"))
    assert not recipe.shortened(clock(0, 3))
    assert rates(recipe)[0] == 0.8


@pytest.mark.parametrize(("rule", "factor"), [("linear", 0.25), ("sqrt", 0.5), ("none", 1.0)])
def test_the_rate_follows_the_batch(rule, factor):
    recipe = Recipe(
        config=None, batch=1024, lr=0.4, lr_end=0.02, rate_by_batch=rule, schedule=Schedule(start=0.1)
    )
    other = recipe.for_batch(256)
    assert (other.batch, other.lr_end, other.schedule.start) == (256, 0.02, 0.1)
    assert other.lr == pytest.approx(0.4 * factor)
    scaled = dataclasses.replace(recipe, schedule=Schedule(start=0.1, scaled=True)).for_batch(256)
    assert (scaled.lr_end, scaled.schedule.start) == pytest.approx((0.02 * factor, 0.1 * factor))
    back = scaled.for_batch(1024)
    assert (back.lr, back.lr_end, back.schedule.start) == pytest.approx((0.4, 0.02, 0.1))


def test_nonsense_is_refused():
    for name, value in (("warmup_epochs", -1), ("epoch_steps", 0), ("clip", 0.0), ("warmup", 1.0)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            dataclasses.replace(RECIPE, **{name: value})
