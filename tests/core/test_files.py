"""Atomic file writes: readers see the old file or the new one, never half of one."""

import pytest

from omma.core import files


def test_the_file_is_replaced_only_after_a_complete_write(tmp_path):
    path = tmp_path / "a" / "b.txt"
    for durable in (False, True):
        with files.atomic_write(path, durable=durable) as partial:
            partial.write_text("new" + str(durable))
            assert path.exists() == durable  # written in the first pass
        assert path.read_text() == f"new{durable}"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("old")

    def fill_the_disk():
        with files.atomic_write(path) as partial:
            partial.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fill_the_disk()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    path, left = tmp_path / "b.txt", tmp_path / ".b.txt.123.partial"
    for file in (path, left, tmp_path / ".c.txt.123.partial"):
        file.write_text("x")
    files.remove_leftovers(path)
    assert {file.name for file in tmp_path.iterdir()} == {"b.txt", ".c.txt.123.partial"}
