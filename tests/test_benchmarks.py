"""The benchmarks' contenders run: one step each on a tiny batch, no timing."""

import ast
import functools
import importlib
import os
import re
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from omma.ops.cost import Flops

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])


MAINS = sorted(f for f in SCRIPTS.glob("*.py") if "__main__" in f.read_text())


@pytest.mark.parametrize("script", MAINS, ids=lambda script: script.stem)
def test_each_script_prints_its_help(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its imports work, and the options in its docstring exist."""
    for name in ("lightly", "timm", "transformers", "torchvision"):
        if f"import {name}" in script.read_text() or f"from {name}" in script.read_text():
            pytest.importorskip(name, reason=f"{name} (bench group) is not installed")

    def options_of(*command: str) -> set[str]:
        monkeypatch.setattr(sys, "argv", [str(script), *command, "--help"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(script), run_name="__main__")
        assert stop.value.code == 0
        return set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out.partition("options:")[2]))

    options = options_of()
    docstring = script.read_text().split('"""')[1]
    usage = re.findall(rf"^ .*python benchmarks/{script.name}(.*?)(?:  #.*)?$", docstring, re.MULTILINE)
    assert usage, "the docstring shows a command line"
    for line in usage:
        missing = set(re.findall(r"--[a-z][\w-]*", line)) - options
        command = re.match(r" ([a-z]\w*)", line)
        assert not missing or (command is not None and missing <= options_of(command[1]))


@pytest.mark.parametrize("script", sorted(SCRIPTS.rglob("*.py")), ids=lambda s: str(s.relative_to(SCRIPTS)))
def test_what_scripts_import_of_omma_exists(script: Path) -> None:
    """Whether or not the peers are installed."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "omma":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_embedding_agrees_with_peers() -> None:
    """In a process of its own: OpenVINO, where it is installed, and readers of images do not share one."""
    for name in ("timm", "transformers"):
        pytest.importorskip(name, reason=f"{name} (dev group) is not installed")
    processes.own(__file__, "compare_embeddings")


def compare_embeddings() -> None:
    sys.path.insert(0, str(SCRIPTS))
    import embed

    # two layers are traced sooner than twelve; this process is the test's own
    embed.backbones.build = functools.partial(embed.backbones.build, depth=2)
    subjects = embed.contenders("vit-ti/16", batch=2, size=32)
    assert {name for name, cosine in embed.cosines(subjects).items() if cosine.min() < 0.999} == set()
    runs = {subject.name: subject.run for subject in subjects}
    for peer in ("timm", "transformers"):
        torch.testing.assert_close(runs["omma fp32"](), runs[f"{peer} fp32"](), rtol=1e-4, atol=1e-4)
    for runtime in {"onnxruntime fp32", "OpenVINO fp32"} & runs.keys():
        torch.testing.assert_close(runs[runtime](), runs["timm fp32"](), rtol=1e-3, atol=1e-3)
    with Flops() as ours:
        runs["omma bf16"]()
    with Flops() as theirs:
        runs["timm fp32"]()
    assert ours.total == theirs.total > 0


METHODS = ("dino", "ibot", "dinov2", "mae", "simclr", "moco", "supervised")


def tiny(method: str, **options: Any) -> Any:
    """A race that takes no time: four layers, two images, seven prototypes."""
    from setting import Decoder, Setting

    options = {"model": "vit-n/4", "image_size": 32, "batch": 2, "local_crops": 2, **options}
    sizes = {"prototypes": 7, "hidden": 16, "bottleneck": 8, "projector": 16, "out": 8, "queue": 8}
    return Setting(method=method, **{**sizes, "decoder": Decoder(1, 16, 2), "classes": 5, **options})


def peers() -> None:
    for name in ("lightly", "timm", "transformers"):
        pytest.importorskip(name, reason=f"{name} (bench group) is not installed")


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_omma_takes_the_steps_that_are_timed(method: str, bf16: bool) -> None:
    import ours

    step = ours.contender(tiny(method), bf16).run()
    assert step.rejected is None
    assert step.loss > 0


class Seen:
    """What a step shows its networks, and what its optimizer moves, of whatever library."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self.images: Counter[int] = Counter()
        self.trained = 0
        contender = build()
        hooks = [
            register_module_forward_pre_hook(self._enter),
            register_optimizer_step_pre_hook(self._step),
        ]
        try:
            contender.run()
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if type(module).__name__ in ("PatchEmbed", "ViTMAEPatchEmbeddings"):
            self.images[inputs[0].shape[-1]] += len(inputs[0])

    def _step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        assert isinstance(optimizer, torch.optim.AdamW)
        moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.trained = sum(p.numel() for p in moved)


@pytest.mark.parametrize("method", METHODS)
def test_all_subjects_are_given_the_same(method: str) -> None:
    """Images by size that go through networks, parameters that AdamW moves; all subjects take their step.

    With the papers' own code too where OMMA_REFERENCES names a folder that has it.
    """
    peers()
    import steps

    references = os.environ.get("OMMA_REFERENCES")
    race = tiny(method, references=None if references is None else Path(references))
    seen = [Seen(build) for build in steps.subjects(race)]
    assert len(seen) >= 4
    ours, width = seen[0], 192
    views = {"mae": {32: 2}, "supervised": {32: 2}, "simclr": {32: 4}, "moco": {32: 4}}
    distilled = {32: 2 * (2 + 2), 16: 2 * 2}  # two large crops, student and teacher; two small ones
    assert {tuple(sorted(one.images.items())) for one in seen} == {
        tuple(sorted(views.get(method, distilled).items()))
    }
    # a weight norm's lengths, norms in and at the end of heads, biases, positions: no matrix of the network
    assert all(abs(one.trained - ours.trained) < 8 * width for one in seen)
    assert ours.trained > 4 * 8 * width * width


def test_prototypes_and_crops_of_the_races() -> None:
    from setting import Setting

    small, large = (
        Setting(method="dino", model=f"vit-ti/{patch}", image_size=size)
        for patch, size in ((4, 32), (16, 224))
    )
    assert small.sizes() == [32] * 2 + [16] * 6
    assert large.sizes() == [224] * 2 + [96] * 6
    assert (small.prototypes_, large.prototypes_) == (4096, 65_536)
    assert tuple(Setting(method="mae", model="vit-s/16", image_size=224).decoder_) == (8, 512, 16)
    assert small.shape.depth == 12


def test_memory_is_taken_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """The words that it is started with stand for the same race; a subject tells what it took."""
    peers()
    import steps
    from setting import Decoder, Setting

    race = Setting(
        method="dinov2", model="vit-n/4", batch=2, local_crops=1, prototypes=1024, untied=True,
        references=Path("clones"),
        decoder=Decoder(1, 16, 2),
    )  # fmt: skip
    args = steps.arguments().parse_args([*steps.arguments_of(race), "--subject", "0"])
    assert steps.settings(args) == [race]
    assert len(steps.subjects(race)) == 4
    taken = steps.memory_of(race, 3)
    assert taken["name"] == "lightly fp32"
    assert not taken["ours"]
    assert taken["peak"] >= taken["before"] > 0


def test_parts_are_those_of_the_step() -> None:
    import steps

    parts = steps.parts(tiny("dino"), bf16=False, steps=2)
    assert len(parts.steps) == 2
    assert all(seconds > 0 for part, seconds in parts.parts.items() if "data" not in part and part != "views")


def test_work_is_a_share_of_what_the_machine_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import common

    a, b = torch.ones(4, 8), torch.ones(8, 16)
    monkeypatch.setattr(common, "best_product", lambda device, dtype: {torch.float32: 4096.0}[dtype])
    subjects = [common.Contender(name, lambda: a @ b, 2, ours=name == "us") for name in ("us", "them")]
    result = common.summary(subjects, {"us": [1.0, 2.0, 2.0], "them": [4.0, 4.0, 4.0]})
    common.add_work(result, subjects)
    us = result["images_per_second"]["us"]
    assert us["flops"] == 2 * 4 * 8 * 16
    assert us["share"] == pytest.approx(us["flops"] / 2 / 4096)


def test_memory_of_an_image_is_that_of_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import area

    monkeypatch.setattr(area, "SUBJECTS", {"vit-s/16 linear": area.SUBJECTS["vit-s/16 linear"]})
    (taken,) = area.memory([512], train=True)
    assert taken["bytes"][0] > 2**20  # 1,024 tokens, and what the backward pass needs of them
    assert "512 px" in capsys.readouterr().out


def test_cost_grows_with_area_as_documented() -> None:
    import area

    sizes = [224, 448, 896]
    exponents = {
        name: area.exponent(sizes, [area.counted(name, size) for size in sizes]) for name in area.SUBJECTS
    }
    assert exponents["swin-t"] == pytest.approx(1, abs=0.01)
    assert exponents["vit-s/16 linear"] == pytest.approx(1, abs=0.01)
    assert exponents["vit-s/16 bigbird"] == pytest.approx(1, abs=0.03)
    assert exponents["vit-s/16"] > 1.2
    assert area.exponent(sizes, [area.pairs(size) for size in sizes]) == pytest.approx(2, abs=0.01)
    area.contender("swin-t", 64, train=False).run()


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
