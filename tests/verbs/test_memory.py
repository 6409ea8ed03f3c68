"""Batches that do not fit into memory: cut where omma chose them, refused where the user did."""

import os
import re
import signal
from pathlib import Path

import processes
import pytest
import torch

from omma import methods
from omma.core import dist
from omma.data.sources.collection import ArrayImages
from omma.pretraining.events import Plan, Progress
from omma.pretraining.folder import RunFolder
from omma.train import out_of_memory
from omma.verbs.pretrain import pretrain

IMAGES = 12  # and so the batch that omma chooses
BASE = {"model": "vit-n/8", "image_size": 16, "device": "cpu", "precision": "fp32", "steps": 2}


def train(out, listen=lambda event: None, **options):
    """A run, and the notes in its plan."""
    pixels = torch.randint(0, 256, (IMAGES, 16, 16, 3), generator=torch.Generator().manual_seed(0))
    images, plans = ArrayImages(pixels.to(torch.uint8).numpy()), []

    def heard(event):
        listen(event)
        if isinstance(event, Plan):
            plans.append(event)

    pretrain(images, out=out, listen=heard, **BASE | options)
    return "; ".join(plans[0].notes)


def limit(method, room, error=torch.OutOfMemoryError):
    """Such a method runs out of memory with more than `room` images at a time, late in a step as is usual."""
    forward = method.forward

    def limited(self, batch, clock):
        output = forward(self, batch, clock)
        if len(batch.key.index) > room:
            output.loss.backward()
            raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return output

    method.forward = limited


@pytest.fixture
def lacking(monkeypatch):
    def patch(name, room, **kind):
        method = methods.get(name).Method
        monkeypatch.setattr(method, "forward", method.forward)  # puts it back
        limit(method, room, **kind)

    return patch


def state(out):
    """All that a run ends with."""
    saved = torch.load(max((out / "checkpoints").glob("step-*")), weights_only=True)
    return saved["method"], saved["optimizer"]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else a == b


CASES = {
    "parts": (
        "mae",
        {},
        3,
        {"batch_size": 12, "accumulate": 4},
        "a batch of 12 .* computed in 4 micro-batches",
    ),
    "one image": ("mae", {}, 1, {"batch_size": 12, "accumulate": 12}, "computed in 12 micro-batches"),
    "compared": (
        "simclr",
        {},
        5,
        {"batch_size": 3},
        "3 instead, learning rate .*each image is contrasted with",
    ),
    "batch norms": ("vqvae", {"model": "vitc-15mf"}, 6, {"batch_size": 6}, "6 instead.*batch norms compare"),
    "own rate": ("simclr", {"lr": 0.01}, 6, {"batch_size": 6}, r"6 instead, learning rate 0\.01 "),
}


@pytest.mark.parametrize("case", CASES)
def test_the_run_is_that_of_the_smaller_setting(tmp_path, lacking, case):
    """Bit for bit: nothing remains of what was tried."""
    method, options, room, setting, message = CASES[case]
    lacking(method, room)
    assert re.search(message, train(tmp_path / "cut", method=method, **options))
    assert "memory" not in train(tmp_path / "set", method=method, **options, **setting)
    assert same(state(tmp_path / "cut"), state(tmp_path / "set"))
    cut, asked = RunFolder(tmp_path / "cut").config(), RunFolder(tmp_path / "set").config()
    assert cut.pop("fitted") == {"batch": setting["batch_size"], "accumulate": setting.get("accumulate", 1)}
    del cut["options"], asked["options"]  # what was asked for, which differs
    assert cut == asked


def test_what_fits_is_left_alone(tmp_path, lacking):
    lacking("mae", 12)
    assert "memory" not in train(tmp_path / "run", method="mae")
    assert "fitted" not in RunFolder(tmp_path / "run").config()


@pytest.mark.parametrize("method", ["mae", "simclr"])
def test_a_resumed_run_keeps_what_was_measured(tmp_path, lacking, monkeypatch, method):
    """Though there would be room by now."""

    def stop(event):
        if isinstance(event, Progress) and event.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    lacking(method, 6)
    train(tmp_path / "whole", method=method, steps=3)
    train(tmp_path / "resumed", stop, method=method, steps=3)
    monkeypatch.undo()
    assert "as memory allowed when the run began" in train(tmp_path / "resumed", method=method, steps=3)
    assert same(state(tmp_path / "whole"), state(tmp_path / "resumed"))


@pytest.mark.parametrize(
    ("room", "options", "message"),
    [
        (6, {"batch_size": 12}, "with a batch of 12: give a smaller --batch-size or a larger --accumulate"),
        (3, {"accumulate": 2}, "with a batch of 12 in 2 micro-batches: give a smaller"),
        (0, {}, "even with 1 images at a time: choose a smaller --model"),
    ],
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_what_the_user_set_is_kept_and_what_helps_is_named(tmp_path, lacking, error, room, options, message):
    lacking("mae", room, error=error)
    with pytest.raises(ValueError, match=f"out of memory on cpu,? {message}") as raised:
        train(tmp_path / "run", method="mae", **options)
    assert "\n" not in str(raised.value)


def test_other_errors_are_not_of_memory(tmp_path, lacking):
    assert out_of_memory.ran_out(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert not out_of_memory.ran_out(ValueError("DefaultCPUAllocator: can't allocate memory"))
    lacking("mae", 6, error=NotImplementedError)  # a RuntimeError, too
    lacking("simclr", 6, error=lambda text: RuntimeError("the sizes of tensors must match"))
    with pytest.raises(RuntimeError, match="the sizes of tensors must match"):
        train(tmp_path / "run", method="simclr")


@pytest.mark.parametrize(
    ("share", "now", "next_"), [(12, 1, 2), (12, 4, 12), (9, 1, 3), (7, 1, 7), (7, 4, 7)]
)
def test_parts_are_of_one_size(share, now, next_):
    assert out_of_memory.more_micro_batches(share, now) == next_


def main(rank: int, folder: Path) -> None:
    """One of two processes, of which the second has less room."""
    torch.set_num_threads(1)
    os.environ["OMMA_CACHE"] = str(folder / f"cache-{rank}")
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    limit(methods.get("mae").Method, 6 if rank == 0 else 3)
    notes = train(folder / "cut", method="mae")
    with dist.on_this_process():
        single = dist.is_distributed(), dist.world_size(), dist.rank()
    torch.save({"notes": notes, "single": single, "active": dist.is_distributed()}, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_if_one_process_runs_out_all_cut(tmp_path):
    for report in processes.run(__file__, tmp_path):
        assert "a batch of 12 does not fit into memory: computed in 2 micro-batches" in report["notes"]
        assert "2 processes, 6 images of a step each" in report["notes"]
        assert report["single"] == (False, 1, 0)
        assert report["active"]
    train(tmp_path / "one", method="mae", batch_size=12)
    for name, value in state(tmp_path / "one")[0].items():
        torch.testing.assert_close(state(tmp_path / "cut")[0][name], value, rtol=1e-4, atol=1e-5)
