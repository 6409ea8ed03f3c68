"""What every method promises the engine, checked on every file in methods/."""

import copy
import dataclasses
import functools
import itertools
import json
import re
from pathlib import Path

import numpy as np
import processes
import pytest
import torch

from omma import backbones, methods, weights
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Extras,
    Key,
    Preprocess,
    StepOutput,
    Tracks,
)
from omma.data.batches.frames import Sampler, plan
from omma.pretraining import requirements
from omma.train.loop import Position, train
from omma.train.optimizer import make_optimizer
from omma.train.precision import Cast

SIZE, BATCH, STEPS = 16, 8, 8
MODELS = ("vit-ti/4", "vitc-15mf")
# what the small recipes leave out
VARIANTS = {name: {"centring": "mean"} for name in ("dino mean", "ibot mean", "dinov2 mean")}
VARIANTS |= {"moco queue": {"queue": 24}}
VARIANTS |= {f"egomotion {mode}": {"mode": mode} for mode in ("equiv+drlim", "drlim", "temporal")}
# the classifier that `omma finetune` trains; its adapters are inserted before it is built
VARIANTS |= {
    "finetune average": {"ema": 0.9, "layer_decay": 0.5, "mixup": 0.2},
    "finetune contrast": {"contrast": 1.0, "repeats": 2},
    "finetune bias": {"encoder_lr_scale": 1.0},
}


def pairs():
    outlines = {model: backbones.outline(name=model, image_size=SIZE) for model in MODELS}
    for name in methods.names():
        needs = requirements.needs_of(name, methods.get(name).small(SIZE, MODELS[0]).config)
        for model in MODELS:
            try:
                requirements.suits(name, needs, outlines[model])
            except ValueError:
                continue
            yield name, model
    yield from ((name, MODELS[0]) for name in VARIANTS)


def guide(channels):
    """A trained model that any method can learn from: classifier, codes and projection beside its encoder."""
    encoder = backbones.build(name="vit-n/8", image_size=SIZE, channels=channels)
    ones = (1.0,) * channels
    zeros = (0.0,) * channels
    preprocess = Preprocess(size=SIZE, channels=channels, low=zeros, high=ones, mean=zeros, std=ones)
    rows = {"classifier": 3, "codes": 7, "projection": 5}
    tensors = {f"{name}.weight": torch.randn(n, encoder.dim) for name, n in rows.items()}
    tensors |= {f"{name}.bias": torch.randn(rows[name]) for name in ("classifier", "codes")}
    return weights.Model(encoder, preprocess, extras=Extras(tensors))


def tracks_of(file, config):
    """100 images: sequences of five frames, each 20 degrees on; of each field one value is missing."""
    index = np.arange(100)
    g = np.random.default_rng(0)
    fields = {}
    for field in file.needs(config).fields:
        size = len(field.columns) or 12
        values = g.standard_normal((100, size)).astype(np.float32)
        if field.kind == "names":
            values = index[:, None] // 10
        elif size == 12:  # camera-to-world matrices of turns about the vertical axis
            a = np.radians(20 * (index % 5) + 3 * (index // 5))
            rows = (
                np.cos(a),
                0 * a,
                np.sin(a),
                a,
                0 * a,
                0 * a + 1,
                0 * a,
                0 * a,
                -np.sin(a),
                0 * a,
                np.cos(a),
                a,
            )
            values = np.stack(rows, axis=1).astype(np.float32)
        elif field.name == "grasp":
            values = np.stack([index * 37.0, index % 2], axis=1).astype(np.float32)
        if field.missing == "nan":
            values[7] = -1 if field.kind == "names" else np.nan
        fields[field.name] = values
    return Tracks(index // 5, (index % 5).astype(np.float64), fields)


@functools.cache
def two_blocks(model, channels, options):
    """A network's first two blocks, what it may learn from, and the generator's state after both."""
    torch.manual_seed(0)
    encoder = backbones.build(name=model, image_size=SIZE, channels=channels, **dict(options))
    del encoder.blocks[2:]
    return encoder, guide(channels), torch.get_rng_state()


def build(name, model, channels=3, **encoder_options):
    """A small instance: the small-data recipe with small heads. name: a method's, or one of VARIANTS."""
    file = methods.get(name.partition(" ")[0])
    recipe = file.small(SIZE, model)
    little = {"prototypes": 64, "head_hidden": 32, "head_bottleneck": 16, "hidden": 32, "out": 16}
    # masks of unlike sizes: units cut at the edge, blocks that find no place
    little |= {"cells": 2, "most": None}
    little |= {"codes": 16, "text_depth": 2, "text_dim": 32, "unit": 12}
    known = {f.name for f in dataclasses.fields(recipe.config)}
    little |= {"mask_share": 10 / 16, "block_share": 5 / 16} if "block_share" in known else {}
    little |= VARIANTS.get(name, {})
    config = dataclasses.replace(recipe.config, **{k: v for k, v in little.items() if k in known})
    options = {k: v for k, v in recipe.encoder.items() if k in backbones.options(model)} | encoder_options
    *templates, after = two_blocks(model, channels, tuple(options.items()))
    encoder, trained = copy.deepcopy(templates)
    torch.set_rng_state(after)
    if name == "finetune bias":
        backbones.adapters.insert(encoder, "bias")
    context = Context(
        image_size=SIZE, images=100, classes=("a", "b", "c"), preprocess=trained.preprocess, model=trained,
        tokenizer=None if file.tokenizer is None else file.tokenizer(config, None, ()),
        tracks=tracks_of(file, config),
    )  # fmt: skip
    return file, dataclasses.replace(recipe, config=config), file.Method(encoder, config, context)


def batch_of(file, recipe, step, b=BATCH, channels=3, constant=False):
    """Deterministic views for a step, from the images' numbers alone."""
    index = np.arange(step * b, (step + 1) * b)
    frames = file.frames(recipe.config)
    key = Key(0, np.zeros(b, np.int64), index)
    crops = []
    for number, crop in enumerate(plan(file.views(recipe.config, SIZE), frames)):
        images = []
        for i in index:
            g = torch.Generator().manual_seed(1000 * number + int(i))
            images.append(torch.randn(crop.count * crop.frames, channels, crop.size, crop.size, generator=g))
        crops.append(torch.zeros_like(torch.stack(images)) if constant else torch.stack(images))
    text = None
    if file.tokenizer is not None:
        text = file.tokenizer(recipe.config, None, ())([f"image {i}" for i in index])
    labels = np.where(index % BATCH == 1, -1, index % 3)  # one is missing, in the first half
    tracks = tracks_of(file, recipe.config)
    rows = index if frames is None else Sampler(tracks.sequence, tracks.frame, frames)(key)
    fields = {name: torch.from_numpy(values[rows]) for name, values in tracks.fields.items()}
    return Batch(tuple(crops), key, torch.from_numpy(labels), text, None, fields)


def run(method, optimizer, file, recipe, first, last, accumulate=1, b=BATCH, **options):
    position = Position(first, last, b * accumulate, 100)
    position_total = dataclasses.replace(position, total=STEPS)
    batches = (batch_of(file, recipe, s, b) for s in itertools.count(first * accumulate))
    steps = train(method, optimizer, batches, recipe, position_total, accumulate=accumulate, **options)
    return list(itertools.islice(steps, last - first))


@pytest.fixture(params=list(pairs()), ids="-".join)
def built(request):
    return build(*request.param)


def test_gradient_reaches_the_whole_encoder(built):
    file, recipe, method = built
    method.train()
    output = method(batch_of(file, recipe, 0), Clock(1, 10, 0.1))
    output.loss.backward()
    missing = [n for n, p in method.encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, f"no gradient reaches {missing}: use them in the loss, or freeze them in __init__"
    # the class token's own position and the like may stand still; whole tensors of zeros may not
    dead = [n for n, p in method.encoder.named_parameters() if p.grad is not None and not p.grad.any()]
    assert not dead, f"the gradient of {dead} is 0: find what detaches them or multiplies them by 0"


def test_views_may_have_another_size_for_a_part_of_the_run(built):
    """Or the method says that they may not (`Needs.fixed_views`)."""
    file, recipe, method = built
    if file.needs(recipe.config).fixed_views:
        pytest.skip("its views have one size")
    batch = batch_of(file, recipe, 0)
    method.train()
    for step, factor in enumerate((2, 1)):  # of 16 px, some networks have only four patches
        views = tuple(v.repeat_interleave(factor, -1).repeat_interleave(factor, -2) for v in batch.views)
        output = method(batch._replace(views=views), clock := Clock(step, 2, step / 2))
        assert output.loss.isfinite()
        output.loss.backward()
        method.after_step(clock, [output.carry])


def test_frozen_parts_get_no_gradient_and_groups_cover_the_rest(built):
    _, _, method = built
    grouped = [p for group in method.groups() for p in group.params]
    assert len(grouped) == len({id(p) for p in grouped}), (
        "groups() yields a parameter twice: yield each module once, and no module beside its parent"
    )
    names = {id(p): name for name, p in method.named_parameters()}
    trained = {id(p) for p in method.parameters() if p.requires_grad}
    wrong = sorted(names[i] for i in trained ^ {id(p) for p in grouped})
    assert not wrong, (
        f"{wrong}: groups() must yield what requires a gradient and nothing else: yield the missing "
        "module, or freeze it with requires_grad_(False) (a teacher: train.ema.teacher_of)"
    )
    decaying = [names[id(p)] for group in method.groups() if group.decay for p in group.params if p.ndim < 2]
    assert not decaying, f"{decaying} decay: use train.param_groups.standard, which spares biases and norms"


def test_state_dict_is_the_whole_state(built):
    """2 steps, save, load into a fresh one, 2 more: equal to 4 straight, bit for bit."""
    file, recipe, straight = built
    halves = copy.deepcopy(straight)
    fresh = copy.deepcopy(straight)
    optimizer = make_optimizer(straight, recipe)
    run(straight, optimizer, file, recipe, 0, 4)

    optimizer = make_optimizer(halves, recipe)
    run(halves, optimizer, file, recipe, 0, 2)
    state, optimizer_state = copy.deepcopy(halves.state_dict()), copy.deepcopy(optimizer.state_dict())
    optimizer = make_optimizer(fresh, recipe)
    fresh.load_state_dict(state)
    optimizer.load_state_dict(optimizer_state)
    run(fresh, optimizer, file, recipe, 2, 4)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), (
            f"{name} differs after a restart: register what lasts from step to step as a buffer or parameter"
        )


def test_forward_has_no_side_effects(built):
    file, recipe, method = built
    method.train()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    before = copy.deepcopy(method.state_dict())
    first = method(batch_of(file, recipe, 0), Clock(1, 10, 0.1)).loss
    again = method(batch_of(file, recipe, 0), Clock(1, 10, 0.1)).loss
    assert torch.equal(first, again), "two passes differ: draw randomness from batch.key and clock.step only"
    for name, value in method.state_dict().items():
        if not name.endswith(statistics):
            assert torch.equal(value, before[name]), f"forward changes {name}: move that into after_step"


def parts(module, prefix=""):
    """Named children; those of dictionaries and lists of modules in place of these."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.ModuleDict | torch.nn.ModuleList):
            yield from parts(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def averages(method):
    """The moving averages of a method as it is built, each with what it averages, by name.

    A backbone beside the trained one is its average if it has the same shape. Any other part is an average if
    it takes no gradient and starts as a copy of a part that does (which a frozen classifier does not).
    """
    shape = [(name, p.shape) for name, p in method.encoder.named_parameters()]
    trained = {name: m for name, m in parts(method) if any(p.requires_grad for p in m.parameters())}
    found = {}
    for name, module in parts(method):
        tensors = dict(module.named_parameters())
        if isinstance(module, Backbone):
            if module is not method.encoder and [(key, p.shape) for key, p in tensors.items()] == shape:
                found[name] = "encoder"
        elif tensors and name not in trained:
            copied = [key for key, fast in trained.items() if same(tensors, dict(fast.named_parameters()))]
            if copied:
                found[name] = copied[0]
    return found


def same(one, other):
    """Are two dictionaries of tensors equal, keys and values?"""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def test_averages_are_found():
    """The criterion above finds the methods' teachers, and does not take DeiT's for one."""
    found = {name: averages(build(name, MODELS[0])[2]) for name in ("dino", "moco", "grafit", "deit")}
    assert found == {
        "dino": {"teacher": "encoder", "teacher_head": "head"},
        "moco": {"key_encoder": "encoder", "key_head": "head"},
        "grafit": {"slow_encoder": "encoder", "slow_head": "head"},
        "deit": {},
    }
    _, _, nested = build("dino", MODELS[0])
    nested.slow = torch.nn.ModuleDict({"encoder": nested.teacher, "head": nested.teacher_head})
    del nested.teacher, nested.teacher_head
    assert averages(nested) == {"slow.encoder": "encoder", "slow.head": "head"}


def test_training_changes_what_is_exported(built):
    file, recipe, method = built
    before = copy.deepcopy(method.export_encoder().state_dict())
    run(method, make_optimizer(method, recipe), file, recipe, 0, 3)
    after = method.export_encoder().state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before), (
        "three steps leave export_encoder()'s network as it was: return the trained one, or update the "
        "average in after_step"
    )


@pytest.mark.parametrize("name", methods.names())
def test_the_network_of_the_paper_is_exported(name):
    """What the file's docstring says, which is the paper's choice, is what the code does."""
    file, recipe, method = build(name, MODELS[0])
    encoders = {"encoder", *(slow for slow, fast in averages(method).items() if fast == "encoder")}
    said = re.search(r"^Exports: .*?`([\w.]+)`", file.doc, re.MULTILINE)
    assert said or len(encoders) == 1, (
        f"the file's docstring does not say which of {sorted(encoders)} the paper evaluates: add a line "
        '"Exports: ... `NAME`"'
    )
    stated = said[1] if said else "encoder"
    assert stated in encoders, f"Exports: `{stated}`: must be one of {sorted(encoders)}"
    run(method, make_optimizer(method, recipe), file, recipe, 0, 2)
    exported = dict(method.export_encoder().named_parameters())
    assert same(dict(method.get_submodule(stated).named_parameters()), exported), (
        f"export_encoder() is not `{stated}`, which the docstring says is exported: return that network"
    )


@pytest.mark.parametrize("name", methods.names())
def test_an_average_follows_what_it_averages(name):
    """It moves, and is another network; and so is one that is not exported."""
    file, recipe, method = build(name, MODELS[0])
    found = averages(method)
    before = copy.deepcopy(method)
    run(method, make_optimizer(method, recipe), file, recipe, 0, 2)
    for slow, fast in found.items():
        now, start, followed = (
            dict(m.get_submodule(key).named_parameters())
            for m, key in ((method, slow), (before, slow), (method, fast))
        )
        assert not same(now, start), f"{slow} stands still: call train.ema.update in after_step"
        assert not same(now, followed), f"{slow} equals {fast} after two steps: use a momentum below 1"


@pytest.mark.parametrize("name", methods.names())
def test_a_teacher_drops_nothing_and_gets_no_gradient(name):
    """The student has stochastic depth, its average has none in training mode: twice the same, as in eval."""
    file, recipe, method = build(name, MODELS[0], drop_path=0.9)
    found = averages(method)
    method.train()
    images = torch.randn(16, 3, SIZE, SIZE)
    for slow in [slow for slow, fast in found.items() if fast == "encoder"]:
        teacher = method.get_submodule(slow)
        assert teacher.training, f"{slow} is in evaluation mode: leave it in training mode, as the papers do"
        with torch.no_grad():
            passes = [teacher(images).pooled for _ in range(2)]
            student = [method.encoder(images).pooled for _ in range(2)]
            evaluated = teacher.eval()(images).pooled
        assert not torch.equal(*student)
        assert torch.equal(*passes), f"{slow} drops samples: make it with train.ema.teacher_of"
        torch.testing.assert_close(passes[0], evaluated)
        teacher.train()
    if found:
        method(batch_of(file, recipe, 0), Clock(1, 10, 0.1)).loss.backward()
    for slow in found:
        assert all(p.grad is None and not p.requires_grad for p in method.get_submodule(slow).parameters()), (
            f"{slow} gets a gradient: make it with train.ema.teacher_of and run it under torch.no_grad()"
        )


def test_bf16_stays_finite(built):
    file, recipe, method = built
    steps = run(method, make_optimizer(method, recipe), file, recipe, 0, 3, dtype=torch.bfloat16)
    assert all(step.rejected is None and np.isfinite(step.loss) for step in steps), (
        "not finite in bf16: compute the loss in .float()"
    )
    assert all(p.dtype == torch.float32 for p in method.parameters()), (
        "parameters are no longer float32: cast features and logits, never the method's own parameters"
    )


def gradient(method, batch, dtype=torch.float32):
    """Direction of the blocks' gradient."""
    method.zero_grad()
    Cast(method, dtype)(batch, Clock(1, 10, 0.1)).loss.backward()
    whole = torch.cat([p.grad.flatten() for p in method.encoder.blocks.parameters() if p.requires_grad])
    return whole / whole.norm()


def perturbed(method, batch, seed):
    """Weights and images changed at random by up to bf16's spacing, a share of 2^-8."""
    method, g = copy.deepcopy(method), torch.Generator().manual_seed(seed)

    def changed(x):
        return x * (1 + 2**-8 * (2 * torch.rand(x.shape, generator=g) - 1))

    with torch.no_grad():
        for p in method.parameters():
            p.copy_(changed(p))
    return method, batch._replace(views=tuple(changed(view) for view in batch.views))


def bf16_error(method, batch):
    """How far bf16 turns the gradient, in units of what fp32 does when its inputs are changed as little.

    The turn is |g / |g| - h / |h||; the unit is the largest of three perturbations, but at least .01.
    """
    method.train()
    exact = gradient(method, batch)
    turned = (gradient(copy.deepcopy(method), batch, torch.bfloat16) - exact).norm()
    unit = max(float((gradient(*perturbed(method, batch, seed)) - exact).norm()) for seed in range(3))
    return float(turned) / max(unit, 0.01)


def test_bf16_gradients_point_the_same_way(built):
    """As nearly as the method's own sensitivity to rounding allows.

    No computation in bf16 can be closer to fp32 than its rounded inputs make it, and how far that turns the
    gradient is the method's property (batch norms of small batches and cosines between nearly equal vectors
    amplify it: .006 for BEiT, up to .3 for BYOL on a convolutional stem). So the turn is measured against
    that of fp32 with inputs that are perturbed by bf16's spacing. The methods here are below 2.2 of it, since
    they also round activations; the next test's cancellation is at 4.7 and 10.8, although its cosine, .98,
    looks harmless.
    """
    file, recipe, method = built
    error = bf16_error(method, batch_of(file, recipe, 0))
    assert error < 3, f"{error:.1f}: compute the loss, and what cancels or is summed in it, in .float()"


@pytest.mark.parametrize("model", MODELS)
def test_a_cancellation_in_bf16_is_seen(model):
    """A variance as E z^2 - (E z)^2 of values far from 0 fails in bf16."""
    file, recipe, method = build("simclr", model)

    class Variance(type(method)):
        def forward(self, batch, clock):
            z = self.head(self.encoder(batch.views[0][:, 0]).pooled) + 3
            variance = (z * z).mean(0) - z.mean(0) ** 2
            return StepOutput((1 - (variance.clamp(min=0) + 1e-4).sqrt()).relu().float().mean(), {})

    method.__class__ = Variance
    assert bf16_error(method, batch_of(file, recipe, 0)) > 3


@pytest.mark.parametrize("b", [1, 2])
def test_a_tiny_batch_does_not_break_it(built, b):
    file, recipe, method = built
    steps = run(method, make_optimizer(method, recipe), file, recipe, 0, 2, b=b)
    assert all(step.rejected is None and np.isfinite(step.loss) for step in steps), (
        f"the loss of {b} image(s) is not finite: a last batch may be that small, whatever needs() asks for"
    )


def test_constant_images_do_not_produce_nan(built):
    file, recipe, method = built
    optimizer = make_optimizer(method, recipe)
    batches = itertools.repeat(batch_of(file, recipe, 0, constant=True))
    steps = list(train(method, optimizer, batches, recipe, Position(0, 3, BATCH, 100)))
    assert all(step.rejected is None and np.isfinite(step.loss) for step in steps), (
        "constant images give a loss that is not finite: add an epsilon to what is divided by or rooted"
    )
    assert all(torch.isfinite(p).all() for p in method.parameters()), (
        "a gradient is not finite on constant images: add an epsilon under the root, or use F.normalize"
    )


@pytest.mark.parametrize("pair", list(pairs()), ids="-".join)
@pytest.mark.parametrize("channels", [1, 6])
def test_any_channel_count(pair, channels):
    file, recipe, method = build(*pair, channels)
    output = method(batch_of(file, recipe, 0, channels=channels), Clock(1, 10, 0.1))
    assert torch.isfinite(output.loss), f"the loss is not finite with {channels} channels"


@pytest.mark.parametrize("name", ["dino mean", "mae"])
def test_accumulation_equals_a_batch_twice_as_large(name):
    """Where the maths says so: no batch norm, no negatives within the batch."""
    file, recipe, method = build(name, MODELS[0])
    twin = copy.deepcopy(method)
    run(method, make_optimizer(method, recipe), file, recipe, 0, 2, accumulate=2, b=4)
    run(twin, make_optimizer(twin, recipe), file, recipe, 0, 2, accumulate=1, b=8)
    for key, value in method.state_dict().items():
        torch.testing.assert_close(
            value,
            twin.state_dict()[key],
            rtol=2e-4,
            atol=2e-5,
            msg=lambda text, key=key: (
                f"{key}: two micro-batches of 4 differ from a batch of 8: make loss and carry means over "
                f"the images, and average the carries in after_step. {text}"
            ),
        )


def test_a_step_that_is_not_finite_changes_nothing(built):
    file, recipe, method = built
    optimizer = make_optimizer(method, recipe)
    run(method, optimizer, file, recipe, 0, 1)
    before = copy.deepcopy(method.state_dict())
    bad = batch_of(file, recipe, 1)
    bad.views[0][0] = float("nan")
    (step,) = train(method, optimizer, iter([bad]), recipe, Position(0, 1, BATCH, 100))
    assert step.rejected is not None, "NaN in the images must make the loss NaN: do not mask or replace it"
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), (
            f"a rejected step changes {name}: update it in after_step, not in forward"
        )


def test_two_processes_equal_one(tmp_path):
    """Every method: two gloo processes with half of each batch end with the weights of one with all of it.

    A batch that is broken on one of them is rejected by both.
    """
    processes.both(Path(__file__).with_name("two_processes.py"), tmp_path)
    differences = json.loads((tmp_path / "differences.json").read_text())
    assert len(differences) == len(list(pairs()))
    different = {name: d for name, d in differences.items() if not d < 3e-6}  # counting by halves: 4e-6
    assert not different, (
        f"{different}: two processes end with other weights than one. Compare images by collectives.gather, "
        "divide by collectives.mean of counts, use ops.batch_norm.BatchNorm, and draw from batch.key"
    )
    assert json.loads((tmp_path / "rejected.json").read_text()) == {"dino mean": True, "simclr": True}
