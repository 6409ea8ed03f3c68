"""docs/own_loop.md: its code runs, and `omma.Objective` trains one's own modules in one's own loop."""

import copy
import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import omma
from omma import backbones, methods, weights
from omma.backbones.layers.wrapped import Wrapped
from omma.core.protocols import Extras
from omma.train.loop import Position, train
from omma.train.optimizer import make_optimizer

PAGE = Path(__file__).parents[1] / "docs" / "own_loop.md"
SIZE = 32
SMALL = {"prototypes": 16, "head_hidden": 16, "head_bottleneck": 8, "hidden": 16, "out": 8}


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU()
    )


def vit() -> nn.Module:
    torch.manual_seed(0)
    return backbones.build(name="vit-n/8", image_size=SIZE, depth=1)


def images(n: int = 8, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, SIZE + 8, SIZE), generator=draw, dtype=torch.uint8)


def objective(name: str, module: nn.Module | None = None, **others) -> omma.Objective:
    fields = methods.get(name).Config.__dataclass_fields__
    options = {key: value for key, value in SMALL.items() if key in fields} | others.pop("options", {})
    settings = {"image_size": SIZE, "steps": 8, "options": options} | others
    return omma.Objective(name, cnn() if module is None else module, **settings)


def steps(learner: omma.Objective, optimizer: torch.optim.Optimizer, numbers, *labels) -> list[float]:
    losses = []
    for number in numbers:
        loss = learner(images(seed=number), *labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.after_step()
        losses.append(loss.item())
    return losses


# ---------------------------------------------------------------- the page
def test_the_pages_code_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    loop = [line for line in blocks[1].splitlines() if line]
    assert len(loop) <= 10
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {}
    exec(blocks[0], names)
    before = copy.deepcopy(names["my_module"].state_dict())
    exec(blocks[1], names)
    assert not torch.equal(names["my_module"].state_dict()["0.weight"], before["0.weight"])
    saved = torch.load(tmp_path / "encoder.pt")
    assert saved.keys() == before.keys()
    names["my_module"].load_state_dict(saved)
    for block in blocks[2:]:
        exec(block, names)
    assert all(p.grad is not None for p in names["vit"].parameters())
    assert names["output"].loss.isfinite()


def rows() -> dict[str, tuple[str, str]]:
    """Of each method: which modules the page says it takes, and what else it needs."""
    table = re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) ?\|$", PAGE.read_text(), re.MULTILINE)
    return {name: (modules, also) for names, modules, also in table for name in re.findall(r"`(\w+)`", names)}


def test_the_page_has_every_method_and_no_other():
    assert sorted(rows()) == methods.names()


@pytest.mark.parametrize("name", sorted(rows()))
def test_the_pages_table_is_true(name):
    modules, also = rows()[name]
    model = SimpleNamespace(encoder=None, preprocess=None, extras=Extras({}))

    def refusal(module, **others) -> str:
        try:
            objective(name, module, **others)
        except ValueError as error:
            return str(error)
        return ""

    everything = {"classes": 3} if "labels" in also else {}
    swin = backbones.outline(name="swin-t", image_size=SIZE)
    if modules.startswith("only"):
        assert "use omma.pretrain" in refusal(vit(), classes=3)
    elif modules.startswith("any"):
        assert refusal(cnn(), **everything) == "" or "`model`" in also
    elif "leaves tokens out" in modules:  # all transformers but Swin
        assert "leave tokens out" in refusal(cnn())
        assert "leave tokens out" in refusal(swin)
        assert refusal(vit()) == ""
    elif "distilled" in modules:
        assert "carry a distillation token" in refusal(cnn(), model=model, classes=3)
        assert "learns from a teacher" in refusal(vit(), classes=3)
    else:
        assert "embed each patch by itself" in refusal(cnn())
        assert not re.search("embed each patch", refusal(vit()) + refusal(swin))
        if not also:
            assert refusal(vit()) == ""
    if "`model`" in also:
        assert "give model=omma.load(...)" in refusal(vit(), **everything)
    if "labels" in also:
        assert "give classes" in refusal(vit(), model=model)


# ---------------------------------------------------------------- training
@pytest.mark.parametrize("name", ["dino", "simclr", "moco", "lejepa", "supervised", "vqvae", "dvae", "mae"])
def test_gradients_reach_the_module_and_a_copied_run_goes_on_identically(name):
    """A checkpoint after three steps, loaded into new objects, continues as the run itself does."""
    make = vit if name == "mae" else cnn
    labels = (torch.arange(8) % 3,) if name == "supervised" else ()

    def begin():
        module = make()
        learner = objective(name, module, classes=3)
        return module, learner, torch.optim.AdamW(learner.parameters(), lr=1e-2)

    module, learner, optimizer = begin()
    first = copy.deepcopy(module.state_dict())
    steps(learner, optimizer, range(3), *labels)
    assert all(p.grad is not None for p in module.parameters())
    assert all(not torch.equal(p, first[n]) for n, p in module.named_parameters() if p.grad.abs().sum())
    saved = copy.deepcopy((learner.state_dict(), optimizer.state_dict()))
    straight = steps(learner, optimizer, range(3, 6), *labels)

    _, other, other_optimizer = begin()
    other(images(), *labels)  # a step that was begun and is forgotten
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    assert other.step == 3
    assert steps(other, other_optimizer, range(3, 6), *labels) == straight
    for key, value in other.state_dict().items():
        assert torch.equal(value, learner.state_dict()[key]), key


@pytest.mark.parametrize("name", ["beit", "distil", "eva", "deit"])
def test_methods_that_learn_from_a_model(name):
    encoder = backbones.build(name="vit/8", image_size=SIZE, depth=1, dim=12, heads=2, hidden=24)
    tensors = {"codes.weight": torch.randn(7, 12), "codes.bias": torch.zeros(7)}
    tensors |= {"classifier.weight": torch.randn(3, 12), "classifier.bias": torch.zeros(3)}
    preprocess = objective("simclr").preprocess
    model = weights.Model(encoder, preprocess, extras=Extras(tensors, {"classes": ["a", "b", "c"]}))
    before = copy.deepcopy(encoder.state_dict())
    options = {"distilled": True} if name == "deit" else {}
    student = backbones.build(name="vit-n/8", image_size=SIZE, **options)
    learner = objective(name, student, model=model, classes=["a", "b", "c"])
    steps(learner, torch.optim.AdamW(learner.parameters(), lr=1e-2), range(2), torch.arange(8) % 3)
    assert all(p.grad is not None for p in student.parameters())
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    if name not in ("distil", "eva"):
        without = weights.Model(encoder, preprocess, extras=Extras({}))
        with pytest.raises(ValueError, match="model is not what"):
            objective(name, student, model=without, classes=3)


def test_the_teacher_is_exported_and_moves():
    module = cnn()
    learner = objective("dino", module)
    exported = learner.export_encoder()
    assert isinstance(exported, nn.Sequential)
    assert exported is not module
    before = exported[0].weight.clone()
    torch.testing.assert_close(before, module[0].weight)
    steps(learner, torch.optim.SGD(learner.parameters(), lr=0.1), range(2))
    assert not torch.equal(exported[0].weight, before)
    assert not torch.equal(exported[0].weight, module[0].weight)
    assert objective("simclr", module).export_encoder() is module
    assert objective("mae", vit()).export_encoder().name == "vit-n/8"


def test_evaluation_changes_nothing():
    learner = objective("dino").eval()
    before = copy.deepcopy(learner.state_dict())
    assert learner(images()) == learner(images())
    assert all(torch.equal(value, before[key]) for key, value in learner.state_dict().items())
    with torch.no_grad():
        learner.train()(images())
    with pytest.raises(ValueError, match="in training mode"):
        learner.after_step()


def test_schedules_follow_the_clock_and_views_the_seed():
    learner = objective("dino", steps=4, epochs=2)
    before = learner.batch(images()).views[0]
    steps(learner, torch.optim.SGD(learner.parameters(), lr=0.1), range(3))
    assert (learner.clock.step, learner.clock.progress, learner.clock.epoch) == (3, 0.75, 1.5)
    assert torch.equal(objective("dino").batch(images()).views[0], before)
    assert not torch.equal(objective("dino", seed=1).batch(images()).views[0], before)


def test_a_module_without_a_name_has_the_recipe_of_its_kind():
    """simmim asks for stages that merge tokens, moco for plain patches, dinov2's ladder for the options."""

    def recipe(name: str, encoder: nn.Module, **options):
        return objective(name, encoder, options=options).recipe

    def unnamed(name: str):
        encoder = backbones.outline(name=name, image_size=SIZE)
        vars(encoder).pop("built_from")
        return encoder

    assert recipe("moco", cnn()).lr > recipe("moco", vit()).lr == recipe("moco", unnamed("vit-n/8")).lr
    assert recipe("moco", cnn()) == recipe("moco", backbones.build(name="vitc-15mf", image_size=SIZE))
    recipes = [
        objective("simmim", encoder, image_size=64, recipe="paper").recipe
        for encoder in (backbones.outline(name="swin-t", image_size=64), unnamed("swin-t"))
    ]
    assert [r.drop_path for r in recipes] == [0.0, 0.0]  # of a ViT .1
    assert objective("simmim", vit(), image_size=64, recipe="paper").recipe.drop_path == 0.1
    assert recipe("dinov2", vit(), ladder=1).lr != recipe("dinov2", vit()).lr


def test_micro_batches_are_one_step():
    """Their images are numbered on, so that they equal one batch."""
    learner, x = objective("dino"), images()
    whole = learner.batch(x)
    learner(x[:4])
    second = learner.batch(x[4:])
    for one, all_of_it in zip(second.views, whole.views, strict=True):
        torch.testing.assert_close(one, all_of_it[4:])
    learner(x[4:])
    learner.after_step()
    assert learner.step == 1
    assert not torch.equal(learner.batch(x).views[0], whole.views[0])


def test_a_forgotten_after_step_is_noticed():
    learner = objective("dino")
    optimizer = torch.optim.AdamW(learner.parameters())
    learner(images()).backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"after_step\(\): call it after each step"):
        learner(images())


def test_late_layers_are_frozen_by_the_clock_of_the_loop():
    learner = objective("dino", steps=4, epochs=2, options={"freeze_last_epochs": 1.0})
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
    weight = learner.method.head.last.weight
    before = weight.clone()
    steps(learner, optimizer, range(2))
    assert torch.equal(weight, before)
    steps(learner, optimizer, range(2, 3))
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("name", ["dino", "simclr", "moco", "lejepa", "supervised", "mae", "ibot", "dinov2"])
def test_autocast(name):
    """Views are cut in full precision; loss and gradients are near those of fp32."""
    make = vit if name in ("mae", "ibot", "dinov2") else cnn
    labels = (torch.arange(8) % 3,) if name == "supervised" else ()
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        module = make()
        learner = objective(name, module, classes=3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            views = learner.batch(images(), *labels).views
            loss = learner(images(), *labels)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters()])
        results.append((views, loss.item(), gradient))
    (exact_views, exact, exact_gradient), (views, loss, gradient) = results
    assert all(torch.equal(a, b) for a, b in zip(views, exact_views, strict=True))
    assert loss == pytest.approx(exact, rel=0.05)
    assert torch.cosine_similarity(gradient, exact_gradient, dim=0) > 0.9


# ---------------------------------------------------------------- images
def test_bytes_floats_normalised_images_and_lists_are_the_same_views():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    learner, x = objective("dino", mean=mean, std=std), images()
    views = learner.batch(x).views
    floats = x / 255
    unit = (floats - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    already = objective("dino", mean=mean, std=std, normalised=True).batch(unit).views
    for other in (learner.batch(floats).views, already, learner.batch(list(floats)).views):
        for one, expected in zip(other, views, strict=True):
            torch.testing.assert_close(one, expected, atol=1e-3, rtol=1e-3)
    ragged = learner.batch([image[:, : 20 + i] for i, image in enumerate(x)])
    assert [view.shape for view in ragged.views] == [view.shape for view in views]


def test_the_view_of_a_whole_image_is_normalised_by_mean_and_std():
    learner = objective("mae", vit(), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    grey = torch.full((2, 3, SIZE, SIZE), 0.75)
    torch.testing.assert_close(learner.batch(grey).views[0], torch.ones(2, 1, 3, SIZE, SIZE))


def test_other_numbers_of_channels():
    module = nn.Conv2d(2, 8, 4, 4)
    learner = objective("simclr", module, mean=(0.5, 0.5), std=(0.2, 0.2))
    learner(torch.rand(4, 2, SIZE, SIZE)).backward()
    assert module.weight.grad is not None


def test_a_wrapped_module_keeps_its_prefix():
    encoder = omma.wrap(cnn(), image_size=SIZE, name="mine")
    assert isinstance(encoder, Wrapped)
    learner = objective("simclr", encoder)
    assert learner.method.encoder is encoder
    assert learner.export_encoder() is encoder.module


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.rand(4, 3, SIZE, SIZE) * 255, r"outside \[0, 1\]: give uint8"),
        (torch.randn(4, 3, SIZE, SIZE), r"outside \[0, 1\]: give uint8"),
        (torch.zeros(4, 3, SIZE, SIZE, dtype=torch.int64), "give uint8, or floats"),
        (torch.rand(4, 1, SIZE, SIZE), "expected 3 channels"),
        (torch.rand(1, 3, SIZE, SIZE), "needs a batch of at least 2"),
    ],
)
def test_images_that_would_be_misread_are_refused(x, reason):
    with pytest.raises(ValueError, match=reason):
        objective("simclr")(x)


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 3]), torch.zeros(3, dtype=torch.int64)])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(ValueError, match="labels"):
        objective("supervised", classes=3)(images(2), labels)


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"options": {"prototype": 3}}, "no such option"),
        ({"steps": 0}, "steps=0: give"),
        ({"recipe": "huge"}, "choose small or paper"),
        ({"mean": (0.5,) * 4}, "cannot read images of 4x32x32"),
        ({"std": (0.5,)}, "give 3 numbers each"),
        ({"module": nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4))}, "options crop_size"),
    ],
)
def test_what_cannot_be_built_is_refused(others, reason):
    with pytest.raises(ValueError, match=reason) as error:
        objective("dino", **others)
    assert "\n" not in str(error.value)


def test_a_module_of_one_size_trains_on_views_of_that_size():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4))
    objective("dino", module, options={"crop_size": SIZE})(images()).backward()
    assert module[1].weight.grad is not None


# ---------------------------------------------------------------- the recipe's optimizer
def test_it_trains_by_the_recipe_as_the_engine_does():
    """Rates, decay, clipping, frozen groups: the weights are those of `train` on the same views."""
    options = {"freeze_last_epochs": 1.0}
    own, other = (objective("dino", vit(), epochs=2, options=options) for _ in range(2))
    recipe = dataclasses.replace(own.recipe, clip=0.05, clip_by="tensor", decayed=("token",), lr_end=1e-4)
    own.recipe = other.recipe = recipe
    assert other.clock == Position(0, 8, 8, 32).clock()

    optimizer = own.make_optimizer(batch=8)
    assert own.recipe.lr == pytest.approx(recipe.lr * (8 / recipe.batch) ** 0.5)
    norms = []
    for number in range(4):
        loss = own(images(seed=number))
        optimizer.zero_grad()
        loss.backward()
        norms.append(own.before_step(optimizer))
        optimizer.step()
        own.after_step()

    batches = []
    for number in range(5):
        batches.append(other.batch(images(seed=number)))
        other._begin(number + 1)
    engine = train(
        other.method, make_optimizer(other.method, own.recipe), batches, own.recipe, Position(0, 8, 8, 32)
    )
    for number in range(4):
        assert next(engine).gradient_norm == pytest.approx(norms[number])
    weights_of = dict(other.method.named_parameters())
    for name, p in own.method.named_parameters():
        torch.testing.assert_close(p, weights_of[name], rtol=1e-5, atol=1e-6)


def test_epochs_of_so_many_steps_and_groups_that_age():
    learner = objective("dino", vit(), epochs=4, options={"freeze_last_epochs": 1.0})
    learner.recipe = dataclasses.replace(learner.recipe, epoch_steps=2)
    learner._late = [dataclasses.replace(group, ages=True) for group in learner._late]
    learner._begin(3)
    assert (learner.clock.epoch, learner.clock.epochs, learner.clock.passes) == (1.5, 4, 1.5)
    learner._begin(0)
    late = learner._late[0].params[0]
    learner(images())
    assert not late.requires_grad  # of another optimizer, which does not know of it
    learner.make_optimizer()
    learner(images())
    assert late.requires_grad  # its rate is 0
