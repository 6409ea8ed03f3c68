"""The run folder: what may lie in it already, and who waits for whose lock."""

import threading
import time

import pytest
import torch

from omma import backbones, weights
from omma.core.protocols import Preprocess
from omma.pretraining.folder import RunFolder


def test_what_a_run_killed_at_its_start_has_left_does_not_stand_in_the_way(tmp_path):
    (tmp_path / ".config.json.7.partial").write_text("{")
    RunFolder(tmp_path).claim({"seed": 0})
    assert RunFolder(tmp_path).config() == {"seed": 0}


def test_a_zeroed_line_of_metrics_costs_that_line_alone(tmp_path):
    run = RunFolder(tmp_path)
    for step in range(1, 6):
        run.log({"event": "step", "step": step})
    lines = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")
    lines[1] = bytes(len(lines[1]))
    lines[3] = b"\xff" + lines[3]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b'{"event": "st')  # and one cut short
    assert [line["step"] for line in run.metrics()] == [1, 3, 5]
    assert run.rewind(3) == 2
    assert [line["step"] for line in run.metrics()] == [1, 3]
    assert run.rewind(3) == 0


def test_a_damaged_configuration_is_named_with_a_remedy(tmp_path):
    (tmp_path / "config.json").write_text('{"a"')
    with pytest.raises(ValueError, match=r"config\.json is damaged .*: copy it"):
        RunFolder(tmp_path).config()


def test_a_run_is_finished_when_its_weights_are_those_that_its_description_names(tmp_path):
    def encoder(seed):
        torch.manual_seed(seed)
        return backbones.build(name="vit-n/8", image_size=16, depth=1, dim=16, heads=2, hidden=16)

    kept = Preprocess(
        size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    run, config = RunFolder(tmp_path), {"end": {"steps": 3}}
    run.claim(config)
    assert not run.finished
    weights.save(tmp_path, encoder(0), kept, {**config, "steps": 3})
    assert run.finished
    assert run.result(thorough=True)["steps"] == 3
    old = {name: (tmp_path / name).read_bytes() for name in ("model.json", "model.safetensors")}
    run.revise({"end": {"steps": 6}})
    assert not run.finished  # but its model is still there
    assert weights.load(tmp_path).provenance["steps"] == 3
    weights.save(tmp_path, encoder(1), kept, {"end": {"steps": 6}, "steps": 6})
    assert run.finished
    (tmp_path / "model.safetensors").write_bytes(old["model.safetensors"])  # killed before the weights
    assert not run.finished
    with pytest.raises(ValueError, match="are of two models"):
        weights.load(tmp_path)
    (tmp_path / "model.json").unlink()
    assert not run.finished
    run.revise(config)
    broken = bytearray(old["model.safetensors"])
    broken[-5] ^= 1
    (tmp_path / "model.safetensors").write_bytes(broken)
    (tmp_path / "model.json").write_bytes(old["model.json"])
    assert run.finished
    assert run.result(thorough=True) is None


def test_what_killed_writers_have_left_is_cleared_with_the_lock(tmp_path):
    run = RunFolder(tmp_path)
    run.claim({"seed": 0})
    left = [".model.safetensors.7-aa.partial", ".metrics.jsonl.7-aa.partial", ".skipped.csv.9.partial"]
    (tmp_path / "features").mkdir()
    others = [tmp_path / ".evaluation.json.8-bb.partial", tmp_path / "features" / ".x.partial"]
    for file in (*(tmp_path / name for name in left), *others):
        file.touch()
    run.claim({"seed": 0})
    assert {p.name for p in tmp_path.glob(".*")} == {others[0].name}  # may be being written
    assert others[1].exists()


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


def test_a_folder_that_vanished_is_written_again(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim({"seed": 1})
    assert not folder.restore_config({"seed": 1})
    (folder.path / "config.json").unlink()
    folder.path.rmdir()
    folder.log({"event": "step", "step": 1})
    assert folder.restore_config({"seed": 1})
    assert folder.config() == {"seed": 1}
