"""What a launcher says of a process, and what follows for its device and cores."""

import pytest
import torch

from omma.core import device, launcher
from omma.core.launcher import Ranks

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500", "TORCHELASTIC_RESTART_COUNT": "2",
}  # fmt: skip


@pytest.fixture
def torchrun(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_alone(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert launcher.ranks() == Ranks()
    monkeypatch.setenv("WORLD_SIZE", "8")  # some schedulers set one of them for their own ends
    assert launcher.ranks() == Ranks()


def test_what_torchrun_says(torchrun):
    assert launcher.ranks() == Ranks(rank=5, world_size=8, local_rank=1, local_world_size=4, restarts=2)
    torchrun.setenv("RANK", "8")
    with pytest.raises(ValueError, match="RANK=8 of WORLD_SIZE=8"):
        launcher.ranks()
    torchrun.setenv("RANK", "first")
    with pytest.raises(ValueError, match="RANK=first: must be a number"):
        launcher.ranks()


def test_each_process_has_the_gpu_of_its_number(torchrun):
    torchrun.setattr(torch.cuda, "is_available", lambda: True)
    torchrun.setattr(torch.cuda, "device_count", lambda: 4)
    for name in ("auto", "cuda"):
        assert device.pick_device(name) == torch.device("cuda", 1)
    assert device.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="one for several processes"):
        device.pick_device("cuda:0")
    torchrun.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="1 GPUs for 4 processes"):
        device.pick_device("auto")


@pytest.mark.parametrize(("said", "threads"), [("1", 4), (None, 4), ("3", None)])
def test_cores_are_shared_unless_somebody_said_how(torchrun, said, threads):
    """torchrun sets OMP_NUM_THREADS=1 itself."""
    told = []
    torchrun.setattr(device, "cores", lambda: 16)
    torchrun.setattr(torch, "set_num_threads", told.append)
    torchrun.delenv("OMP_NUM_THREADS")
    if said is not None:
        torchrun.setenv("OMP_NUM_THREADS", said)
    device.share_cores()
    assert told == ([] if threads is None else [threads])
    torchrun.setenv("LOCAL_WORLD_SIZE", "1")
    device.share_cores()
    assert len(told) == (threads is not None)
