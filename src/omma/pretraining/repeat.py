"""A run's configuration as options: what `config.json` records of them, and what `--config` reads."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omma.core import files

FINE_TUNING = "finetune"
# what a run's configuration may hold; `assemble.configuration` and `head.run_configuration` write it
KEYS = (
    "images", "held", "fingerprint", "method", "model", "image_size", "recipe", "settings", "end", "seed",
    "precision", "accumulate", "compile", "fitted", "cache", "decode", "labels", "init", "learns_from",
    "adapt", "columns", "group", "supervision", "tokenizer", "data_changes", "extended", "options",
)  # fmt: skip
# fields of a request that config.json holds under keys of their own, and those that are about one call
APART = (
    "images", "method", "seed", "budget", "epochs", "steps", "supervision", "out", "listen", "extend",
    "profile", "accept_changed_data",
)  # fmt: skip
ENDS = ("budget", "epochs", "steps")
DOTTED = {"options": "method", "model_options": "model", "adapt_options": "adapt"}  # fields and their flags
BASES = {
    "method",
    "model",
    "init",
    "recipe",
    "image_size",
}  # what others rest on


class Repeated(NamedTuple):
    """A run's options, by their names in Python; `dotted` are those of --method.KEY and the like."""

    options: dict[str, Any]
    dotted: dict[str, dict[str, Any]]


def asked(request: Any, apart: Collection[str] = APART) -> dict[str, Any]:
    """The fields of a request that its user set, as JSON has them."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if field.name not in apart and value not in (field.default, None, {}):
            found[field.name] = _plain(value)
    return found


def same_recipe(request: Any, choice: Any, begun: Mapping[str, Any]) -> bool:
    """Does the request ask for the recipe of the run that has begun with this configuration?

    Runs of early versions did not record what their users asked for; what is asked for now decides there.
    """
    of_recipe = ("recipe", "image_size", "batch_size", "lr", "resolution", "options", "init", "adapt")
    now, then = asked(request), begun.get("options")
    return (
        (then is None or all(now.get(name) == then.get(name) for name in of_recipe))
        and all(getattr(choice, key) == begun[key] for key in ("method", "model", "image_size"))
        and choice.recipe_name == begun["recipe"]
    )


def held(images: Any) -> bool | None:
    """True, as config.json has it, for images that a program holds; None for a path."""
    return None if isinstance(images, str | os.PathLike) else True


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def read(file: str | Path, command: str, given: Collection[str]) -> Repeated:
    """The options that repeat the run of a config.json, but those given (and what rests on them).

    command: pretrain or finetune. Raises ValueError, in one line, for a file that is none, for keys that no
    run's configuration has, and for a run of the other command.
    """
    path = Path(file).expanduser()
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        raise ValueError(f"--config {file}: no such file; give a run's config.json")
    config = files.read_json(path, "give a run's config.json")
    if unknown := [key for key in config if key not in KEYS]:
        raise ValueError(f"--config {file}: {unknown[0]!r} is no key of a run's configuration: remove it")
    tuned = config.get("method") == FINE_TUNING
    if tuned != (command == FINE_TUNING):
        other = "finetune" if tuned else "pretrain"
        raise ValueError(f"--config {file} is of a run of `omma {other}`: repeat it with that command")
    if config.get("held") and "images" not in given:
        raise ValueError(
            f"--config {file}: its images ({config.get('images')}) were held by a Python program: go on "
            f"there with omma.{command}, or name images here"
        )
    try:
        repeated = _tuned(config) if tuned else _pretrained(config)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"--config {file}: it is damaged ({error}): give a run's config.json") from error
    return _but(repeated, config, given)


def _but(repeated: Repeated, config: Mapping[str, Any], given: Collection[str]) -> Repeated:
    """Without what the user gives now, and what was chosen for what that replaces."""
    options, dotted = dict(repeated.options), dict(repeated.dotted)
    before = config.get("options", {})
    dropped = {*given}
    if dropped & {*ENDS}:
        dropped |= {*ENDS}
    if dropped & {"shots", "fraction"}:
        dropped |= {"shots", "fraction"}
    if dropped & {*BASES, "batch_size"}:
        dropped |= {"lr", "batch_size", "accumulate"} - {*before}
    if dropped & {"method", "init"}:
        dotted["method"] = {}
    elif dropped & BASES:
        dotted["method"] = before.get("options") or {}
    if dropped & {"model", "init"}:
        dotted["model"] = {}
    if "adapt" in dropped:
        dotted["adapt"] = {}
    return Repeated({name: value for name, value in options.items() if name not in dropped}, dotted)


def _shared(config: Mapping[str, Any]) -> Repeated:
    """What both commands have."""
    before, settings = dict(config.get("options", {})), config.get("settings", {})
    options = {name: value for name, value in before.items() if name not in DOTTED}
    dotted = {flag: dict(before.get(name) or {}) for name, flag in DOTTED.items()}
    direct = ("images", "image_size", "recipe", "seed", "precision", "group")
    options |= {name: config[name] for name in direct if name in config}
    for name, value in config.get("end", {}).items():
        if name in ENDS:
            options[name] = f"{value:.15g}s" if name == "budget" else value
    options |= {
        name: settings[key] for name, key in (("batch_size", "batch"), ("lr", "lr")) if key in settings
    }
    if config.get("accumulate", 1) != 1:
        options["accumulate"] = config["accumulate"]
    if "cache" in config:
        options["cache"] = True
    if "decode" in config:
        options["decode"] = config["decode"]
    dotted["method"] |= {key: _typed(value) for key, value in settings.get("config", {}).items()}
    return Repeated(options, dotted)


def _pretrained(config: Mapping[str, Any]) -> Repeated:
    options, dotted = _shared(config)
    origin = config.get("init")
    if origin is None and "model" in config:
        options["model"] = config["model"]
    if origin is not None:  # the network is that of the weights
        options.setdefault("init", origin["source"])
        options |= {key: origin[key] for key in ("head_warmup", "encoder_lr_scale") if key in origin}
    if adapt := dict(config.get("adapt") or {}):
        options["adapt"] = adapt.pop("kind")
        dotted["adapt"] = {key: _typed(value) for key, value in adapt.items()}
    if "method" in config:
        options["method"] = config["method"]
    return Repeated(options, dotted)


def _tuned(config: Mapping[str, Any]) -> Repeated:
    """Of a run of `omma finetune`: by its options where it records them, else by what it trained with."""
    before = dict(config.get("options", {}))
    if "init" not in before and "model" in before:  # fitted: its record is that of `FineTuning`
        dotted = {flag: dict(before.pop(name, None) or {}) for name, flag in DOTTED.items()}
        own = before | {"images": config["images"], "seed": config["seed"], "precision": config["precision"]}
        return Repeated(own, dotted)
    options, dotted = _shared(config)
    options["model"] = options.pop("init", None) or config["init"]["source"]
    for name in ("head_warmup", "encoder_lr_scale"):  # among the recipe's own options
        options.pop(name, None)
    adapt = dict(config.get("adapt") or {"kind": "full"})
    options["adapt"] = adapt.pop("kind")
    if "settings" in config:
        dotted["adapt"] = {key: _typed(value) for key, value in adapt.items()}
    options |= {
        key: value for key, value in (config.get("supervision") or {}).items() if value not in (None, [])
    }
    return Repeated(options, dotted)


def _typed(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(_typed(each) for each in value) if isinstance(value, list) else value
