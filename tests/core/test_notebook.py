"""Results as tables of a notebook: every field is there, and nothing in it is markup."""

import inspect
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import get_type_hints

import numpy as np

import omma
from omma.core.notebook import LONGEST, Displayed, brief, table


@dataclass
class Found(Displayed):
    path: Path
    rows: int
    share: float
    vectors: np.ndarray
    notes: tuple[str, ...] = ()
    bad: tuple[str, ...] = field(default=("hidden",), repr=False)


def test_fields_as_a_table():
    shown = Found(Path("<b>.csv"), 12345, 0.5, np.zeros((2, 3)), tuple(map(str, range(20))))._repr_html_()
    for text in ("&lt;b&gt;.csv", "12,345", "0.5", "ndarray [2, 3]", "... and 8 more"):
        assert text in shown
    assert "<b>" not in shown
    assert "hidden" not in shown


def test_a_table_is_text():
    shown = table(["a", "<i>"], [["1", "\x1b[2J"]], "above", "below & after")
    assert "&lt;i&gt;" in shown
    assert "\x1b" not in shown
    assert "below &amp; after" in shown


def test_results_in_a_line():
    shown = repr(Found(Path("b.csv"), 12345, 0.5, np.zeros((2, 3)), ("a", "b")))
    assert shown == "<Found: path b.csv, rows 12,345, share 0.5, vectors [2, 3], notes (2)>"
    assert len(repr(Found(Path("x" * 999 + "\n"), 1, 0.5, np.zeros(1)))) <= LONGEST
    assert brief("Shift", "a\x1b[2J\nb").isprintable()


def test_every_result_of_a_verb_has_a_line_and_a_table():
    """A dataclass writes its own representation, pages long, unless it has one."""
    homes = [import_module(f"omma.verbs.{name}") for name in omma.__all__ if find_spec(f"omma.verbs.{name}")]
    homes += [import_module(f"omma.verbs.{name}") for name in ("curve", "shape_texture", "describe", "shift")]
    assert len(homes) > 10
    for home in homes:
        verb = getattr(home, home.__name__.rpartition(".")[2])
        kind = get_type_hints(inspect.unwrap(verb))["return"]
        if kind is not Path:
            assert hasattr(kind, "_repr_html_"), kind
            assert kind.__repr__ is Displayed.__repr__ or "brief" in kind.__repr__.__code__.co_names, kind
