"""The package as a whole: the names that `import omma` offers, and the layout that CONTRIBUTING describes."""

import importlib
import tomllib
from pathlib import Path

import pytest

import omma

ROOT = Path(omma.__file__).parent
PROJECT = ROOT.parents[1]


def test_verbs_stay_functions_whatever_was_imported():
    """A module of the same name would take the function's place once it is imported."""
    for name in set(omma.__all__) - {"__version__"}:
        attribute = getattr(omma, name)
        assert callable(attribute)
        if (ROOT / "verbs" / f"{name}.py").exists():
            importlib.import_module(f"omma.verbs.{name}")
        assert getattr(omma, name) is attribute


def test_only_rooms_lie_in_the_package():
    files = {path.name for path in ROOT.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "py.typed"}
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert rooms == {room for layer in contracts[0]["layers"] for room in layer.split(" | ")}
    assert len(rooms) <= 19


@pytest.mark.parametrize(("folder", "most"), [("src", 350), ("benchmarks", 350), ("src/omma/verbs", 125)])
def test_files_stay_short(folder, most):
    paths = sorted((PROJECT / folder).rglob("*.py"))
    assert paths
    lengths = {str(path.relative_to(PROJECT)): len(path.read_text().splitlines()) for path in paths}
    assert {path: n for path, n in lengths.items() if n > most} == {}, "split by meaning"
