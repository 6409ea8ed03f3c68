"""A bounded share of benchmarks/hostile_weights.py: files give a model or one line, and run no code."""

import importlib
import pickle
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def hostile() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(SCRIPTS), *sys.path])  # it imports its neighbours
        return importlib.import_module("hostile_weights")


def test_the_code_in_these_files_works(hostile: ModuleType, tmp_path: Path) -> None:
    pickle.loads(hostile.with_call(hostile.calls(tmp_path / "marker")[0]))
    assert (tmp_path / "marker").exists()


def test_honest_files_are_loaded(hostile: ModuleType, tmp_path: Path) -> None:
    for name, files in hostile.samples().items():
        assert hostile.attempt(hostile.write(tmp_path / "w", files)) == "loaded", name


def test_attacks_and_mutants_are_loaded_or_refused_in_a_line(hostile: ModuleType, tmp_path: Path) -> None:
    marker, honest, start = tmp_path / "marker", hostile.samples(), time.process_time()
    outcomes = []
    for name, files in hostile.attacks(marker, large=False).items():
        outcomes.append(hostile.attempt(hostile.write(tmp_path / "w", files)))
        assert outcomes[-1] in ("loaded", "refused"), name
        assert not marker.exists(), name
    for number in range(150):
        if time.process_time() - start > 4:  # a slow machine tries fewer
            break
        name, files = hostile.mutant(honest, hostile.calls(marker), 1, number)
        outcomes.append(hostile.attempt(hostile.write(tmp_path / "w", files)))
        assert outcomes[-1] in ("loaded", "refused"), (number, name)
        assert not marker.exists(), (number, name)
    assert min(outcomes.count("loaded"), outcomes.count("refused")) > 5
