"""Places for results are checked before the work, and nothing is left there."""

import errno
import os

import pytest

from omma.core import outputs


def test_what_can_be_written_leaves_no_trace(tmp_path):
    outputs.check_file(tmp_path / "a" / "b" / "table.csv")
    outputs.check_folder(tmp_path / "c" / "run")
    outputs.check_folder(tmp_path)
    (tmp_path / "old.csv").write_text("old")
    outputs.check_file(tmp_path / "old.csv")
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("old.csv", "old")]


def test_relative_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs.check_file("table.csv")
    outputs.check_folder("runs/a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("check", "name", "told"),
    [
        (outputs.check_file, "folder", "is a folder: name a file with --out"),
        (outputs.check_folder, "file", "is a file: name a folder with --out"),
        (outputs.check_file, "file/table.csv", "choose another place with --out"),
        (outputs.check_file, "x" * 300, "choose another place with --out"),
        (outputs.check_folder, "new/" + "x" * 300, "choose another place with --out"),
    ],
)
def test_impossible_places_are_refused_in_one_line(tmp_path, check, name, told):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=told) as error:
        check(tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)
    assert {f.name for f in tmp_path.iterdir()} == {"folder", "file"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_the_reason_of_the_system_is_told(tmp_path, monkeypatch, number):
    def refuse(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ValueError, match=os.strerror(number)):
        outputs.check_file(tmp_path / "new" / "table.csv", "--json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        outputs.check_file(tmp_path / "pipe")
