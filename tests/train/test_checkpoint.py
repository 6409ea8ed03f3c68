"""Checkpoints: atomic, two kept, a damaged one passed over, no code run."""

import pickle

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
