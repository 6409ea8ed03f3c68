"""The run folder: what may lie in it already, and who waits for whose lock."""

import threading
import time

import pytest

from omma.pretraining.folder import RunFolder


def test_what_a_run_killed_at_its_start_has_left_does_not_stand_in_the_way(tmp_path):
    (tmp_path / ".config.json.7.partial").write_text("{")
    RunFolder(tmp_path).claim({"seed": 0})
    assert RunFolder(tmp_path).config() == {"seed": 0}


def test_anything_else_does(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds no run"):
        RunFolder(tmp_path).claim({"seed": 0})


def test_a_lock_is_waited_for_as_long_as_asked(tmp_path):
    run, held = RunFolder(tmp_path), threading.Event()

    def hold() -> None:
        with run.locked():
            held.set()
            time.sleep(0.3)

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    with pytest.raises(ValueError, match="another process"), run.locked():
        pass
    with run.locked(patience=30.0):
        assert not other.join(5)
