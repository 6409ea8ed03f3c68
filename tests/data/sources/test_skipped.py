"""skipped.csv opens in a spreadsheet or a terminal without doing anything."""

import csv

import pytest

from omma.data.sources.skipped import write_skipped


@pytest.mark.parametrize(
    ("path", "written"),
    [
        ("a b/ü.png", "a b/ü.png"),
        ('=HYPERLINK("http://x","y").png', '\'=HYPERLINK("http://x","y").png'),
        ("+1.png", "'+1.png"),
        ("-1.png", "'-1.png"),
        ("@x.png", "'@x.png"),
        ("\t=1.png", "\\t=1.png"),
        ("\x1b]0;x\x07\x1b[2J.png", "\\x1b]0;x\\x07\\x1b[2J.png"),
        ("a\nb\r.png", "a\\nb\\r.png"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x9b2J", "\\x9b2J"),
    ],
)
def test_cells(tmp_path, path, written):
    write_skipped(tmp_path / "skipped.csv", [(path, "why"), ("b", path)])
    with open(tmp_path / "skipped.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["path", "reason"], [written, "why"], ["b", written]]
