"""What every method promises the engine, checked on every file in methods/."""

import copy
import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import processes
import pytest
import torch

from omma import backbones, methods, weights
from omma.core.protocols import Batch, Clock, Context, Extras, Key, Preprocess
from omma.pretraining import choose
from omma.train.loop import Position, make_optimizer, train
from omma.train.precision import Cast

SIZE, BATCH, STEPS = 16, 8, 8
MODELS = ("vit-ti/4", "vitc-15mf")
# what the small recipes leave out
VARIANTS = {name: {"centring": "mean"} for name in ("dino mean", "ibot mean", "dinov2 mean")}
VARIANTS |= {"moco queue": {"queue": 24}}


def pairs():
    for name in methods.names():
        needs = choose.needs_of(name, methods.get(name).small(SIZE, MODELS[0]).config)
        for model in MODELS:
            try:
                choose.suits(name, needs, backbones.outline(name=model, image_size=SIZE))
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


def build(name, model, channels=3):
    """A small instance: the small-data recipe with small heads. name: a method's, or one of VARIANTS."""
    file = methods.get(name.partition(" ")[0])
    recipe = file.small(SIZE, model)
    little = {"prototypes": 64, "head_hidden": 32, "head_bottleneck": 16, "hidden": 32, "out": 16}
    # masks of unlike sizes: units cut at the edge, blocks that find no place
    little |= {"codes": 16, "text_depth": 2, "text_dim": 32, "unit": 12}
    known = {f.name for f in dataclasses.fields(recipe.config)}
    little |= {"mask_share": 10 / 16, "block_share": 5 / 16} if "block_share" in known else {}
    little |= VARIANTS.get(name, {})
    config = dataclasses.replace(recipe.config, **{k: v for k, v in little.items() if k in known})
    torch.manual_seed(0)
    options = {k: v for k, v in recipe.encoder.items() if k in backbones.options(model)}
    encoder = backbones.build(name=model, image_size=SIZE, channels=channels, **options)
    for block in list(encoder.blocks)[2:]:
        encoder.blocks.pop(len(encoder.blocks) - 1)
        del block
    trained = guide(channels)
    context = Context(
        image_size=SIZE, images=100, classes=("a", "b", "c"), preprocess=trained.preprocess, model=trained,
        tokenizer=file.tokenizer(config, None, ()) if hasattr(file, "tokenizer") else None,
    )  # fmt: skip
    return file, dataclasses.replace(recipe, config=config), file.Method(encoder, config, context)


def batch_of(file, recipe, step, b=BATCH, channels=3, constant=False):
    """Deterministic views for a step, from the images' numbers alone."""
    index = np.arange(step * b, (step + 1) * b)
    crops = []
    for number, crop in enumerate(file.views(recipe.config, SIZE)):
        images = []
        for i in index:
            g = torch.Generator().manual_seed(1000 * number + int(i))
            images.append(torch.randn(crop.count, channels, crop.size, crop.size, generator=g))
        crops.append(torch.zeros_like(torch.stack(images)) if constant else torch.stack(images))
    text = None
    if hasattr(file, "tokenizer"):
        text = file.tokenizer(recipe.config, None, ())([f"image {i}" for i in index])
    labels = np.where(index % BATCH == 1, -1, index % 3)  # one is missing, in the first half
    return Batch(tuple(crops), Key(0, np.zeros(b, np.int64), index), torch.from_numpy(labels), text)


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
    assert not missing
    # the class token's own position and the like may stand still; whole tensors of zeros may not
    dead = [n for n, p in method.encoder.named_parameters() if p.grad is not None and not p.grad.any()]
    assert not dead


def test_frozen_parts_get_no_gradient_and_groups_cover_the_rest(built):
    _, _, method = built
    grouped = [p for group in method.groups() for p in group.params]
    assert len(grouped) == len({id(p) for p in grouped})
    assert {id(p) for p in grouped} == {id(p) for p in method.parameters() if p.requires_grad}
    assert all(p.ndim > 1 for group in method.groups() if group.decay for p in group.params)


def test_state_dict_is_the_whole_state(built):
    """5 steps, save, load into a fresh one, 3 more: equal to 8 straight, bit for bit."""
    file, recipe, straight = built
    halves = copy.deepcopy(straight)
    fresh = copy.deepcopy(straight)
    optimizer = make_optimizer(straight, recipe)
    run(straight, optimizer, file, recipe, 0, 8)

    optimizer = make_optimizer(halves, recipe)
    run(halves, optimizer, file, recipe, 0, 5)
    state, optimizer_state = copy.deepcopy(halves.state_dict()), copy.deepcopy(optimizer.state_dict())
    optimizer = make_optimizer(fresh, recipe)
    fresh.load_state_dict(state)
    optimizer.load_state_dict(optimizer_state)
    run(fresh, optimizer, file, recipe, 5, 8)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


def test_forward_has_no_side_effects(built):
    file, recipe, method = built
    method.train()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    before = copy.deepcopy(method.state_dict())
    first = method(batch_of(file, recipe, 0), Clock(1, 10, 0.1)).loss
    again = method(batch_of(file, recipe, 0), Clock(1, 10, 0.1)).loss
    assert torch.equal(first, again)
    for name, value in method.state_dict().items():
        if not name.endswith(statistics):
            assert torch.equal(value, before[name]), name


def test_training_changes_what_is_kept(built):
    file, recipe, method = built
    before = copy.deepcopy(method.export_encoder().state_dict())
    run(method, make_optimizer(method, recipe), file, recipe, 0, 3)
    after = method.export_encoder().state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_bf16_stays_finite(built):
    file, recipe, method = built
    steps = run(method, make_optimizer(method, recipe), file, recipe, 0, 3, dtype=torch.bfloat16)
    assert all(step.rejected is None and np.isfinite(step.loss) for step in steps)
    assert all(p.dtype == torch.float32 for p in method.parameters())


def test_bf16_gradients_point_the_same_way(built):
    file, recipe, method = built
    method.train()
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        method.zero_grad()
        Cast(method, dtype)(batch_of(file, recipe, 0), Clock(1, 10, 0.1)).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in method.encoder.blocks.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.97


@pytest.mark.parametrize("b", [1, 2])
def test_a_tiny_batch_does_not_break_it(built, b):
    file, recipe, method = built
    steps = run(method, make_optimizer(method, recipe), file, recipe, 0, 2, b=b)
    assert all(step.rejected is None and np.isfinite(step.loss) for step in steps)


def test_constant_images_do_not_produce_nan(built):
    file, recipe, method = built
    optimizer = make_optimizer(method, recipe)
    batches = itertools.repeat(batch_of(file, recipe, 0, constant=True))
    steps = list(train(method, optimizer, batches, recipe, Position(0, 3, BATCH, 100)))
    assert all(step.rejected is None and np.isfinite(step.loss) for step in steps)
    assert all(torch.isfinite(p).all() for p in method.parameters())


@pytest.mark.parametrize("channels", [1, 6])
def test_any_channel_count(channels):
    for name, model in pairs():
        file, recipe, method = build(name, model, channels)
        output = method(batch_of(file, recipe, 0, channels=channels), Clock(1, 10, 0.1))
        assert torch.isfinite(output.loss), (name, model)


@pytest.mark.parametrize("name", ["dino mean", "mae"])
def test_accumulation_equals_a_batch_twice_as_large(name):
    """Where the maths says so: no batch norm, no negatives within the batch."""
    file, recipe, method = build(name, MODELS[0])
    twin = copy.deepcopy(method)
    run(method, make_optimizer(method, recipe), file, recipe, 0, 2, accumulate=2, b=4)
    run(twin, make_optimizer(twin, recipe), file, recipe, 0, 2, accumulate=1, b=8)
    for key, value in method.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[key], rtol=2e-4, atol=2e-5, msg=key)


def test_a_step_that_is_not_finite_changes_nothing(built):
    file, recipe, method = built
    optimizer = make_optimizer(method, recipe)
    run(method, optimizer, file, recipe, 0, 1)
    before = copy.deepcopy(method.state_dict())
    bad = batch_of(file, recipe, 1)
    bad.views[0][0] = float("nan")
    (step,) = train(method, optimizer, iter([bad]), recipe, Position(0, 1, BATCH, 100))
    assert step.rejected is not None
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_two_processes_equal_one(tmp_path):
    """Every method: two gloo processes with half of each batch end with the weights of one with all of it.

    A batch that is broken on one of them is rejected by both.
    """
    processes.both(Path(__file__).with_name("two_processes.py"), tmp_path)
    differences = json.loads((tmp_path / "differences.json").read_text())
    assert len(differences) == len(list(pairs()))
    assert all(d < 3e-6 for d in differences.values()), differences  # weights that count by halves: 4e-6
    assert json.loads((tmp_path / "rejected.json").read_text()) == {"dino mean": True, "simclr": True}
