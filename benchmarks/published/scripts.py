"""What published training scripts compute from their own arguments: read from their source, run in pieces.

The scripts import GPUs, clusters and data; so their argument parsers, configurations and schedules are taken
out of the files by name and run alone. `SCRIPTS` holds the one thing that is typed here: the command of each
run, from the repository's own documentation.
"""

import argparse
import ast
import contextlib
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import timm.scheduler.cosine_lr
import timm.scheduler.scheduler
import timm.scheduler.step_lr
import torch
import yaml

IMAGES = 1_281_167  # of ImageNet
LAION = 400_000_000  # of LAION-400M, as named


class Script(NamedTuple):
    """One published run."""

    name: str
    method: str  # of omma ...
    model: str
    size: int
    options: dict[str, Any]  # ... and its options
    folder: str  # of the clone
    command: str  # its arguments
    where: str  # the command is from
    batch: int  # that it makes of the command's machines
    epochs: int
    numbers: "Callable[[Path, list[str], int, int], dict[str, Any]]"  # (clone, command, batch, epochs)
    images: int = IMAGES


# ---------------------------------------------------------------- pieces of a file
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def taken(path: Path, *names: str, **known: Any) -> list[Any]:
    """Functions and classes of a file, made without the rest of it; known: what they refer to."""
    tree = _tree(path)
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    space = {"np": np, "math": math, "torch": torch, "print": lambda *_: None, **known}
    exec(compile(tree, str(path), "exec"), space)
    return [space[name] for name in names]


def assigned(path: Path, target: str, **known: Any) -> Any:
    """The value that the file's first assignment to `target` computes from what is known."""
    found = next(
        node.value
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == target
    )
    return eval(compile(ast.Expression(found), str(path), "eval"), {"np": np, "math": math, **known})


def passed(path: Path, function: str, name: str, inside: str = "", **known: Any) -> Any:
    """The keyword `name` of the file's first call of `function`; inside: the definition that it is in."""
    tree: ast.AST = _tree(path)
    if inside:
        tree = next(n for n in ast.walk(tree) if getattr(n, "name", None) == inside)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == function:
            for keyword in call.keywords:
                if keyword.arg == name:
                    return eval(compile(ast.Expression(keyword.value), str(path), "eval"), {**known})
    raise LookupError(f"{path}: no {name} is passed to {function}")


def arguments(path: Path, words: Sequence[str], **known: Any) -> argparse.Namespace:
    """What the parser that the file builds makes of a command."""
    parser = argparse.ArgumentParser(conflict_handler="resolve", allow_abbrev=False)
    space = {"argparse": argparse, **known}
    for call in ast.walk(_tree(path)):
        if not isinstance(call, ast.Call) or not ast.unparse(call.func).endswith(
            (".add_argument", ".set_defaults")
        ):
            continue
        options = {
            k.arg: eval(compile(ast.Expression(k.value), str(path), "eval"), space)
            for k in call.keywords
            if k.arg not in ("help", "choices", "metavar", None)
        }
        if ast.unparse(call.func).endswith(".set_defaults"):
            parser.set_defaults(**options)
        else:
            flags = [eval(compile(ast.Expression(x), str(path), "eval"), space) for x in call.args]
            parser.add_argument(*flags, **options)
    args, unknown = parser.parse_known_args(list(words))
    assert not unknown, f"{path}: {unknown}"
    return args


def flags(path: Path, words: Sequence[str]) -> SimpleNamespace:
    """The flags of absl that a file defines, with those of a command."""
    values: dict[str, Any] = {}
    for call in ast.walk(_tree(path)):
        if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("flags.DEFINE_"):
            name, default = (x.value if isinstance(x, ast.Constant) else None for x in call.args[:2])
            values[str(name)] = default
    for word in words:
        name, _, text = word.removeprefix("--").partition("=")
        assert name in values, f"{path}: {name}"
        values[name] = type(values[name])(text)
    return SimpleNamespace(**values)


class Tree(dict[str, Any]):
    """A configuration whose entries are attributes."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # pyright: ignore[reportAssignmentType]


def merged(tree: Tree, other: Mapping[str, Any]) -> Tree:
    """A configuration with the entries of another; numbers that YAML takes for text are numbers."""
    for key, value in other.items():
        if isinstance(value, Mapping):
            tree[key] = merged(tree.get(key, Tree()), value)
            continue
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value) if isinstance(value, str) else value
        tree[key] = value
    return tree


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


# ---------------------------------------------------------------- what all scripts are asked
def rates(rate: Callable[[int], float], total: int, warmup: float, per_epoch: int) -> dict[str, Any]:
    """What the rates of some steps say; rate: of a step."""
    end = round(warmup)
    around = [
        rate(min(max(step, 0), total - 1)) for step in (end - 1, end, end + 1, end + per_epoch * 3 // 2)
    ]
    return {
        "rate: first step": rate(0), "rate: half the warm-up": rate(end // 2), "rate: peak": max(around),
        "rate: half the run": rate(total // 2), "rate: last step": rate(total - 1), "steps of warm-up": end,
    }  # fmt: skip


def after(scheduler: Any, optimizer: torch.optim.Optimizer, step: str) -> Callable[[int], float]:
    """The rate that each call of a timm scheduler leaves for the next step or epoch."""
    first = optimizer.param_groups[0]["lr"]

    def rate(number: int) -> float:
        if number == 0:
            return first
        getattr(scheduler, step)(number - 1)
        return optimizer.param_groups[0]["lr"]

    return rate


def sgd(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


class TimmModules(NamedTuple):
    """timm's schedulers, with the arguments that older versions had."""

    CosineLRScheduler: Any = lambda optimizer, t_mul=1.0, **others: (
        timm.scheduler.cosine_lr.CosineLRScheduler(optimizer, cycle_mul=t_mul, **others)
    )
    StepLRScheduler: Any = timm.scheduler.step_lr.StepLRScheduler
    Scheduler: Any = timm.scheduler.scheduler.Scheduler
    bisect_right: Any = bisect_right
