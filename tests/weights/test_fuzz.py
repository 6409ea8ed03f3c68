"""A bounded share of benchmarks/hostile_weights.py: files give a model or one line, and run no code."""

import importlib.util
import pickle
import time
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hostile_weights.py"


@pytest.fixture(scope="module")
def hostile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hostile_weights", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
