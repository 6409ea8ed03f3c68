"""What a type checker sees of `import omma`: types, not Any. pyright reads the script in scripts/check."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import omma

SCRIPT = Path(__file__).parent / "typed" / "script.py"
PACKAGE = Path(omma.__file__).parent
WRONG = {  # mistakes, each of which mypy has a name of its own for
    "arg-type": "omma.predict(model, 3, 'classes.csv')",
    "call-arg": "omma.pretrain('photos', budgets='30m')",
    "attr-defined": "omma.pretrian",
}


def imported_for_checkers() -> set[str]:
    """Names that the package's `if TYPE_CHECKING` imports."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    blocks = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {
        alias.name
        for block in blocks
        for n in block.body
        if isinstance(n, ast.ImportFrom)
        for alias in n.names
    }


def test_every_public_name_is_typed():
    assert (PACKAGE / "py.typed").exists()
    assert imported_for_checkers() == set(omma.__all__) - {"__version__"}
    assert dir(omma) == sorted(omma.__all__)
    assert "__version__" in dir(omma)


@pytest.mark.slow  # mypy reads all of torch
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_mypy_sees_types(tmp_path, wrong):
    script = tmp_path / "script.py"
    text = SCRIPT.read_text()
    mistakes = "\n".join(WRONG.values()) if wrong else ""
    script.write_text(text + mistakes)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-color-output"]
    done = subprocess.run(
        [*command, "--cache-dir", str(tmp_path.parent / "mypy"), str(script)],
        capture_output=True, text=True, env={**os.environ, "MYPYPATH": str(PACKAGE.parent)}, cwd=tmp_path,
    )  # fmt: skip
    found = [line.rpartition("[")[2].rstrip("]") for line in done.stdout.splitlines() if ": error:" in line]
    assert found == ([*WRONG] if wrong else []), done.stdout + done.stderr
