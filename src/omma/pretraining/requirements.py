"""What a method requires beside images, and the refusal of runs that lack it; options typed and checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from omma import backbones, methods
from omma.backbones import adapters
from omma.backbones.layers.heads import require_two_classes
from omma.core.protocols import Backbone, Frames, Needs, Recipe
from omma.data.sources import label_sets
from omma.data.sources.collection import named
from omma.pretraining.request import Request, chosen


def needs_of(method: str, config: Any) -> Needs:
    """What a method requires beside images."""
    return methods.get(method).needs(config)


def of_request(request: Request) -> Needs:
    """What the method that the user names requires, with its options; nothing if none is named."""
    if request.method == "auto":
        return Needs()
    return needs_of(request.method, _early_recipe(request).config)


def frames_of(request: Request) -> Frames | None:
    """The frames that the method which the user names takes as a sample; None for one image."""
    if request.method == "auto":
        return None
    return methods.get(request.method).frames(_early_recipe(request).config)


def caption_of(request: Request) -> str | None:
    """The template by which the captions are composed; None for those of the table."""
    if request.method == "auto":
        return None
    config = _early_recipe(request).config
    field = needs_of(request.method, config).caption
    return None if field is None else getattr(config, field)


def _early_recipe(request: Request) -> Recipe:
    """The named method's recipe as far as it is known before the images are."""
    file = methods.get(request.method)
    recipe = file.recipe("small" if request.recipe == "auto" else request.recipe)
    plan = recipe(chosen(request.image_size) or 64, chosen(request.model_name) or "vit-s/8")
    return dataclasses.replace(plan, config=configured(request.method, plan.config, request.options or {}))


def refuse(
    request: Request,
    *,
    classes: Sequence[str] | None,
    captions: bool,
    notes: Sequence[str] = (),
    several: bool = False,
) -> None:
    """Raise ValueError if the method that the user names lacks what it requires, with the remedy.

    classes: names of the images' labels; None without labels. captions: has any image one? notes: on how both
    were read. several: may an image have several labels? Reads no pixels.
    """
    name = request.method
    if name == "auto":
        return
    plan = _early_recipe(request)
    needs = needs_of(name, plan.config)
    if needs.fixed_views and request.resolution not in ("auto", "full"):
        raise ValueError(f"{name} needs views of one size: leave --resolution {request.resolution} out")
    if needs.labels and several and not needs.label_sets:
        raise ValueError(label_sets.refusal(named(request.images), classes or (), name))
    _refuse_images(name, needs, classes, captions, notes)
    if needs.labels and classes is not None and not several:
        require_two_classes(classes)
    _refuse_options(name, needs, plan.config)
    if (batch := chosen(request.batch_size)) is not None:
        enough_images(name, needs, batch, chosen(request.accumulate) or 1)
    if request.model_name != "auto":
        _refuse_model(request, needs, plan)


def _refuse_images(
    name: str, needs: Needs, classes: Sequence[str] | None, captions: bool, notes: Sequence[str]
) -> None:
    why = f" ({'; '.join(notes)})" if notes else ""
    if needs.labels and classes is None:
        raise ValueError(
            f"{name} learns from labels, and these images have none{why}: put them into one folder a class, "
            "or give a manifest with a `label` column (docs/input.md), or choose a method that needs none "
            "(omma methods)"
        )
    if needs.text and not captions:
        compose = f", or compose them (--method.{needs.caption} 'a {{COLUMN}}')" if needs.caption else ""
        raise ValueError(
            f"{name} learns from captions, and these images have none{why}: give a manifest with the columns "
            f"`path` and `text` (docs/input.md){compose}, or choose a method that needs none (omma methods)"
        )


def _refuse_options(name: str, needs: Needs, config: Any) -> None:
    if needs.model is not None and getattr(config, needs.model) is None:
        raise ValueError(
            f"{name} learns from {needs.kind}: give --method.{needs.model.replace('_', '-')} MODEL"
        )
    for key in needs.files:
        path = getattr(config, key)
        if path is not None and not Path(path).is_file():
            raise ValueError(f"--method.{key.replace('_', '-')} {path}: no such file; give its path")


def _refuse_model(request: Request, needs: Needs, plan: Recipe) -> None:
    options = backbones.options(request.model_name)
    if needs.drops_tokens or needs.plain or needs.backbone_options:
        size = chosen(request.image_size) or 64
        own = typed("model", request.model_name, options, request.model_options or {})
        suits(request.method, needs, backbones.outline(name=request.model_name, image_size=size, **own))
    methods.get(request.method).adapted(plan, options)


def enough_images(method: str, needs: Needs, batch: int, accumulate: int) -> None:
    """Raise ValueError if a batch, or the micro-batch that is computed at once, has too few images."""
    if batch // accumulate < needs.batch:
        micro = f" in each of {accumulate} micro-batches" if accumulate > 1 else ""
        raise ValueError(
            f"{method} needs a batch of {needs.batch} at least{micro} ({needs.why_batch}): choose another "
            f"--batch-size{' or --accumulate' * (accumulate > 1)}"
        )


def suits(method: str, needs: Needs, encoder: Backbone, image_size: int | None = None) -> None:
    """Raise ValueError for a backbone that cannot do what a method requires of it.

    image_size: if given, an image that is a single patch is refused too: no part of it can be hidden.
    """
    lacking = []
    if needs.drops_tokens and not encoder.drops_tokens:
        lacking.append("leave tokens out")
    if needs.plain and not encoder.plain:
        lacking.append("embed each patch by itself")
    options = backbones.options(encoder.name) if hasattr(encoder, "built_from") else {}
    for option, ability in needs.backbone_options.items():
        if option not in options:
            lacking.append(ability)
    if lacking:
        network = encoder.name + (f" with --adapt {encoder.adapter}" if encoder.adapter else "")
        raise ValueError(
            f"{method} needs a backbone that can {lacking[0]}, and {network} cannot: choose a plain ViT "
            "(--model vit-ti/4) or another method (omma methods)"
        )
    if image_size and (needs.drops_tokens or needs.plain) and encoder.grid(image_size, image_size) == (1, 1):
        raise ValueError(
            f"{method} hides patches, and to {encoder.name} an image of {image_size} px is a single one: "
            "choose smaller patches or a larger --image-size"
        )


def adapter(request: Request) -> tuple[str, dict[str, Any]] | None:
    """Kind and options of the adapter that the user asks for; ValueError for unknown ones."""
    if request.adapt is None:
        return None
    config = adapters.config(request.adapt)
    chosen = with_options("adapt", request.adapt, config, request.adapt_options or {})
    return request.adapt, dataclasses.asdict(chosen)


def configured(method: str, config: Any, options: Mapping[str, Any]) -> Any:
    """The method's configuration with the user's options; raises ValueError for unknown ones."""
    return with_options("method", method, config, options)


def with_options(flag: str, name: str, config: Any, options: Mapping[str, Any]) -> Any:
    """A configuration with the user's options `--flag.KEY`; raises ValueError for unknown ones."""
    defaults = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    # a field's type decides, not the value that the recipe has put there; annotations may be strings
    types = get_type_hints(type(config))
    defaults |= {name: "" for name in defaults if types[name] in (str, str | None)}
    defaults |= {name: None for name in defaults if types[name] in (int | None, float | None)}
    return dataclasses.replace(config, **typed(flag, name, defaults, options))


def typed(flag: str, name: str, defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The user's options of a method or model, each of its default's type; ValueError for unknown ones."""
    for key in options:
        if key not in defaults:
            has = ", ".join(sorted(defaults))
            raise ValueError(f"--{flag}.{key}: {name} has no such option; it has {has}")
    return {key: _parse(f"--{flag}.{key}", value, defaults[key]) for key, value in options.items()}


def _parse(flag: str, value: Any, default: Any) -> Any:
    """A value from the command line ("0.04", "False", "0.2,1.0") as the type of the default."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(_number(each) for each in text.strip("()").split(","))
        if default is None:
            return None if text.lower() == "none" else _number(text)
        return type(default)(text)
    except (KeyError, ValueError):
        kind = "a number or none" if default is None else f"{type(default).__name__}, such as {default}"
        raise ValueError(f"{flag} {value!r}: expected {kind}") from None


def _number(text: str) -> int | float:
    """An int if it is written as one."""
    try:
        return int(text)
    except ValueError:
        return float(text)
