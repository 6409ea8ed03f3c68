"""The benchmarks' contenders run: one step each on a tiny batch, no timing."""

import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])


def test_embedding_agrees_with_timm() -> None:
    pytest.importorskip("timm", reason="timm (dev group) is not installed")
    import embed

    subjects = embed.contenders("vit-ti/16", batch=2, size=32)
    assert embed.cosines(subjects).min() > 0.999
    ours, theirs = (next(s for s in subjects if s.name == f"{who} fp32").run() for who in ("omma", "timm"))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["dino", "mae"])
def test_omma_takes_the_steps_that_are_timed(method: str) -> None:
    import steps

    for bf16 in (True, False):
        if method == "dino":
            subject = steps.omma_dino([torch.randn(2, 3, s, s) for s in (32, 32, 16)], bf16)
        else:
            subject = steps.omma_mae(torch.randn(2, 3, 32, 32), bf16)
        step = subject.run()
        assert step.rejected is None
        assert step.loss > 0


@pytest.mark.parametrize("method", ["dino", "mae"])
def test_peers_take_the_steps_that_are_timed(method: str) -> None:
    pytest.importorskip("lightly", reason="lightly (bench group) is not installed")
    pytest.importorskip("transformers", reason="transformers (bench group) is not installed")
    import steps

    subjects = [subject for subject in steps.RACES[method](2) if not subject.ours]
    assert subjects
    for subject in subjects:
        subject.run()


def test_cost_grows_with_area_as_is_said() -> None:
    import area

    sizes = [224, 448, 896]
    found = {
        name: area.exponent(sizes, [area.counted(name, size) for size in sizes]) for name in area.SUBJECTS
    }
    assert found["swin-t"] == pytest.approx(1, abs=0.01)
    assert found["vit-s/16 linear"] == pytest.approx(1, abs=0.01)
    assert found["vit-s/16 bigbird"] == pytest.approx(1, abs=0.03)
    assert found["vit-s/16"] > 1.2
    assert area.exponent(sizes, [area.pairs(size) for size in sizes]) == pytest.approx(2, abs=0.01)
    area.contender("swin-t", 64).run()


def test_turns_and_headline() -> None:
    import common

    turns: list[str] = []
    subjects = [
        common.Contender(name, lambda name=name: turns.append(name), 4, ours=name == "us")
        for name in ("us", "slow", "fast")
    ]
    seconds = common.take_turns(subjects, rounds=3, warm_ups=1)
    assert turns == ["us", "slow", "fast"] + ["us", "slow", "fast"] * 3
    assert all(len(s) == 3 for s in seconds.values())

    known = {"us": [1.0, 2.0, 1.0], "slow": [8.0, 8.0, 8.0], "fast": [4.0, 4.0, 2.0]}
    head = common.summary(subjects, known)["headline"]
    assert (head["ours"], head["peer"]) == ("us", "fast")
    assert head["rounds"] == [4.0, 2.0, 2.0]
    assert head["ratio_median"] == 2.0
