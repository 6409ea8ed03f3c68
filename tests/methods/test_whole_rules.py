"""Whole steps notice each rule that the paper recipes of MoCo v3, SimCLR, DeiT and CLIP state."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from omma.core.protocols import Recipe

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GOLDEN = json.loads(Path(__file__).with_name("whole_steps.json").read_text())


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[Any, dict[str, Any]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        whole = importlib.import_module("published.whole")
        setups = importlib.import_module("published.whole_contrasted").SETUPS
        yield whole, {setup.name: setup for setup in setups}


def rule(**changed: Any) -> Callable[[Recipe], Recipe]:
    return lambda recipe: dataclasses.replace(recipe, **changed)


def schedule(**changed: Any) -> Callable[[Recipe], Recipe]:
    return lambda recipe: dataclasses.replace(
        recipe, schedule=dataclasses.replace(recipe.schedule, **changed)
    )


RULES = {
    "moco-200: vectors decay": rule(decayed=("token", "position", "table")),
    "simclr: momentum of updates": rule(momentum_of="gradients"),
    "simclr-400: end": rule(lr_end=1e-3),
    "deit-200: epochs of views": rule(epoch_passes=1.0),
    "deit: late": schedule(late=False),
    "deit-200: cosine of the whole run": schedule(whole=False),
    "clip: positions decay": rule(decayed=()),
    "clip: epsilon": rule(eps=1e-8),
    "clip-3000: warm-up in steps": rule(warmup_length=None),
}


@pytest.mark.parametrize("name", RULES)
def test_another_rule_is_noticed(modules: tuple[Any, dict[str, Any]], name: str) -> None:
    whole, setups = modules
    setup = setups[name.partition(":")[0]]

    def make() -> Any:
        method, recipe = setup.make()
        return method, RULES[name](recipe)

    golden = GOLDEN[setup.name]
    ours = whole.numbers(*whole.ours(setup._replace(make=make)))
    apart = max(abs(ours[tensor] - number) for tensor, number in golden["numbers"].items())
    assert apart / golden["way"] > 5 * whole.BOUND


@pytest.mark.parametrize(
    ("name", "attribute", "value"), [("moco-200", "momentum_next", False), ("simclr", "summed", False)]
)
def test_another_option_is_noticed(
    modules: tuple[Any, dict[str, Any]], name: str, attribute: str, value: Any
) -> None:
    whole, setups = modules
    setup = setups[name]

    def make() -> Any:
        method, recipe = setup.make()
        method.config = dataclasses.replace(method.config, **{attribute: value})
        return method, recipe

    golden = GOLDEN[name]
    ours = whole.numbers(*whole.ours(setup._replace(make=make)))
    apart = max(abs(ours[tensor] - number) for tensor, number in golden["numbers"].items())
    assert apart / golden["way"] > 5 * whole.BOUND
