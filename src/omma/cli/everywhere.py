"""Options of every command: --quiet, --json, --plan-only, --completion; and --config of those that train."""

import contextlib
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from omma.cli.shared import MODE, Planned, as_json, out, say
from omma.core import files, launcher, outputs
from omma.core.words import count
from omma.pretraining import repeat

TRAINS = ("pretrain", "finetune")
STDOUT = "-"


@dataclass(frozen=True)
class Everywhere:
    """What was said of these options."""

    quiet: bool = False
    plan_only: bool = False
    json: str | None = None  # a file, or - for standard output
    config: str | None = None  # of a run that is repeated


def take(words: Sequence[str], own: Mapping[str, Sequence[str]]) -> tuple[list[str], Everywhere]:
    """The other words, and what these options say.

    own: names of the parameters of each command; one that writes JSON by itself keeps its --json FILE.
    """
    rest: list[str] = []
    found: dict[str, Any] = {}
    command = words[0] if words else ""
    waiting = iter(words)
    for word in waiting:
        option, equals, value = word.partition("=")
        if word in ("--quiet", "--plan-only"):
            found[word[2:].replace("-", "_")] = True
        elif option == "--json" or (option == "--config" and command in TRAINS):
            value = value if equals else next(waiting, "")
            if not value or (value.startswith("-") and value != STDOUT):
                what = "a file, or - for standard output," if option == "--json" else "a run's config.json"
                raise ValueError(f"{option}: {what} must follow")
            if option == "--json" and value != STDOUT and "json" in own.get(command, ()):
                rest += [option, value]
            else:
                found[option[2:]] = value
        else:
            rest.append(word)
    return rest, Everywhere(**found)


@contextlib.contextmanager
def speaking(said: Everywhere) -> Iterator[None]:
    """Print as is asked for: nothing, or to standard error where standard output is for JSON."""
    before, MODE.result = (out.quiet, out.stderr), None
    MODE.quiet, MODE.stderr, MODE.plan_only = said.quiet, said.json == STDOUT, said.plan_only
    out.quiet, out.stderr = out.quiet or MODE.quiet, MODE.stderr
    try:
        yield
    finally:
        out.quiet, out.stderr = before
        MODE.quiet = MODE.stderr = MODE.plan_only = False


def run(command: "functools.partial[int]", said: Everywhere, **options: Any) -> int:
    """Call the command, or print its plan; then write what it has to say as JSON, if that is asked for."""
    if said.json not in (None, STDOUT):
        outputs.check_file(said.json, "--json")
    try:
        status = command(**options)
    except Planned:
        status, MODE.result = 0, _plan(command)
    if said.json is not None and not launcher.ranks().rank:  # of several processes the first
        content = as_json(MODE.result)
        if said.json == STDOUT:
            print(json.dumps(content, indent=2, allow_nan=False), file=sys.stdout)
        else:
            files.write_json(Path(said.json), content)
            say(f"written to {said.json}")
    return status


# ---------------------------------------------------------------- plans
def _plan(command: "functools.partial[int]") -> dict[str, Any]:
    """Say what a command would read and write, and how; and return it."""
    verb = command.func.__name__
    bound = inspect.signature(command.func).bind(*command.args, **command.keywords)
    given = {name: value for name, value in bound.arguments.items() if name != "dotted"}
    defaults = {p.name: p.default for p in inspect.signature(command.func).parameters.values()}
    plan: dict[str, Any] = {"command": verb, "options": {}, "images": {}}
    say(f"omma {verb}", "plan")
    for name, value in given.items():
        if value != defaults[name]:
            plan["options"][name] = value
            say(
                " ".join(map(str, value)) if isinstance(value, tuple) else str(value),
                name.replace("_", " "),
                indent=20,
            )
    depth = given.get("label_depth")
    for source in _sources(verb, given):
        from omma.data.sources import collection

        opened = collection.opened(source, depth)
        classes = f", {count(len(opened.classes), 'class', 'classes')}" if opened.classes else ""
        skipped = f", {len(opened.skipped):,} skipped" if len(opened.skipped) else ""
        plan["images"][source] = {"images": len(opened), "classes": len(opened.classes or ())}
        say(f"{count(len(opened), 'image')}{classes}{skipped}", source, indent=max(20, len(source) + 2))
    if "device" in given or "device" in defaults:
        from omma.core.device import pick_device

        plan["device"] = str(pick_device(given.get("device", "auto")))
        say(plan["device"], "device", indent=20)
    say("nothing was done: --plan-only")
    return plan


def _sources(verb: str, given: Mapping[str, Any]) -> list[str]:
    """The images that a command names; a pool or an index may be a table of vectors instead."""
    if verb in ("curate", "serve", "search"):
        return []
    named = (given.get(name) for name in ("images", "labelled", "against"))
    return [each for value in named if value for each in ([value] if isinstance(value, str) else value)]


# ---------------------------------------------------------------- a run that is repeated
def repeated(
    words: Sequence[str], command: Callable[..., int], file: str
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The words that repeat a run, before those of the user, which win; options of --method.KEY."""
    verb = words[0]
    parameters = inspect.signature(command).parameters
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    places, flags, given = _given(words[1:], parameters)
    if places and len(places) != len(positional):
        names = " and ".join(name.upper() for name in positional)
        raise ValueError(f"--config: give {names}, or neither of them")
    named = {*given, *(positional if places else ())}
    options, dotted = repeat.read(file, verb, named)
    before: list[str] = []
    for name, value in options.items():
        if name not in parameters:
            raise ValueError(f"--config {file}: {name!r} is no option of `omma {verb}`: remove it")
        if name in positional or value is None:
            continue
        flag = "--as" if name == "architecture" else f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            before.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            before += [flag, *(map(str, value) if isinstance(value, list) else [str(value)])]
    if not places:
        if missing := [name for name in positional if name not in options]:
            raise ValueError(f"--config {file} names no {missing[0]}: give {missing[0].upper()}")
        places = [str(options[name]) for name in positional]
    return [verb, *places, *before, *flags], dotted


def _given(
    words: Sequence[str], parameters: Mapping[str, inspect.Parameter]
) -> tuple[list[str], list[str], set[str]]:
    """The words without a flag, the others, and the options that they name."""
    by_flag = {"as" if name == "architecture" else name: p for name, p in parameters.items()}
    places: list[str] = []
    flags: list[str] = []
    given: set[str] = set()
    takes = 0.0  # words that the last option takes
    for word in words:
        if not word.startswith("--"):
            (flags if takes > 0 else places).append(word)
            takes -= 1
            continue
        name, equals, _ = word[2:].replace("-", "_").partition("=")
        parameter = by_flag.get(name) or by_flag.get(name.removeprefix("no_"))
        flags.append(word)
        takes = 0 if equals else 1
        if parameter is not None:
            given.add(parameter.name)
            kind = parameter.annotation
            kind = (
                get_args(kind)[0] if get_origin(kind) is not None and hasattr(kind, "__metadata__") else kind
            )
            takes = 0 if equals or kind is bool else float("inf") if get_origin(kind) is tuple else 1
    return places, flags, given
