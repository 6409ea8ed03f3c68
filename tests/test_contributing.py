"""The method that CONTRIBUTING.md walks through is real: it trains, from the page as it stands."""

import inspect
import re
import sys
from pathlib import Path

import numpy as np
import torch

from omma import backbones, methods
from omma.core.protocols import Batch, Context, Key
from omma.train.loop import Position, train
from omma.train.optimizer import make_optimizer

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


def test_the_example_method_trains(tmp_path, monkeypatch):
    code = re.search(r"<!-- example: method -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "vicreg.py").write_text(code[1])
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert "vicreg" in methods.names()
    file = methods.get("vicreg")
    try:
        assert re.search(r"`omma pretrain \w+ --method vicreg .*--recipe paper", inspect.getdoc(file.paper))
        recipe = file.small(16, "vit-n/4")
        torch.manual_seed(0)
        encoder = backbones.build(name="vitc-15mf", image_size=16)
        method = file.Method(encoder, recipe.config, Context(image_size=16))
        (crop,) = file.views(recipe.config, 16)
        batch = Batch((torch.randn(16, crop.count, 3, 16, 16),), Key(0, np.zeros(16), np.arange(16)), None)
        steps = train(
            method, make_optimizer(method, recipe), iter([batch] * 4), recipe, Position(0, 4, 16, 16)
        )
        losses = [step.loss for step in steps]
    finally:
        sys.modules.pop("omma.methods.vicreg", None)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]  # one batch, over and over: VICReg's loss does go down
