"""Results as tables of a notebook: every field is there, and nothing in it is markup."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from omma.core.notebook import Displayed, table


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
