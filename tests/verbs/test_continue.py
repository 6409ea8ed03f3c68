"""`omma pretrain --init`: heads first, then the encoder; retention of what it knew; resumed, refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

import omma
from omma import backbones, methods, weights
from omma.core.protocols import Clock, Context, Features, ParamGroup, Preprocess
from omma.data.sources.collection import ArrayImages
from omma.pretraining import choose, health, retention
from omma.pretraining.events import Plan, Progress, Read
from omma.pretraining.folder import RunFolder
from omma.pretraining.monitor import Monitor
from omma.pretraining.request import Request
from omma.train import checkpoint, fine_tune_groups
from omma.train.budget import Timekeeper
from omma.train.loop import Position
from omma.train.optimizer import make_optimizer, schedule
from omma.verbs.pretrain import pretrain

SIZE = 16
HOW = {"batch_size": 8, "device": "cpu", "precision": "fp32"}
ALL = ("dino", "mae", "simclr")
LITTLE = {"prototypes": 64, "head_hidden": 32, "head_bottleneck": 16, "hidden": 32, "out": 16}
SPEC = {"name": "vit-n/8", "image_size": SIZE, "depth": 2, "registers": 2, "layer_scale": 0.1}


def pictures(n=48, labels=False, channels=3, size=SIZE):
    """Stripes in four directions, noise, and any brightness."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    stripes = np.sin(np.stack([0.8 * x, 0.8 * y, 0.6 * (x + y), 0.6 * (x - y)]))
    kind = np.arange(n) % 4
    noise = rng.normal(0, 25, (n, size, size, channels)) + rng.normal(0, 25, (n, 1, 1, 1))
    pixels = (128 + 60 * stripes[kind][..., None] + noise).clip(0, 255).astype(np.uint8)
    return ArrayImages(pixels, kind if labels else None, tuple("abcd") if labels else ())


@pytest.fixture
def first(tmp_path):
    """Weights of a network with options of its own, as other tools' networks have them."""
    return made(tmp_path / "first")


def made(folder, spec=SPEC):
    torch.manual_seed(7)
    encoder = backbones.build(**spec)
    for p in encoder.parameters():  # nothing is as it was initialised
        p.data += 0.01 * torch.randn_like(p)
    c = encoder.channels
    prepared = Preprocess(
        size=SIZE, channels=c, low=(0.0,) * c, high=(255.0,) * c, mean=(0.4,) * c, std=(0.2,) * c
    )
    weights.save(folder, encoder, prepared, {"method": "elsewhere"})
    return folder


def little(method):
    fields = {f.name for f in dataclasses.fields(methods.get(method).Config)}
    return {k: v for k, v in LITTLE.items() if k in fields}


def go_on(first, out, method="simclr", images=None, **options):
    options = {"steps": 8, "options": little(method), **HOW, **options}
    return pretrain(images or pictures(), init=first, out=out, method=method, **options)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def parameters(state, prefix):
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


# ---------------------------------------------------------------- heads first
@pytest.mark.report
@pytest.mark.parametrize("method", ALL)
def test_heads_learn_at_once_and_the_encoder_after_the_warm_up(tmp_path, first, method):
    run, states, plans = RunFolder(tmp_path / "run"), {}, []

    def listen(event):
        saved, _ = checkpoint.newest(run.checkpoints)
        if isinstance(event, Progress) and saved is not None:
            states[saved.step] = saved.method
        elif isinstance(event, Plan):
            plans.append(event)

    go_on(first, run.path, method, head_warmup=0.5, checkpoint_every=1e-9, listen=listen)
    start = omma.load(first).encoder.state_dict()
    unchanged = [same(parameters(states[k], "encoder."), start) for k in range(1, 8)]
    assert unchanged == [True] * 4 + [False] * 3
    if method == "dino":  # the teacher starts as the student, and follows it only when that moves
        assert [same(parameters(states[k], "teacher."), start) for k in range(1, 8)] == unchanged
    heads = [
        {n: x for n, x in states[k].items() if n.split(".")[0] in ("head", "decoder")} for k in (1, 2, 3)
    ]
    assert heads[0]
    assert not same(heads[0], heads[1])
    assert not same(heads[1], heads[2])
    (plan,) = plans
    assert (plan.choice.model, plan.choice.image_size) == ("vit-n/8", SIZE)
    assert any("frozen for the first 50% of the run, then learns at 0.1" in note for note in plan.notes)
    assert {what for what, why in plan.choice.reasons if str(first) in why} == {
        "model vit-n/8", f"image size {SIZE}",
    }  # fmt: skip
    trained = omma.load(run.path)
    assert trained.encoder.spec() == omma.load(first).encoder.spec()
    assert trained.provenance["init"]["source"] == str(first)
    assert trained.provenance["init"]["digest"] == omma.load(first).digest
    assert trained.preprocess == omma.load(first).preprocess
    assert "Started from" in run.report.read_text()


@pytest.mark.parametrize("method", ALL)
def test_the_encoder_learns_more_slowly(first, method):
    file = methods.get(method)
    recipe = file.small(SIZE, "vit-n/8")
    config = dataclasses.replace(recipe.config, **little(method))
    built = file.Method(omma.load(first).encoder, config, Context(image_size=SIZE))
    optimizer = make_optimizer(built, recipe, fine_tune_groups.groups(built, 0.1, 0.25))
    schedule(optimizer, recipe, Clock(50, 100, 0.0))
    inside = {id(p) for p in built.encoder.parameters()}
    rates = {True: set(), False: set()}
    for group in optimizer.param_groups:
        (where,) = {id(p) in inside for p in group["params"]}
        rates[where].add((group["lr"], group["frozen_share"]))
    (slow, frozen), (fast, free) = rates[True].pop(), rates[False].pop()
    assert not rates[True]
    assert not rates[False]
    assert slow == pytest.approx(0.25 * fast)
    assert (frozen, free) == (0.1, 0.0)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for g in built.groups() for p in g.params
    }


def test_mixed_groups_are_parted_and_a_method_without_heads_is_never_frozen():
    class Toy:
        encoder = torch.nn.Linear(1, 1)
        head = torch.nn.Linear(1, 1)
        mixed = True

        def groups(self):
            heads = list(self.head.parameters()) if self.mixed else []
            yield ParamGroup(label="all", params=[*self.encoder.parameters(), *heads], lr_scale=2.0)

    own, rest = fine_tune_groups.groups(Toy(), 0.1, 0.5)
    assert (own.lr_scale, own.frozen_share, len(own.params)) == (1.0, 0.1, 2)
    assert (rest.lr_scale, rest.frozen_share, len(rest.params)) == (2.0, 0.0, 2)
    Toy.mixed = False
    (own,) = fine_tune_groups.groups(Toy(), 0.1, 0.5)
    assert (own.lr_scale, own.frozen_share) == (1.0, 0.0)


def test_statistics_of_a_frozen_convolutional_stem_follow_the_images(tmp_path):
    first = made(tmp_path / "first", {"name": "vitc-15mf", "image_size": SIZE})
    go_on(first, tmp_path / "run", head_warmup=0.99, steps=3)
    before, now = omma.load(first).encoder, omma.load(tmp_path / "run").encoder
    assert same(dict(before.named_parameters()), dict(now.named_parameters()))
    assert not same(dict(before.named_buffers()), dict(now.named_buffers()))


def test_the_clock_is_not_corrected_while_steps_are_quicker_than_later_ones():
    position = Position(0, 100, 4, 8)
    clock = Timekeeper(1000.0)
    for step in range(1, 21):
        position.step = step
        clock.correct(position, steady=False)
    assert position.total == 100
    clock.before = 1000.0
    clock.correct(position, steady=False)  # the end is kept all the same
    assert position.total == position.step


# ---------------------------------------------------------------- retention
@pytest.mark.report
def test_a_healthy_run_is_told_from_one_that_destroys_what_was_known(tmp_path, first):
    images = pictures(2000, labels=True)
    reads = {}
    for name, lr in (("healthy", 1e-3), ("destroyed", 1.0)):
        reads[name] = []

        def listen(event, reads=reads[name]):
            if isinstance(event, Read):
                reads.append(event)

        go_on(first, tmp_path / name, "mae", images, lr=lr, steps=16, listen=listen, checkpoint_every=1e-9)
    for read, *later in reads.values():
        assert (read.step, read.retained) == (0, None)
        assert read.knn > 0.9
        assert later[-1].retained.knn_start == read.knn
    good, bad = (reads[name][-1] for name in ("healthy", "destroyed"))
    assert not good.retained.worse
    assert bad.retained.worse
    assert bad.verdict.level != "good"
    assert f"k-NN {bad.retained.knn_start:.1%} at the start, {bad.knn:.1%} now" in bad.verdict.text
    line = [line for line in RunFolder(tmp_path / "destroyed").metrics() if line["event"] == "health"][-1]
    assert line["online_knn_start"] == bad.retained.knn_start
    assert line["online_knn_change_high"] < 0
    assert "at the start" in (tmp_path / "destroyed" / "report.html").read_text()


def test_the_verdict_says_in_words_that_it_got_worse():
    fine = health.Verdict("good", "healthy: rank 9")
    worse = retention.Retention(kept=0.3, knn_start=0.71, knn=0.6, change=(-0.15, -0.07))
    noise = retention.Retention(kept=0.8, knn_start=0.71, knn=0.69, change=(-0.05, 0.01))
    verdict = retention.judge(fine, worse)
    assert verdict.level == "warn"
    assert verdict.text.startswith("worse than it started: k-NN 71.0% at the start, 60.0% now")
    assert "--lr" in verdict.remedy
    assert str(retention.judge(fine, noise)) == "healthy: rank 9; k-NN 71.0% at the start, 69.0% now"
    collapsed = health.Verdict("bad", "collapsed: all alike", "Lower --lr")
    assert retention.judge(collapsed, worse).level == "bad"
    assert retention.judge(collapsed, worse).remedy == "Lower --lr"
    unlabelled = retention.judge(fine, retention.Retention(kept=0.62))
    assert str(unlabelled) == "healthy: rank 9; 62% of the nearest neighbours are those of the start"
    assert retention.judge(fine, retention.Retention(kept=None)) == fine


def test_neighbours_kept():
    torch.manual_seed(0)
    x = torch.randn(200, 16)
    near = retention.neighbours(x)
    assert {len(row) for row in near} == {10}
    assert all(i not in row for i, row in enumerate(near))
    unit = torch.nn.functional.normalize(x, dim=1)
    assert near[3] == (-(unit @ unit[3])).argsort()[1:11].tolist()
    assert retention.overlap(near, retention.neighbours(3 * x)) == 1.0
    assert retention.overlap(near, retention.neighbours(torch.randn(200, 16))) < 0.15
    assert retention.overlap(retention.neighbours(x[:4]), retention.neighbours(x[:4])) is None


@pytest.mark.report
def test_without_labels_a_number_is_told_and_no_verdict(tmp_path, first):
    events = []
    go_on(first, tmp_path / "run", steps=4, head_warmup=0.9, listen=events.append)
    reads = [e for e in events if isinstance(e, Read)]
    assert [read.knn for read in reads] == [None] * len(reads)
    assert reads[0].retained is None
    assert reads[-1].retained.kept == 1.0  # frozen all along
    assert "100% of the nearest neighbours are those of the start" in reads[-1].verdict.text
    plan = next(e for e in events if isinstance(e, Plan))
    assert retention.UNTOLD in plan.notes
    assert "not whether the change is for the better" in (tmp_path / "run" / "report.html").read_text()


def test_the_start_is_kept_in_a_checkpoint():
    class Passing(torch.nn.Module):
        def __init__(self, noise):
            super().__init__()
            self.noise = torch.nn.Parameter(torch.tensor(noise))

        def forward(self, images):
            return Features(images.flatten(1) + self.noise * torch.randn(len(images), 768), images, (1, 1))

    images = pictures(400, labels=True)
    prepared = Preprocess(
        size=SIZE, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    rows = np.arange(400)
    parts = images.subset(rows[:100]), images.subset(rows[100:])
    whole = Monitor(*parts, prepared, 0, True, continued=True)
    assert whole.read(Passing(0.0), Clock(0, 10, 0.0), []).retained is None
    later = Monitor(*parts, prepared, 0, True, continued=True)
    later.restore(json.loads(json.dumps(whole.state())))
    for watch in (whole, later):
        torch.manual_seed(0)
        seen = watch.read(Passing(30.0), Clock(5, 10, 0.5), [])
        assert seen.retained.worse
        assert (seen.retained.knn_start, seen.retained.knn) == (1.0, seen.knn)
        assert seen.retained.kept < 0.5
    assert whole.state() == later.state()


def test_held_out_images_without_labels_are_no_bank():
    few = pictures(400, labels=True)
    rows = np.arange(400)
    few.labels[:100] = -1
    prepared = Preprocess(
        size=SIZE, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    watch = Monitor(few.subset(rows[:100]), few.subset(rows[100:]), prepared, 0, True, continued=True)
    encoder = backbones.build(name="vit-n/8", image_size=SIZE)
    assert [watch.read(encoder, Clock(step, 2, 0.5), []).knn for step in (0, 1)] == [None, None]


# ---------------------------------------------------------------- resumed and refused
class Enough(Exception):
    pass


@pytest.mark.parametrize(  # frozen until step 4
    ("method", "at"), [("dino", 2), pytest.param("mae", 6, marks=pytest.mark.slow), ("simclr", 6)]
)
def test_resumed_equals_uninterrupted_without_the_first_weights(tmp_path, first, method, at):
    def stop(event):
        if isinstance(event, Progress) and event.step == at:
            raise Enough

    how = {"head_warmup": 0.5, "checkpoint_every": 1e-9}
    go_on(first, tmp_path / "straight", method, **how)
    with pytest.raises(Enough):
        go_on(first, tmp_path / "run", method, listen=stop, **how)
    shutil.rmtree(first)
    events = []
    go_on(first, tmp_path / "run", method, listen=events.append, **how)
    assert next(e for e in events if isinstance(e, Plan)).resumed_at == at - 1
    assert all(event.retained is not None for event in events if isinstance(event, Read))
    a, b = (omma.load(tmp_path / name) for name in ("straight", "run"))
    assert same(a.encoder.state_dict(), b.encoder.state_dict())
    last = [RunFolder(tmp_path / name).metrics()[-1]["neighbours_kept"] for name in ("straight", "run")]
    assert last[0] == last[1]


def test_another_origin_is_refused(tmp_path, first):
    other = made(tmp_path / "other", SPEC | {"registers": 1})
    go_on(first, tmp_path / "run", steps=2)
    go_on(first, tmp_path / "run", steps=2)  # left alone
    for changed, words in (
        ({"first": other}, r"init\.source: '.*first' there, '.*other' now"),
        ({"first": first, "head_warmup": 0.3}, r"init\.head_warmup: 0\.1 there, 0\.3 now"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            go_on(out=tmp_path / "run", steps=2, **changed)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="another configuration"):
        pretrain(pictures(), out=tmp_path / "run", steps=2, method="simclr", model="vit-n/8", **HOW)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"model": "vit-s/8"},
            "vit-s/8 is another architecture than that of .*first, vit-n/8: leave --model",
        ),
        ({"model": "vitc-15mf"}, "another architecture"),
        ({"head_warmup": 1.0}, "head_warmup=1.0"),
        ({"encoder_lr_scale": 0.0}, "encoder_lr_scale=0.0"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(tmp_path, first, options, words):
    with pytest.raises(ValueError, match=words) as error:
        go_on(first, tmp_path / "run", steps=1, **options)
    assert "\n" not in str(error.value)


def test_options_of_going_on_need_weights(tmp_path):
    with pytest.raises(ValueError, match=r"head_warmup .* give --init"):
        pretrain(pictures(), out=tmp_path / "run", steps=1, head_warmup=0.2, **HOW)
    with pytest.raises(ValueError, match="does not exist"):
        go_on(tmp_path / "nothing", tmp_path / "run", steps=1)


# ---------------------------------------------------------------- what is chosen
def origin(**options):
    spec = {"name": "vit-s/16", "image_size": 224, "channels": 3, "registers": 4, "pool": "mean"}
    return fine_tune_groups.Origin(
        source="runs/a", digest="0", spec=spec | options, patch=16,
        preprocess={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("side", "size", "why"),
    [
        (480, 224, "that of runs/a"),
        (224, 224, "that"),
        (200, 208, "would add nothing"),
        (32, 128, "8 patches"),
    ],
)
def test_image_size(side, size, why):
    facts = choose.Facts(images=5000, shorter_side=side, device="cpu")
    choice = choose.choose(facts, Request("images"), origin())
    assert (choice.model, choice.image_size) == ("vit-s/16", size)
    assert any(what == f"image size {size}" and why in words for what, words in choice.reasons)
    assert choice.encoder_options() == {"registers": 4, "pool": "mean", "drop_path": 0.0}
    wished = choose.choose(facts, Request("images", image_size=96, model="vit-s/8", method="mae"), origin())
    assert (wished.model, wished.image_size) == ("vit-s/8", 96)
    assert wished.encoder_options()["pool"] == "mean"
    assert "positions" not in wished.encoder_options()  # mae's recipe would have other ones


def test_weights_of_another_size_are_fitted(tmp_path, first):
    """Channels from the data, size and patch from the user; nothing moves while the encoder is frozen."""
    events = []
    go_on(
        first, tmp_path / "run", images=pictures(channels=1), image_size=24, model="vit-n/4", steps=1,
        listen=events.append,
    )  # fmt: skip
    spec = SPEC | {"name": "vit-n/4", "image_size": 24, "channels": 1}
    fitted = backbones.build(**spec)
    lines = weights.fit(omma.load(first), fitted)
    trained = omma.load(tmp_path / "run").encoder
    assert trained.spec() == spec
    assert same(trained.state_dict(), fitted.state_dict())
    notes = next(e for e in events if isinstance(e, Plan)).notes
    assert lines
    assert {*lines} <= {*notes}
    assert "normalised as measured here: the weights were made for 3 channels, these images have 1" in notes


def test_initial_weights_do_not_come_along_but_interpolation_does(tmp_path):
    """What the weights' network started with says nothing about a network that has them."""
    first = made(tmp_path / "first", SPEC | {"init": "dinov2", "interpolation": "offset"})
    go_on(first, tmp_path / "out", steps=2)
    spec = weights.load(tmp_path / "out").encoder.spec()
    assert "init" not in spec
    assert spec["interpolation"] == "offset"


def test_published_weights(tmp_path):
    """A file as timm writes it; its features at the start are timm's."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, depth=2).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    events = []
    go_on(tmp_path / "weights.pth", tmp_path / "run", head_warmup=0.9, steps=2, listen=events.append)
    ours = omma.load(tmp_path / "run")
    assert ours.preprocess.size == 32
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x).pooled, theirs(x), atol=1e-4, rtol=0)
    assert any("weights.pth" in note for note in next(e for e in events if isinstance(e, Plan)).notes)
