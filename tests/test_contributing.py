"""The method that CONTRIBUTING.md walks through is real: it trains, from the page as it stands."""

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from omma import backbones, methods
from omma.core.protocols import Batch, Context, HealthSignal, Key
from omma.train.loop import Position, train
from omma.train.optimizer import make_optimizer

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
NAME = "barlow_twins"


def example(kind):
    """The code that follows a marker in the page."""
    code = re.search(rf"<!-- example: {kind} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    return code[1]


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / f"{NAME}.py").write_text(example("method"))
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    yield methods.get(NAME)
    sys.modules.pop(f"omma.methods.{NAME}", None)
    vars(methods).pop(NAME, None)


def test_the_example_method_trains(file):
    recipe = file.small(16, "vit-n/4")
    torch.manual_seed(0)
    encoder = backbones.build(name="vitc-15mf", image_size=16)
    method = file.Method(encoder, recipe.config, Context(image_size=16))
    views = tuple(torch.randn(16, crop.count, 3, 16, 16) for crop in file.views(recipe.config, 16))
    batch = Batch(views, Key(0, np.zeros(16), np.arange(16)))
    steps = list(
        train(method, make_optimizer(method, recipe), iter([batch] * 4), recipe, Position(0, 4, 16, 16))
    )
    losses = [step.loss for step in steps]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]  # the same batch at each step: this loss does go down
    signals = method.health_signals()
    assert signals
    assert all(isinstance(signal, HealthSignal) for signal in signals)
    assert {signal.metric for signal in signals} <= steps[-1].metrics.keys()


def test_the_example_explains_itself(file):
    """Its docstrings pass the tests that every method's do, and it is refused a batch of one by `needs`."""
    spec = importlib.util.spec_from_file_location(
        "explained", Path(__file__).parent / "methods" / "test_explained.py"
    )
    assert spec is not None
    assert spec.loader is not None
    explained = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(explained)
    explained.test_a_file_opens_with_what_a_reader_wants(NAME)
    explained.test_recipes_say_their_command(NAME)
    assert re.search(rf"`omma pretrain \w+ --method {NAME} .*--recipe paper", inspect.getdoc(file.paper))
    needs = file.needs(file.Config())
    assert needs.batch == 2
    assert needs.why_batch


def test_the_example_test_passes(file):
    scope = {}
    exec(compile(example("test"), str(PAGE), "exec"), scope)
    tests = [value for name, value in scope.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_page_explains_every_conformance_test():
    """Rows and tests have the same names; a row may cut a long one with "..."."""
    source = (PAGE.parent / "tests" / "methods" / "test_conformance.py").read_text()
    names = re.findall(r"^def test_(\w+)", source, re.MULTILINE)
    page = PAGE.read_text().partition("### What the conformance tests check")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+?)_?(?:\.\.\.)?`: ", page, re.MULTILINE)
    # tests of the tests' own criteria concern no method
    unexplained = {n for n in names if not any(n.startswith(row) for row in rows)}
    assert unexplained == {"a_cancellation_in_bf16_is_seen", "averages_are_found"}
    assert [row for row in rows if not any(n.startswith(row) for n in names)] == []
