"""What `auto` means: from data and device to a complete plan, with reasons."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from omma import backbones, methods
from omma.backbones.layers.heads import several
from omma.core.protocols import Backbone, Needs, Recipe
from omma.train.fine_tune_groups import Origin

SMALL_IMAGES = 64  # pixels: up to here images are taken as they are
SMALL_DATA = 100_000  # images: up to here the small-data recipes
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
class Wishes:
    """What the user said; None is `auto`."""

    method: str | None = None
    model: str | None = None
    image_size: int | None = None
    batch: int | None = None
    accumulate: int = 1  # parts that a batch is computed in
    lr: float | None = None
    recipe: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # --method.KEY VALUE
    model_options: Mapping[str, Any] = field(default_factory=dict)  # --model.KEY VALUE
    init: Origin | None = None  # --init: the weights to go on from


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
        """What the recipe wants of the backbone, as far as that has such options, and what the user wants."""
        known = backbones.options(self.model)
        wanted = {k: v for k, v in self.recipe.encoder.items() if k in known}
        return {**wanted, "drop_path": self.recipe.drop_path, **self.model_options}


def needs_of(method: str, config: Any) -> Needs:
    """What a method wants beside images."""
    return methods.get(method).needs(config)


def wanted(wishes: Wishes) -> Needs:
    """What the method that the user names wants, with its options; nothing where none is named."""
    if wishes.method is None:
        return Needs()
    return needs_of(wishes.method, _early(wishes.method, wishes).config)


def _early(method: str, wishes: Wishes) -> Recipe:
    """A method's recipe as far as it is known before the images are."""
    file = methods.get(method)
    recipe = file.recipe(wishes.recipe or "small")
    plan = recipe(wishes.image_size or 64, wishes.model or "vit-s/8")
    return dataclasses.replace(plan, config=_configured(method, plan.config, wishes.options))


def refuse(wishes: Wishes, *, classes: Sequence[str] | None, captions: bool) -> None:
    """Raise ValueError for what the method that the user names needs and does not get, with the remedy.

    classes: what the images' labels mean; None where they have none. captions: has any image one? Asks
    nothing of the images' pixels.
    """
    name, model = wishes.method, wishes.model
    if name is None:
        return
    plan = _early(name, wishes)
    needs = needs_of(name, plan.config)
    if needs.labels and classes is None:
        raise ValueError(
            f"{name} learns from labels, and these images have none: put them into one folder a class, or "
            "give a manifest with a `label` column (docs/input.md); without labels choose --method simclr"
        )
    if needs.labels and classes is not None:
        several(classes)
    if needs.text and not captions:
        raise ValueError(
            f"{name} learns from captions, and these images have none: give a manifest with the columns "
            "`path` and `text` (docs/input.md); without captions choose --method simclr"
        )
    if needs.model is not None and getattr(plan.config, needs.model) is None:
        raise ValueError(
            f"{name} learns from {needs.kind}: give --method.{needs.model.replace('_', '-')} MODEL"
        )
    for key in needs.files:
        path = getattr(plan.config, key)
        if path is not None and not Path(path).is_file():
            raise ValueError(f"--method.{key.replace('_', '-')} {path}: no such file; give its path")
    if wishes.batch is not None:
        _enough(name, needs, wishes.batch, wishes.accumulate)
    if model is None:
        return
    known = backbones.options(model)
    if needs.drops_tokens or needs.plain or needs.backbone_options:
        chosen = _chosen("model", model, known, wishes.model_options)
        suits(name, needs, backbones.outline(name=model, image_size=wishes.image_size or 64, **chosen))
    methods.get(name).adapted(plan, known)


def _enough(method: str, needs: Needs, batch: int, accumulate: int) -> None:
    """Raise ValueError where a batch, or the part of it that is computed at once, has too few images."""
    if batch // accumulate < needs.batch:
        parts = f" in each of {accumulate} parts" if accumulate > 1 else ""
        raise ValueError(
            f"{method} needs a batch of {needs.batch} at least{parts} ({needs.why_batch}): choose another "
            f"--batch-size{' or --accumulate' * (accumulate > 1)}"
        )


def suits(method: str, needs: Needs, encoder: Backbone, image_size: int | None = None) -> None:
    """Raise ValueError for a backbone that cannot do what a method needs of it.

    image_size: where it is known, an image that is a single patch is refused too: none of it can be hidden.
    """
    lacking = []
    if needs.drops_tokens and not encoder.drops_tokens:
        lacking.append("leave tokens out")
    if needs.plain and not encoder.plain:
        lacking.append("embed each patch by itself")
    for option, what in needs.backbone_options.items():
        if option not in backbones.options(encoder.name):
            lacking.append(what)
    if lacking:
        raise ValueError(
            f"{method} needs a backbone that can {lacking[0]}, and {encoder.name} cannot: choose a plain ViT "
            "(--model vit-ti/4) or another method (--method simclr)"
        )
    if image_size and (needs.drops_tokens or needs.plain) and encoder.grid(image_size, image_size) == (1, 1):
        raise ValueError(
            f"{method} hides patches, and to {encoder.name} an image of {image_size} px is a single one: "
            "choose smaller patches or a larger --image-size"
        )


def choose(facts: Facts, wishes: Wishes) -> Choice:
    """Fill in what the user left open. The rules are documented in docs/auto.md.

    Raises ValueError for names and options that do not exist or do not go together.
    """
    reasons: list[tuple[str, str]] = []
    init = wishes.init
    size = wishes.image_size
    if size is None:
        size, why = _image_size(facts) if init is None else _image_size_of(init, facts)
        reasons.append((f"image size {size}", why))
    method = wishes.method
    if method is None:
        method, why = _method(facts)
        reasons.append((f"method {method}", why))
        reasons += _unused(facts, method)
    file = methods.get(method)
    model, options = wishes.model, dict[str, Any]()
    if init is not None:
        model, options = _continued(init, wishes.model)
        if wishes.model is None:
            reasons.append((f"model {model}", f"that of {init.source}"))
    elif model is None:
        model, why = _model(facts, method, needs_of(method, file.small(size, "vit-s/8").config), size)
        reasons.append((f"model {model}", why))
    name = wishes.recipe
    if name is None:
        name = "small" if facts.images <= SMALL_DATA or facts.device != "cuda" else "paper"
        reasons.append((f"recipe {name}", f"{facts.images:,} images on {facts.device}"))
    recipe = file.recipe(name)(size, model)
    recipe = dataclasses.replace(recipe, config=_configured(method, recipe.config, wishes.options))
    recipe = file.adapted(recipe, backbones.options(model))
    if init is not None:  # the weights were made for what they have
        recipe = dataclasses.replace(recipe, encoder={})
    batch, why = wishes.batch, ""
    if batch is None:
        batch, why = _batch(facts, recipe)
        reasons.append((f"batch {batch}", why))
    _enough(method, needs_of(method, recipe.config), batch, wishes.accumulate)
    # AdamW's rate follows the square root of the batch; what the user sets is taken as it is
    lr = wishes.lr if wishes.lr is not None else recipe.lr * (batch / recipe.batch) ** 0.5
    recipe = dataclasses.replace(recipe, batch=batch, lr=lr)
    return Choice(
        method=method, model=model, image_size=size, recipe=recipe, recipe_name=name,
        model_options=options | _chosen("model", model, backbones.options(model), wishes.model_options),
        reasons=tuple(reasons),
    )  # fmt: skip


def state_bytes(trained: int, others: int, *, lowered: bool) -> int:
    """What a whole copy of a network takes beside its activations, in bytes, from numbers of parameters.

    trained: weights, gradients and AdamW's two moments in fp32. others: a teacher's, weights alone. lowered:
    all of them in bf16, too.
    """
    return 16 * trained + 4 * others + 2 * (trained + others) * lowered


def spread(
    wish: str, *, processes: int, state: int, memory: int | None, blocks: bool
) -> tuple[bool, list[str]]:
    """Are a network's blocks spread over the processes (`--shard`), and what is to be said of it?

    wish: "fsdp", "none" or "auto": where a whole copy would leave less than a fifth of a GPU for activations.
    state: bytes of that copy. memory: of the smallest GPU, in bytes; None on a CPU. blocks: are there any?
    """
    if wish != "auto":
        return wish == "fsdp", []
    if processes == 1 or memory is None or state <= 0.8 * memory:
        return False, []
    why = f"a copy of network and optimizer takes {state / 2**30:.0f} GiB of a GPU's {memory / 2**30:.0f}"
    if not blocks:
        return False, [f"{why}, and it has no blocks to spread: expect to run out of memory"]
    return True, [f"{why}: its blocks are spread over {processes} processes"]


def compiling(wish: str, *, device: str, blocks: bool, profiled: bool, spread: bool, before: bool) -> str:
    """Are a network's blocks compiled (`--compile`): "on", "off", or "auto", which a trial has to tell?

    blocks: are there any? profiled, spread: are they looked into, or spread over processes? before: were they
    compiled when the run began? Raises ValueError for a wish that cannot be had.
    """
    if wish == "on":
        if not blocks:
            raise ValueError("--compile works block by block, and this model has none: leave it out")
        if profiled or spread:
            other = (
                "--profile looks into blocks" if profiled else "--shard fsdp spreads blocks over processes"
            )
            raise ValueError(f"{other}, and --compile on closes them: give one of both")
    if wish != "auto" or before:
        return "on" if before else wish
    return "auto" if device == "cuda" and blocks and not (profiled or spread) else "off"


def _image_size(facts: Facts) -> tuple[int, str]:
    side = facts.shorter_side
    if side <= SMALL_IMAGES:
        size = max(16, -(-side // 8) * 8)
        return size, f"images are {side} px (shorter side, median), used whole"
    if facts.device != "cuda":
        return min(64, side), f"images are {side} px; a {facts.device} learns more from many small ones"
    size = min(224, side // 16 * 16)
    return size, f"images are {side} px"


def _image_size_of(init: Origin, facts: Facts) -> tuple[int, str]:
    own, side = int(init.spec["image_size"]), facts.shorter_side
    size = max(-(-side // init.patch), FEWEST_PATCHES) * init.patch
    if size >= own:
        return own, f"that of {init.source}"
    why = f"images are {side} px (shorter side, median), the weights' own {own} px would add nothing"
    return size, why if size < side + init.patch else f"{why}; {FEWEST_PATCHES} patches a side at least"


def _continued(init: Origin, model: str | None) -> tuple[str, dict[str, Any]]:
    """The weights' own model and options, or the same with another patch size (the name's last part)."""
    own = str(init.spec["name"])
    options = {k: v for k, v in init.spec.items() if k not in ("name", "image_size", "channels")}
    if model is None or model == own:
        return own, options
    if model.partition("/")[0] != own.partition("/")[0]:
        raise ValueError(
            f"--model {model} is another architecture than that of {init.source}, {own}: leave --model out"
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
    """Labels and captions at hand that the chosen method does not learn from, and which methods would."""
    by_name = {name: needs_of(name, methods.get(name).Config()) for name in methods.names()}
    found = []
    for kind, there, want in (("labels", facts.labels, "labels"), ("captions", facts.captions, "text")):
        if there and not getattr(by_name[method], want):
            names = ", ".join(name for name, needs in by_name.items() if getattr(needs, want))
            found.append((f"{kind} not used", f"only methods that you name learn from them: {names}"))
    return found


def _model(facts: Facts, method: str, needs: Needs, size: int) -> tuple[str, str]:
    hybrid = "vitc-15mf"
    patch = 4 if size <= 64 else 16
    if needs.drops_tokens or needs.plain or needs.backbone_options:
        width = "s" if facts.device == "cuda" else "n"
        return f"vit-{width}/{patch}", f"{method} needs a plain ViT; {size // patch}x{size // patch} patches"
    if facts.device != "cuda":
        return hybrid, "a convolutional stem learns from little in little time"
    return f"vit-s/{patch}", f"{size // patch}x{size // patch} patches, a size for one GPU"


def _batch(facts: Facts, recipe: Recipe) -> tuple[int, str]:
    if recipe.batch <= facts.images:
        return recipe.batch, "the recipe's"
    # a batch of several passes over few images would contrast an image with itself
    batch = max(2, facts.images)
    return batch, f"no more than there are images ({facts.images})"


def _configured(method: str, config: Any, options: Mapping[str, Any]) -> Any:
    """The method's configuration with the user's options; refuses unknown ones."""
    known = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    # typed as the field is, not as what the recipe has put there
    types = get_type_hints(type(config))  # annotations may be strings
    known |= {name: "" for name in known if types[name] in (str, str | None)}
    known |= {name: None for name in known if types[name] in (int | None, float | None)}
    return dataclasses.replace(config, **_chosen("method", method, known, options))


def _chosen(flag: str, name: str, known: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The user's options of a method or model, typed as what they replace; refuses unknown ones."""
    for key in options:
        if key not in known:
            raise ValueError(f"--{flag}.{key}: {name} has no such option; it has {', '.join(sorted(known))}")
    return {k: _typed(f"--{flag}.{k}", v, known[k]) for k, v in options.items()}


def _typed(name: str, value: Any, like: Any) -> Any:
    """A value from the command line ("0.04", "False", "0.2,1.0") as the type of the default."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        if isinstance(like, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(like, tuple):
            return tuple(_number(part) for part in text.strip("()").split(","))
        if like is None:
            return None if text.lower() == "none" else _number(text)
        return type(like)(text)
    except (KeyError, ValueError):
        kind = "a number or none" if like is None else f"{type(like).__name__}, such as {like}"
        raise ValueError(f"{name} {value!r}: expected {kind}") from None


def _number(text: str) -> int | float:
    """Whole where it is written so."""
    try:
        return int(text)
    except ValueError:
        return float(text)
