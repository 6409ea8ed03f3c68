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


def schedule(**changes: Any) -> Callable[[Recipe], Recipe]:
    return lambda r: dataclasses.replace(r, schedule=dataclasses.replace(r.schedule, **changes))


RULES: dict[str, Callable[[Recipe], Recipe]] = {
    "clipping": lambda r: dataclasses.replace(r, clip_by="all"),
    "no clipping": lambda r: dataclasses.replace(r, clip=None),
    "warm-up": schedule(ramp="next"),
    "warm-up's start": schedule(start=0.0),
    "lateness": schedule(late=False),
    "drops": schedule(drops=()),
    "decay": lambda r: dataclasses.replace(r, decayed=()),
    "rate": lambda r: dataclasses.replace(r, lr=r.lr * 1.001),
    "last rate": lambda r: dataclasses.replace(r, lr_end=2 * r.lr_end),
    "epsilon": lambda r: dataclasses.replace(r, eps=1e-8),
    "stochastic depth": lambda r: dataclasses.replace(r, drop_path=0.2),
}
NOTICED = [
    *(("dino", rule) for rule in ("clipping", "warm-up", "decay", "rate")),
    *(("mae", rule) for rule in ("warm-up", "decay")),
    *(("simmim-vit", rule) for rule in ("no clipping", "warm-up's start", "decay", "stochastic depth")),
    *(("simmim-swin-692", rule) for rule in ("lateness", "drops")),
    *(("beit", rule) for rule in ("warm-up", "decay")),
    *(("eva-300", rule) for rule in ("no clipping", "last rate", "decay", "epsilon")),
]


@pytest.mark.parametrize(("name", "rule"), NOTICED)
def test_another_rule_is_noticed(whole: Any, name: str, rule: str) -> None:
    setup = setups(whole)[name]

    def make() -> Any:
        method, recipe = setup.make()
        changed = RULES[rule](recipe)
        if changed.drop_path != recipe.drop_path:
            method.encoder.blocks[-1].drop_path = changed.drop_path
        return method, changed

    assert largest(whole, setup._replace(make=make), GOLDEN[name]) > 10 * whole.BOUND
