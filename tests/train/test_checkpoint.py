"""Checkpoints: atomic, two kept, a damaged one passed over, no code run."""

import io
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from omma.train import checkpoint


def save(folder, step):
    net = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    state = {"step": step, "total": 10, "elapsed": 1.5, "notes": {"readings": [{"step": 1}]}}
    return checkpoint.save(folder, net, optimizer, **state)


def test_the_last_two_are_kept_and_nothing_partial(tmp_path):
    for step in (1, 2, 3):
        (tmp_path / f".step-{step - 1:09d}.pt.7.partial").touch()  # of a run that was killed
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000002.pt", "step-000000003.pt"]
    saved, damaged = checkpoint.newest(tmp_path)
    assert saved.step == 3
    assert saved.notes == {"readings": [{"step": 1}]}
    assert not damaged


def test_a_damaged_one_is_passed_over_and_named(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:200])
    saved, damaged = checkpoint.newest(tmp_path)
    assert saved.step == 1
    assert "step-000000002.pt" in damaged[0]


def test_any_bit_or_page_that_changed_is_found(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = {info.header_offset + 64 + len(info.filename): info for info in archive.infolist()}
    rng = random.Random(0)
    for case in range(30):
        broken = bytearray(whole)
        if case < 20:
            broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        else:
            at = rng.randrange(len(whole))
            broken[at : at + 64] = bytes(len(broken[at : at + 64]))
        path.write_bytes(broken)
        saved, damaged = checkpoint.newest(tmp_path)
        if saved.step == 2:  # only padding between records, which nobody reads, or the same bytes
            assert not damaged
            again = checkpoint.Saved(**torch.load(io.BytesIO(whole), weights_only=True))
            assert all(torch.equal(a, again.method[n]) for n, a in saved.method.items())
            assert str(saved.optimizer) == str(again.optimizer)
        else:
            assert path.name in damaged[0]
    broken = bytearray(whole)
    broken[max(records) + 1] ^= 1  # within a record
    path.write_bytes(broken)
    saved, damaged = checkpoint.newest(tmp_path)
    assert (saved.step, len(damaged)) == (1, 1)
    checkpoint.set_aside(tmp_path, 1)
    assert [p.name for p in checkpoint.paths(tmp_path)] == ["step-000000001.pt"]
    assert (tmp_path / "damaged-step-000000002.pt").exists()


def test_what_cannot_be_accessed_is_not_called_damaged(tmp_path, monkeypatch):
    save(tmp_path, 1)
    path = save(tmp_path, 2)

    def denied(file, *args, **options):
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied")
        return open(file, *args, **options)

    monkeypatch.setattr(checkpoint, "open", denied, raising=False)
    with pytest.raises(ValueError, match=r"step-000000002\.pt cannot be read \(Permission denied\)"):
        checkpoint.newest(tmp_path)


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def half(state, file):
        Path(file).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001.pt"]
    assert checkpoint.newest(tmp_path)[0].step == 1


def test_a_file_that_would_run_code_is_not_loaded(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with open(tmp_path / "step-000000009.pt", "wb") as file:
        pickle.dump({"method": Hostile()}, file)
    saved, damaged = checkpoint.newest(tmp_path)
    assert saved is None
    assert damaged
    assert not (tmp_path / "ran").exists()


def test_nothing_there(tmp_path):
    assert checkpoint.newest(tmp_path / "none") == (None, [])
