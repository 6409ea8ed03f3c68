"""What `auto` means: from data and device to a complete plan, with reasons."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from omma import backbones, methods
from omma.core import words
from omma.core.protocols import Recipe
from omma.core.stages import resolution_of
from omma.pretraining.request import Auto, Request, chosen
from omma.pretraining.requirements import configured, enough_images, needs_of, typed
from omma.train.fine_tune_groups import Origin

T = TypeVar("T")

SMALL_IMAGES = 64  # pixels: up to here images are taken as they are
SMALL_DATA = 100_000  # images: up to here the small-data recipes
FINE_PATCHES = 48  # pixels: plain ViTs of larger images on a CPU have patches of 8 px, whose steps are fast
FEWEST_PATCHES = 8  # along a side, under which weights made for larger images see too little of small ones


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the choice depends on."""

    images: int
    shorter_side: int  # median of a sample, pixels
    device: str  # "cpu", "cuda", "mps"
    labels: bool = False  # is any image labelled?
    captions: bool = False  # has any image a caption?


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Everything that decides the training, and why."""

    method: str
    model: str
    image_size: int
    recipe: Recipe
    recipe_name: str
    model_options: Mapping[str, Any]  # the user's own, and those of the weights it goes on from
    reasons: tuple[tuple[str, str], ...]  # (what was chosen, why)

    def encoder_options(self) -> Mapping[str, Any]:
        """The recipe's options of the backbone, as far as it has them, and the user's own."""
        options = backbones.options(self.model)
        own = {k: v for k, v in self.recipe.encoder.items() if k in options}
        return {**own, "drop_path": self.recipe.drop_path, **self.model_options}


def choose(facts: Facts, request: Request, origin: Origin | None = None) -> Choice:
    """Fill in what the user left open, by the rules of docs/auto.md.

    origin: the weights that the run starts from. Raises ValueError for names and options that do not exist or
    do not go together.
    """
    reasons: list[tuple[str, str]] = []

    def decide(what: str, option: T | Auto | None, rule: Callable[[], tuple[T, str]]) -> T:
        """The user's value, or the rule's with its reason."""
        value = chosen(option)
        if value is None:
            value, why = rule()
            reasons.append((f"{what} {value}", why))
        return value

    size = decide("image size", request.image_size, lambda: _image_size(facts, origin, request))
    method = decide("method", request.method, lambda: _method(facts))
    if request.method == "auto":
        reasons += _unused(facts, method)
    if origin is None:
        model, inherited = decide("model", request.model_name, lambda: _model(facts, method, size)), {}
    else:
        model, inherited = _model_of(origin, chosen(request.model_name))
        decide("model", request.model_name, lambda: (model, f"that of {origin.source}"))
    name = decide("recipe", request.recipe, lambda: _recipe_name(facts))
    before = None if origin is None else origin.pretrained_by
    recipe = _recipe(method, name, size, model, before, request.options or {})
    if origin is not None:
        recipe = _continued(recipe)
    batch = decide("batch", request.batch_size, lambda: _batch(facts, recipe))
    enough_images(method, needs_of(method, recipe.config), batch, chosen(request.accumulate) or 1)
    recipe = recipe.for_batch(batch)
    recipe = dataclasses.replace(recipe, lr=chosen(request.lr) or recipe.lr)
    if request.resolution != "auto":
        recipe = dataclasses.replace(recipe, resolution=resolution_of(request.resolution))
    own = typed("model", model, backbones.options(model), request.model_options or {})
    return Choice(
        method=method,
        model=model,
        image_size=size,
        recipe=recipe,
        recipe_name=name,
        model_options=inherited | own,
        reasons=tuple(reasons),
    )


def _recipe(
    method: str, name: str, size: int, model: str, before: str | None, options: Mapping[str, Any]
) -> Recipe:
    """The method's recipe with the user's options, and what of it follows from these.

    before: the method that pretrained the weights, if known.
    """
    file = methods.get(method)
    recipe = file.recipe(name)(size, model)
    if name == "paper" and before is not None and file.paper_after is not None:
        recipe = file.paper_after(before, size, model)
    recipe = dataclasses.replace(recipe, config=configured(method, recipe.config, options))
    return file.adapted(recipe, backbones.options(model))


def _continued(recipe: Recipe) -> Recipe:
    """For trained weights: their own options, and AdamW, whose steps are smaller than Muon's."""
    optimizer = "adamw" if recipe.optimizer == "muon" else recipe.optimizer
    return dataclasses.replace(recipe, encoder={}, optimizer=optimizer, least_steps=None)


def _recipe_name(facts: Facts) -> tuple[str, str]:
    name = "small" if facts.images <= SMALL_DATA or facts.device != "cuda" else "paper"
    return name, f"{words.count(facts.images, 'image')} on {facts.device}"


def _image_size(facts: Facts, origin: Origin | None, request: Request) -> tuple[int, str]:
    side = facts.shorter_side
    if origin is not None and request.method == methods.FINE_TUNING:  # a classifier of what the weights know
        return int(origin.preprocess["size"]), f"that of {origin.source}, which knows images of this size"
    if origin is not None:
        return _image_size_of(origin, side)
    if side <= SMALL_IMAGES:
        size = max(16, -(-side // 8) * 8)
        return size, f"images are {side} px (shorter side, median), used whole"
    if facts.device != "cuda":
        return min(64, side), f"images are {side} px; a {facts.device} learns more from many small ones"
    size = min(224, side // 16 * 16)
    return size, f"images are {side} px"


def _image_size_of(origin: Origin, side: int) -> tuple[int, str]:
    own = int(origin.spec["image_size"])
    size = max(-(-side // origin.patch), FEWEST_PATCHES) * origin.patch
    if size >= own:
        return own, f"that of {origin.source}"
    why = f"images are {side} px (shorter side, median), the weights' own {own} px would add nothing"
    return size, why if size < side + origin.patch else f"{why}; {FEWEST_PATCHES} patches a side at least"


def _model_of(origin: Origin, model: str | None) -> tuple[str, dict[str, Any]]:
    """The weights' own model and options, or the same with another patch size (the name's last part)."""
    own = str(origin.spec["name"])
    other = ("name", "image_size", "channels", "init")  # nothing is initialised
    options = {k: v for k, v in origin.spec.items() if k not in other}
    if model is None or model == own:
        return own, options
    if model.partition("/")[0] != own.partition("/")[0]:
        raise ValueError(
            f"--model {model} is another architecture than that of {origin.source}, {own}: leave --model out"
        )
    here, there = backbones.options(own), backbones.options(model)
    return model, {k: v for k, v in options.items() if here[k] == there[k]}


def _method(facts: Facts) -> tuple[str, str]:
    if facts.captions and facts.device == "cuda" and facts.images > SMALL_DATA:
        return "clip", "there are captions, and enough of them to learn from (docs/clip.md)"
    if facts.device != "cuda" or facts.images <= SMALL_DATA:
        return "simclr", "learns most in little time from few images (docs/benchmarks.md)"
    return "dino", "the best features on larger data with a GPU"


def _unused(facts: Facts, method: str) -> list[tuple[str, str]]:
    """Labels and captions that the chosen method does not learn from, and which methods would."""
    by_name = {name: needs_of(name, methods.get(name).Config()) for name in methods.names()}
    reasons = []
    for kind, present, need in (("labels", facts.labels, "labels"), ("captions", facts.captions, "text")):
        if present and not getattr(by_name[method], need):
            names = ", ".join(name for name, needs in by_name.items() if getattr(needs, need))
            reasons.append((f"{kind} not used", f"only methods that you name learn from them: {names}"))
    return reasons


def _model(facts: Facts, method: str, size: int) -> tuple[str, str]:
    patch = 4 if size <= 64 else 16
    needs = needs_of(method, methods.get(method).small(size, "vit-s/8").config)
    if needs.drops_tokens or needs.plain or needs.backbone_options:
        width = "s" if facts.device == "cuda" else "n"
        if facts.device != "cuda" and size > FINE_PATCHES:
            patch = max(patch, 8)
        return f"vit-{width}/{patch}", f"{method} needs a plain ViT; {size // patch}x{size // patch} patches"
    if facts.device != "cuda":
        return "vitc-15mf", "a convolutional stem learns from little in little time"
    return f"vit-s/{patch}", f"{size // patch}x{size // patch} patches, a size for one GPU"


def _batch(facts: Facts, recipe: Recipe) -> tuple[int, str]:
    if recipe.batch <= facts.images:
        return recipe.batch, "the recipe's"
    # a batch of several passes over few images would contrast an image with itself
    batch = max(2, facts.images)
    return batch, f"no more than there are images ({facts.images})" if batch == facts.images else "the least"
