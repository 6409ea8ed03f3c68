"""The rules of docs/auto.md."""

import dataclasses

import pytest

from omma import backbones, methods
from omma.pretraining import choose, placement, requirements
from omma.pretraining.request import Request

CPU = choose.Facts(images=10_000, shorter_side=32, device="cpu")
GPU = dataclasses.replace(CPU, device="cuda", images=1_000_000, shorter_side=480)


def test_small_images_on_a_cpu():
    choice = choose.choose(CPU, Request("images"))
    assert (choice.method, choice.model, choice.image_size, choice.recipe_name) == (
        "simclr", "vitc-15mf", 32, "small",
    )  # fmt: skip
    assert {what.split()[0] for what, _ in choice.reasons} == {"image", "method", "model", "recipe", "batch"}
    assert all(why for _, why in choice.reasons)


def test_many_images_on_a_gpu():
    choice = choose.choose(GPU, Request("images"))
    assert (choice.method, choice.model, choice.image_size, choice.recipe_name) == (
        "dino", "vit-s/16", 224, "paper",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("device", "side", "size"),
    [("cpu", 28, 32), ("cpu", 32, 32), ("cpu", 64, 64), ("cpu", 480, 64), ("cuda", 480, 224),
     ("cuda", 100, 96),
     ("mps", 480, 64), ("cpu", 8, 16)],
)  # fmt: skip
def test_image_size(device, side, size):
    choice = choose.choose(dataclasses.replace(CPU, device=device, shorter_side=side), Request("images"))
    assert choice.image_size == size


def test_the_users_options_win_and_need_no_reason():
    request = Request("images",
        method="dino", model="vit-s/8", image_size=48, batch_size=20, lr=0.5, recipe="paper",
        options={"momentum": "0.9", "local_crops": "2", "blur": "False", "global_scale": "0.3,0.9"},
    )  # fmt: skip
    choice = choose.choose(CPU, request)
    assert not choice.reasons
    assert (choice.method, choice.model, choice.image_size) == ("dino", "vit-s/8", 48)
    assert (choice.recipe.batch, choice.recipe.lr) == (20, 0.5)
    config = choice.recipe.config
    assert (config.momentum, config.local_crops, config.blur) == (0.9, 2, False)
    assert config.global_scale == (0.3, 0.9)


def test_the_recipe_knows_its_model():
    hybrid, plain = (choose.choose(CPU, Request("images", model=m)).recipe for m in ("vitc-15mf", "vit-n/4"))
    assert (hybrid.config.crop_size, plain.config.crop_size) == (24, 16)
    assert plain.lr < hybrid.lr
    assert choose.choose(CPU, Request("images", method="mae")).model == "vit-n/4"
    assert choose.choose(GPU, Request("images", method="mae")).model == "vit-s/16"


def test_few_images_make_a_smaller_batch_and_rate():
    few = choose.choose(dataclasses.replace(CPU, images=8), Request("images"))
    many = choose.choose(CPU, Request("images"))
    assert few.recipe.batch == 8
    assert few.recipe.lr == pytest.approx(many.recipe.lr * (8 / many.recipe.batch) ** 0.5)
    assert choose.choose(dataclasses.replace(CPU, images=1), Request("images")).recipe.batch == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "dyno"}, "dino"),
        ({"recipe": "large"}, "choose .*small"),
        ({"method": "mae", "options": {"momentum": "1"}}, "no such option"),
        ({"method": "mae", "options": {"mask_share": "many"}}, "expected float"),
        ({"method": "mae", "options": {"mask_share": "1.5"}}, "between 0 and 1"),
        ({"method": "dino", "options": {"teacher_temp": "0"}}, "above 0"),
    ],
)
def test_nonsense_is_refused_in_one_line(options, words):
    with pytest.raises(ValueError, match=words) as error:
        choose.choose(CPU, Request("images", **options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", methods.names())
@pytest.mark.parametrize("facts", [CPU, dataclasses.replace(CPU, shorter_side=300), GPU])
def test_whatever_is_chosen_can_be_built(method, facts):
    import torch

    choice = choose.choose(facts, Request("images", method=method))
    options = choice.encoder_options()
    with torch.device("meta"):
        encoder = backbones.build(name=choice.model, image_size=choice.image_size, **options)
    requirements.suits(
        method, requirements.needs_of(method, choice.recipe.config), encoder, choice.image_size
    )
    crops = methods.get(method).views(choice.recipe.config, choice.image_size)
    # what the encoder sees: context cuts its view into patches, of 8 px at 32 px
    cut = method == "context"
    for size in [choice.recipe.config.patch] if cut else [crop.size for crop in crops]:
        rows, columns = encoder.grid(size, size)
        assert rows * columns >= (1 if cut else 4)  # local crops too
        if encoder.drops_tokens:
            assert size % encoder.patch == 0


def test_mae_refuses_a_backbone_that_cannot_drop_tokens():
    for model, options in (("vitc-15mf", {}), ("swin-t", {}), ("vit-n/4", {"mixer": "fourier"})):
        request = Request("images", method="mae", model=model, model_options=options)
        with pytest.raises(ValueError, match="choose a plain ViT"):
            requirements.refuse(request, classes=None, captions=False)


def test_labels_and_captions_at_hand():
    labelled = choose.choose(dataclasses.replace(CPU, labels=True), Request("images"))
    assert labelled.method == "simclr"
    assert any(what == "labels not used" for what, _ in labelled.reasons)
    few = choose.choose(dataclasses.replace(GPU, images=2_000, captions=True), Request("images"))
    many = choose.choose(dataclasses.replace(GPU, images=1_000_000, captions=True), Request("images"))
    assert (few.method, many.method) == ("simclr", "clip")
    assert not any(what == "captions not used" for what, _ in many.reasons)
    named = choose.choose(dataclasses.replace(CPU, labels=True), Request("images", method="supervised"))
    assert not any(what == "labels not used" for what, _ in named.reasons)


def test_options_are_typed_as_their_fields_are():
    """Not as what the recipe has put there: a crop's size may be left open again."""
    request = Request("images", method="simclr", model="vit-n/4", options={"crop_size": "none"})
    assert choose.choose(CPU, request).recipe.config.crop_size is None
    request = Request("images", method="simclr", model="vit-n/4", options={"crop_size": "24"})
    assert choose.choose(CPU, request).recipe.config.crop_size == 24
    with pytest.raises(ValueError, match=r"--method.crop_size 'big': expected a number or none"):
        choose.choose(CPU, Request("images", method="simclr", options={"crop_size": "big"}))


def test_options_are_typed_where_annotations_are_strings():
    """As under `from __future__ import annotations`."""
    types = {"size": "int | None", "name": "str", "rate": "float"}
    fields = {"__annotations__": types, "size": 3, "name": "a", "rate": 1.0}
    config = dataclasses.dataclass(frozen=True)(type("Config", (), fields))
    made = requirements.configured("toy", config(), {"size": "none", "name": "7", "rate": "0.5"})
    assert (made.size, made.name, made.rate) == (None, "7", 0.5)


@pytest.mark.parametrize("recipe", ["views", "Method", "large"])
def test_recipes_are_a_closed_list(recipe):
    with pytest.raises(ValueError, match=f"recipe='{recipe}': choose 'auto', 'small', 'paper'"):
        Request("images", method="dino", recipe=recipe)
    with pytest.raises(ValueError, match=f"recipe '{recipe}': choose small or paper"):
        methods.get("dino").recipe(recipe)


@pytest.mark.parametrize(
    ("wish", "processes", "memory", "blocks", "spread", "said"),
    [
        ("auto", 8, 80, True, False, ""),
        ("auto", 8, 36, True, False, ""),
        ("auto", 8, 32, True, True, "28 GiB of a GPU's 32: its blocks are sharded over 8"),
        ("auto", 8, 32, False, False, "expect to run out of memory"),
        ("auto", 1, 32, True, False, ""),
        ("auto", 8, None, True, False, ""),  # a CPU
        ("fsdp", 8, 80, True, True, ""),
        ("none", 8, 32, True, False, ""),
    ],
)
def test_what_does_not_fit_is_spread(wish, processes, memory, blocks, spread, said):
    state = placement.state_bytes(1_250_000_000, 1_250_000_000, half_copy=True)
    assert state == 24 * 1_250_000_000
    found, notes = placement.shard_blocks(
        wish, processes=processes, state=state, memory=memory and memory << 30, blocks=blocks
    )
    assert found == spread
    assert said in " ".join(notes)
    assert bool(notes) == bool(said)
