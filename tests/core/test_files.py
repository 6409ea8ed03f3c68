"""Files that are there whole or not at all."""

import pytest

from omma.core import files


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "a" / "b.txt"
    for lasting in (False, True):
        with files.whole(path, lasting=lasting) as partial:
            partial.write_text("new" + str(lasting))
            assert path.exists() == lasting  # the older one
        assert path.read_text() == f"new{lasting}"
    assert list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("old")

    def fill_the_disk():
        with files.whole(path) as partial:
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
