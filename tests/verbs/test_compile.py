"""`omma pretrain --compile`: the same run, recorded in its configuration; what cannot be compiled."""

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounterWithBackend

from omma.data.sources.collection import ArrayImages
from omma.pretraining import placement, trial
from omma.pretraining.events import Plan
from omma.pretraining.folder import RunFolder
from omma.train import compile_blocks
from omma.verbs.pretrain import pretrain

BASE = {"method": "mae", "model": "vit-n/8", "image_size": 16, "batch_size": 4, "device": "cpu",
        "precision": "fp32", "steps": 2}  # fmt: skip


def broken(graph, inputs):
    raise RuntimeError("no compiler\nwas found")


@pytest.fixture
def backend(monkeypatch):
    """What makes code of graphs: torch's own kernels, or something else."""

    def use(made):
        monkeypatch.setattr(compile_blocks, "BACKEND", made)
        torch.compiler.reset()
        compile_blocks._compiled_in_training.cache_clear()
        return made

    yield use
    torch.compiler.reset()
    compile_blocks._compiled_in_training.cache_clear()


@pytest.fixture
def undecided(monkeypatch):
    """As on a GPU, in a run that is long enough."""
    monkeypatch.setattr(
        placement,
        "compile_blocks",
        lambda option, *, compiled_before, **_: "on" if compiled_before else option,
    )
    monkeypatch.setattr(compile_blocks, "PAYS", 0.0)


def train(out, **options):
    """A run; the notes in its plan."""
    pixels = torch.randint(0, 256, (8, 16, 16, 3), generator=torch.Generator().manual_seed(0))
    plans = []
    pretrain(
        ArrayImages(pixels.to(torch.uint8).numpy()), out=out,
        listen=lambda e: plans.append(e) if isinstance(e, Plan) else None, **BASE | options,
    )  # fmt: skip
    return "; ".join(plans[0].notes) if plans else ""


def same(a, b):
    one, two = (load_file(out / "model.safetensors") for out in (a, b))
    return one.keys() == two.keys() and all(torch.allclose(one[k], two[k], rtol=1e-4, atol=1e-6) for k in one)


def test_a_run_is_the_same_and_says_what_it_was(tmp_path, backend):
    counter = backend(CompileCounterWithBackend("aot_eager"))
    train(tmp_path / "plain", compile="off")
    assert counter.frame_count == 0
    train(tmp_path / "compiled", compile="on", recompute=True)
    assert counter.frame_count == 1  # four blocks of one kind
    assert same(tmp_path / "plain", tmp_path / "compiled")
    assert RunFolder(tmp_path / "compiled").config()["compile"] is True
    assert "compile" not in RunFolder(tmp_path / "plain").config()
    saved = torch.load(max((tmp_path / "compiled" / "checkpoints").glob("*.pt")), weights_only=True)
    assert not any("_orig_mod" in name for name in saved["method"])


def test_what_cannot_be_compiled_is_said_in_a_line(tmp_path, backend):
    backend(broken)
    with pytest.raises(ValueError, match=r"blocks of vit-n/8 cannot .*no compiler was found.* --compile off"):
        train(tmp_path / "run", compile="on")
    train(tmp_path / "auto")  # off on a CPU


def test_auto_never_fails(tmp_path, backend, undecided):
    backend(broken)
    assert "blocks are not compiled: " in train(tmp_path / "run", compile="auto")
    assert "compile" not in RunFolder(tmp_path / "run").config()


@pytest.mark.parametrize("quicker", [True, False])
def test_auto_keeps_what_is_faster(tmp_path, backend, undecided, monkeypatch, quicker):
    counter = backend(CompileCounterWithBackend("aot_eager"))
    times = iter([2.0, 1.0] if quicker else [1.0, 2.0])  # as it is, compiled
    timed = trial.trial
    monkeypatch.setattr(trial, "trial", lambda *a, **k: (timed(*a, **k), next(times))[1])
    messages = train(tmp_path / "run", compile="auto")
    assert counter.frame_count > 0
    words = "blocks are compiled: 2.00 times as fast" if quicker else "not compiled: steps took no less time"
    assert words in messages
    assert RunFolder(tmp_path / "run").config().get("compile", False) == quicker


def test_what_does_not_go_together(tmp_path):
    facts = {"device": "cuda", "blocks": True, "profiled": False, "sharded": False, "compiled_before": False}
    assert placement.compile_blocks("auto", **facts) == "auto"
    assert placement.compile_blocks("auto", **facts | {"compiled_before": True}) == "on"
    for other in (
        {"device": "cpu"},
        {"device": "mps"},
        {"blocks": False},
        {"profiled": True},
        {"sharded": True},
    ):
        assert placement.compile_blocks("auto", **facts | other) == "off"
        assert placement.compile_blocks("off", **facts | other) == "off"
    for other in ({"blocks": False}, {"profiled": True}, {"sharded": True}):
        with pytest.raises(ValueError, match="--compile"):
            placement.compile_blocks("on", **facts | other)
    with pytest.raises(ValueError, match="compile"):
        train(tmp_path / "run", compile="yes")
