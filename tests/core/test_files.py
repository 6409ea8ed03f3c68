"""Atomic file writes: readers see the old file or the new one, never half of one."""

import os
import stat
import time

import numpy as np
import pytest
import safetensors.numpy

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


def test_old_leftovers_go_and_those_of_a_living_writer_stay(tmp_path):
    dead, living = tmp_path / ".b.txt.1-ab.partial", tmp_path / ".c.txt.2-cd.partial"
    for file in (dead, living):
        file.touch()
    os.utime(dead, (0, time.time() - 2 * files.STALE))
    files.remove_leftovers(tmp_path / "*", files.STALE)
    assert list(tmp_path.iterdir()) == [living]


@pytest.mark.skipif(os.name != "posix", reason="locks")
def test_a_writer_clears_what_killed_writers_of_its_file_left(tmp_path):
    """At once, where their locks are free; that of a living writer, and those of other files, stay."""
    path, other = tmp_path / "b[1].txt", tmp_path / ".c.txt.1-ab.partial"
    dead, folder = tmp_path / ".b[1].txt.1-ab.partial", tmp_path / ".b[1].txt.cd.partial"
    folder.mkdir()
    for file in (dead, other, folder / "half"):
        file.touch()
    with files.atomic_write(path) as living:
        living.write_text("slow")
        for each in (dead, folder, living, other):
            os.utime(each, (0, time.time() - 2 * files.YOUNG))
        with files.atomic_write(path) as second:
            second.write_text("fast")
        assert set(tmp_path.iterdir()) == {path, living, other}
        assert path.read_text() == "fast"
    assert path.read_text() == "slow"
    assert set(tmp_path.iterdir()) == {path, other}


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_what_is_written_has_the_permissions_of_any_new_file(tmp_path):
    """safetensors writes files that only their owner can read."""
    before = os.umask(0o027)
    try:
        with files.atomic_write(tmp_path / "a.safetensors") as partial:
            safetensors.numpy.save_file({"a": np.zeros(2)}, partial)
        (tmp_path / "deep").mkdir()
        safetensors.numpy.save_file({"a": np.zeros(2)}, tmp_path / "deep" / "b.safetensors")
        files.set_default_modes(tmp_path)
    finally:
        os.umask(before)
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) == 2
    assert {stat.S_IMODE(file.stat().st_mode) for file in written} == {0o640}


@pytest.mark.parametrize("content", ["{", "[1]", "\0" * 20, '{"a": '])
def test_damaged_json_is_named_with_the_remedy(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json is damaged .*: copy it") as error:
        files.read_json(tmp_path / "x.json", "copy it")
    assert "\n" not in str(error.value)
