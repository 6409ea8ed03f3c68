"""Sixteen steps under `--recipe paper` end where the published training code ends (docs/parity.md)."""

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
def whole() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        yield importlib.import_module("published.whole")


def setups(whole: Any) -> dict[str, Any]:
    present = [name for name in whole.FILES if (BENCHMARKS / "published" / f"{name}.py").is_file()]
    files = [importlib.import_module(f"published.{name}") for name in present]
    return {setup.name: setup for file in files for setup in file.SETUPS}


def largest(whole: Any, setup: Any, golden: dict[str, Any]) -> float:
    """Largest difference of a tensor's number, as a share of the way that all weights travelled."""
    ours = whole.numbers(*whole.ours(setup))
    assert ours.keys() == golden["numbers"].keys()
    return max(abs(ours[name] - number) for name, number in golden["numbers"].items()) / golden["way"]


def test_every_setup_has_published_numbers(whole: Any) -> None:
    assert setups(whole).keys() == GOLDEN.keys()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_recipe_trains_as_the_published_code(whole: Any, name: str) -> None:
    assert largest(whole, setups(whole)[name], GOLDEN[name]) < whole.BOUND


RULES: dict[str, Callable[[Recipe], Recipe]] = {
    "clipping": lambda r: dataclasses.replace(r, clip_by="all"),
    "warm-up": lambda r: dataclasses.replace(r, schedule=dataclasses.replace(r.schedule, ramp="next")),
    "decay": lambda r: dataclasses.replace(r, decayed=()),
    "rate": lambda r: dataclasses.replace(r, lr=r.lr * 1.001),
}


@pytest.mark.parametrize("rule", RULES)
def test_another_rule_is_noticed(whole: Any, rule: str) -> None:
    setup = setups(whole)["dino"]

    def make() -> Any:
        method, recipe = setup.make()
        return method, RULES[rule](recipe)

    assert largest(whole, setup._replace(make=make), GOLDEN["dino"]) > 10 * whole.BOUND
