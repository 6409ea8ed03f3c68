"""The package as a whole: the names that `import omma` offers, and the layout that CONTRIBUTING describes."""

import ast
import importlib
import os
import re
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


def test_numba_is_imported_only_where_it_is_known_to_be_installed():
    """It is the extra `fast`: files named *_numba.py, and functions of core/compiled.py, import it."""
    found = set()
    texts = {path: path.read_text() for path in sorted(ROOT.rglob("*.py"))}
    for path in [path for path, text in texts.items() if "numba" in text]:
        tree = ast.parse(texts[path])
        within = {n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            loops = any(name.partition(".")[0] == "numba" or name.endswith("_numba") for name in names)
            if isinstance(node, ast.ImportFrom):
                loops |= any(alias.name.endswith("_numba") for alias in node.names)
            if loops and node not in within and not path.stem.endswith("_numba"):
                found.add(str(path.relative_to(ROOT)))
    assert found == set()
    assert (ROOT / "data" / "pixels" / "colour_numba.py").exists()


def test_the_version_stands_in_one_place():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    home = PROJECT / project["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{omma.__version__}"' in home.read_text()
    others = [path for path in sorted(ROOT.rglob("*.py")) if f'"{omma.__version__}"' in path.read_text()]
    assert others == [home]


@pytest.mark.parametrize("name", ["README.md", "SECURITY.md", "CONTRIBUTING.md"])
def test_pages_of_the_root_link_to_what_is_there(name):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (PROJECT / name).read_text())
    assert targets
    assert [target for target in targets if not (PROJECT / target).exists()] == []


def test_the_workflow_runs_the_checks_that_are_there():
    workflow = (PROJECT / ".github" / "workflows" / "ci.yml").read_text()
    commands = re.findall(r"run: (.*)", workflow)
    assert ".ci/run" in commands
    assert os.access(PROJECT / ".ci" / "run", os.X_OK)
    assert "uv run --group docs mkdocs build --strict" in commands
    versions = re.findall(r'"(3\.\d+)"', workflow)
    supported = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["classifiers"]
    assert [f"Programming Language :: Python :: {version}" in supported for version in versions] == [True] * 3
