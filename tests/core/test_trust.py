"""Compiled code is loaded only from where nobody else could have put it."""

import os
from pathlib import Path

import pytest
from numba.core.caching import NullCache

from omma.core import trust
from omma.ops.cpu import library

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no modes")


def test_folders_of_the_user_are_trusted(tmp_path: Path) -> None:
    assert trust.why_not(tmp_path) is None
    assert trust.why_not(tmp_path / "not" / "there") is None
    (tmp_path / "own").mkdir(0o755)
    (tmp_path / "own" / "x.so").touch(0o644)
    assert trust.why_not(tmp_path / "own" / "x.so") is None


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_folders_that_others_write_to_are_not(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    (folder / "x.so").touch()
    assert "others can write" in str(trust.why_not(folder / "x.so"))
    assert "others can write" in str(trust.why_not(folder))
    assert "others can write" in str(trust.why_not(folder / "later.so"))
    (folder / "mine").mkdir(0o700)  # with the sticky bit nobody else can rename it
    assert (trust.why_not(folder / "mine" / "x.so") is None) == (mode == 0o1777)


def test_files_and_owners_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.so"
    file.touch()
    file.chmod(0o666)
    assert "others can write" in str(trust.why_not(file))
    file.chmod(0o644)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    if os.getuid():
        assert "another user" in str(trust.why_not(file))
    else:
        assert trust.why_not(file) is None  # root's
        os.chown(file, 1234, -1)
        assert "another user" in str(trust.why_not(file))


def test_links_lead_to_what_is_judged(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    assert trust.why_not(tmp_path / "link" / "x.so") is not None


def test_kernels_of_a_shared_folder_are_not_loaded(tmp_path: Path, monkeypatch, caplog) -> None:
    """A library planted there stays unread; the kernels are compiled apart, or there are none."""
    shared = tmp_path / "cache"
    shared.mkdir()
    shared.chmod(0o1777)
    planted, loaded = shared / "kernels-1.so", []
    planted.write_bytes(b"planted")
    monkeypatch.setattr(library.ctypes, "CDLL", lambda name: loaded.append(name) or name)
    monkeypatch.setattr(library.subprocess, "run", lambda command, **_: Path(command[-1]).touch())
    _, remark = library._built(planted, ["g++", "-o"])
    assert not any(str(shared) in name for name in loaded)
    assert len(loaded) == 1
    assert "others can write" in remark
    assert "OMMA_CACHE" in caplog.text
    shared.chmod(0o755)
    assert library._built(planted, ["g++", "-o"]) == (str(planted), "")


def test_numbas_cache_is_judged_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omma.core import compiled as numba_loops

    def double(x):
        return 2 * x

    monkeypatch.setattr(numba_loops.trust, "why_not", lambda path: "others can write to it")
    compiled = numba_loops.compiled()(double)
    assert isinstance(compiled._cache, NullCache)
    assert compiled(2) == 4
