"""docs/beside.md: omma's snippets run, each by itself, and the table counts the snippets that are there."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "beside.md"
CLASSES, EACH, SIZE = ("ants", "bees"), 14, 24
TINY = 'steps=1, batch_size=8, precision="fp32", workers=0'
# what takes long says the same when it is short
SHORTER = {
    'runs/photos", epochs=2': f'runs/photos", model="vit-n/8", model_options={{"depth": 1}}, {TINY}',
    'runs/mine", epochs=2': f'runs/mine", {TINY}',
    'runs/species", epochs=2': f'runs/species", {TINY}',
    "rand(8, 3, 64, 64)": "rand(8, 3, 24, 24)",
}


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark that counts lines and runs the snippets."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("beside")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Photographs of two classes, of one colour each, in train and val."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for k, name in enumerate(CLASSES):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for n in range(EACH):
                pixels = rng.integers(0, 156, (SIZE, SIZE, 3), np.uint8)
                pixels[:, :, k] += 100
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{n}.jpg")
    return tmp_path / "images"


def test_the_six_snippets_run_by_themselves(
    beside: ModuleType, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    folder = tmp_path / "work"
    beside.prepare(images, folder, EACH)
    (folder / "network.py").write_text(beside.given())
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    printed = {}
    for task, code in beside.ours().items():
        for long, short in SHORTER.items():
            code = code.replace(long, short)
        capsys.readouterr()
        exec(compile(code, f"{PAGE}: {task}", "exec"), {})
        printed[task] = capsys.readouterr().out
    sys.modules.pop("network")
    assert (folder / "runs" / "photos" / "model.safetensors").exists()
    assert (folder / "runs" / "mine" / "model.safetensors").exists()
    assert (folder / "network.pt").stat().st_size > 4 * 3 * 3 * 3 * 16
    rows = re.findall(r"\((\d+), (\d+)\)", printed["embed"])
    assert [int(n) for n, _ in rows] == [2, 8, 1, 8]
    assert len({d for _, d in rows}) == 1
    judged = [line.split()[:2] for line in printed["judge"].splitlines()]
    assert judged == [["knn", "1.0"], ["linear", "1.0"]]  # the classes differ in colour
    answers = [line.split() for line in printed["finetune"].splitlines()]
    assert [path for path, *_ in answers] == ["a.jpg", "b.png"]
    assert all(name in CLASSES and 0.5 <= float(p) <= 1 for _, name, p in answers)


def test_the_table_counts_the_snippets(beside: ModuleType) -> None:
    pytest.importorskip("ruff", reason="ruff (dev group) is not installed")
    rows = re.findall(r"^\| (.*) \|$", PAGE.read_text(), re.MULTILINE)[1:]  # without the head
    cells = [row.split(" | ") for row in rows]
    assert [row[0] for row in cells] == list(beside.TASKS.values())
    shown = {
        who: {
            task: int(row[1 + k].split(";")[0])
            for task, row in zip(beside.TASKS, cells)
            if row[1 + k][0] != "n"
        }
        for k, who in enumerate(("omma", *beside.PEERS))
    }
    assert shown == beside.counts()


def test_lines_are_those_of_formatted_code(beside: ModuleType) -> None:
    pytest.importorskip("ruff", reason="ruff (dev group) is not installed")
    long = ", ".join(["word"] * 30)  # does not fit into a line, so that each argument gets one
    codes = beside.formatted(["# why\nimport a\n\n\nx = f(a,\n  b)\n", f"print({long})"])
    assert [beside.lines(code) for code in codes] == [2, 2 + 30]


def test_snippets_stand_as_ruff_formats_them(beside: ModuleType) -> None:
    pytest.importorskip("ruff", reason="ruff (dev group) is not installed")
    codes = [beside.given(), *beside.ours().values()]
    codes += [code for peer in beside.PEERS for code in beside.theirs(peer).values()]
    assert len(codes) == 1 + 6 + 6 + 3 + 5
    assert beside.formatted(codes) == codes


def test_a_script_that_fails_or_does_nothing_is_told(beside: ModuleType, tmp_path: Path) -> None:
    assert beside.run(sys.executable, "print(1)", tmp_path) == ""
    assert beside.run(sys.executable, "open('a.pt', 'w').close()", tmp_path) == ""
    assert beside.run(sys.executable, "1 + 1", tmp_path) == "printed and wrote nothing"
    assert beside.run(sys.executable, "{}['a']", tmp_path) == "KeyError: 'a'"
