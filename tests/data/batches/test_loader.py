"""The stream is the same whatever the workers, processes and restarts, and outlives bad images and Ctrl-C."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from omma.core.protocols import BadImage, Crop
from omma.core.random import epoch_order
from omma.data.batches import augment, in_memory, loader, order

PLAN = (Crop(size=8, scale=(0.4, 1.0)), Crop(size=6, count=2, scale=(0.1, 0.4)))


class Pictures:
    """Pictures computed from their index; some are bad."""

    labels = None
    classes = ()
    splits = None
    channels = 3

    def __init__(self, n=23, bad=(), ragged=True):
        self.n, self.bad, self.ragged = n, frozenset(bad), ragged

    def __len__(self):
        return self.n

    def path(self, i):
        return f"{i}.png"

    def read(self, i, at_least=None):
        if i in self.bad:
            raise BadImage("truncated")
        rng = np.random.default_rng(i)
        h, w = (20 + i % 5, 24 + i % 3) if self.ragged else (16, 20)
        return (rng.random((h, w, 3)) * 255).astype(np.uint8)

    def subset(self, indices):
        raise NotImplementedError


def take(steps, images=None, batch=6, plan=PLAN, seed=5, **options):
    with loader.stream(images or Pictures(), plan, batch, seed, **options) as stream:
        return [next(stream) for _ in range(steps)]


def assert_equal(a, b):
    for x, y in zip(a.crops, b.crops, strict=True):
        assert torch.equal(x, y)
    np.testing.assert_array_equal(a.key.epoch, b.key.epoch)
    np.testing.assert_array_equal(a.key.index, b.key.index)
    assert a.read.tolist() == b.read.tolist()


# ---------------------------------------------------------------- which images
def test_every_epoch_is_a_permutation_across_batch_borders():
    n, batch = 10, 4
    got = [key for key, _ in zip(order.keys(n, batch, seed=1), range(10))]
    index = np.concatenate([k.index for k in got]).reshape(4, n)
    epoch = np.concatenate([k.epoch for k in got]).reshape(4, n)
    for e in range(4):
        assert (epoch[e] == e).all()
        np.testing.assert_array_equal(index[e], epoch_order(1, e, n))


def test_a_batch_may_hold_several_epochs():
    key = next(order.keys(3, 8, seed=1, start_step=5))
    assert key.epoch.tolist() == [13, 13, 14, 14, 14, 15, 15, 15]


def test_processes_share_the_batch():
    whole = next(order.keys(10, 6, 1, start_step=7))
    parts = [next(order.keys(10, 6, 1, start_step=7, rank=r, world=3)) for r in range(3)]
    np.testing.assert_array_equal(whole.index, np.concatenate([p.index for p in parts]))
    with pytest.raises(ValueError, match=r"batch=6.*4 processes"):
        next(order.keys(10, 6, 1, world=4))
    with pytest.raises(ValueError, match="no image"):
        next(order.keys(0, 6, 1))


# ---------------------------------------------------------------- invariance
@pytest.mark.parametrize("memory", [False, True])
def test_restart_and_processes_change_nothing(memory):
    options = {"images": Pictures(ragged=not memory), "in_memory": memory, "workers": 0}
    straight = take(6, **options)
    for a, b in zip(straight[4:], take(2, start_step=4, **options), strict=True):
        assert_equal(a, b)
    shares = [take(2, rank=r, world=2, **options) for r in range(2)]
    for step in range(2):
        for i in range(len(PLAN)):
            joined = torch.cat([share[step].crops[i] for share in shares])
            torch.testing.assert_close(joined, straight[step].crops[i], atol=1e-3, rtol=0)
        read = np.concatenate([share[step].read for share in shares])
        assert read.tolist() == straight[step].read.tolist()


def test_workers_change_nothing(monkeypatch):
    monkeypatch.setattr(loader, "_CHUNK", 4)  # several parts a batch, the last one smaller
    images, state = Pictures(bad=(3, 4)), torch.random.get_rng_state()
    alone = take(5, images, workers=0)
    for workers in (1, 3):
        for a, b in zip(alone, take(5, images, workers=workers), strict=True):
            assert_equal(a, b)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_two_modes_agree_within_rounding():
    images = Pictures(ragged=False)
    for a, b in zip(take(3, images, in_memory=True), take(3, images, in_memory=False, workers=0)):
        np.testing.assert_array_equal(a.key.index, b.key.index)
        for x, y in zip(a.crops, b.crops):
            # white noise overshoots, and the 8-bit kernel clips between its two passes
            assert (x.clamp(0, 255) - y.float()).abs().mean() < 1


@pytest.mark.parametrize("memory", [False, True])
def test_every_view_is_another_one(memory):
    """Two crops of a plan, two views of each: nowhere the same box, and mirrored independently."""
    plan = (Crop(size=8, count=2, scale=(0.2, 0.9)),) * 2
    (step,) = take(1, Pictures(20, ragged=not memory), 20, plan, in_memory=memory, workers=0)
    views = torch.cat([crop.float() for crop in step.crops], 1)
    assert views.shape == (20, 4, 3, 8, 8)
    for one, other in itertools.combinations(views.unbind(1), 2):
        for view in (other, other.flip(-1)):
            assert ((one - view).abs().flatten(1).mean(1) > 5).float().mean() > 0.8


# ---------------------------------------------------------------- bad images
@pytest.mark.parametrize("memory", [False, True])
def test_a_bad_image_is_replaced_by_the_next_good_one(memory):
    bad = (3, 4, 22)
    images = Pictures(bad=bad, ragged=not memory)
    options = {"in_memory": memory, "workers": 0}
    with loader.stream(images, PLAN, 23, 5, **options) as stream:
        first = next(stream)
        assert stream.bad == dict.fromkeys(bad, "truncated")
        assert sorted(stream.new_bad()) == [(i, "truncated") for i in bad]
        next(stream)
        assert stream.new_bad() == []
        assert stream.waited > 0
    instead = {3: 5, 4: 5, 22: 0}
    assert first.read.tolist() == [instead.get(i, i) for i in first.key.index.tolist()]
    assert sorted(first.key.index) == list(range(23))


@pytest.mark.parametrize("workers", [0, 1])
def test_no_good_image(workers):
    with pytest.raises(ValueError, match="none of 4 images can be read"):
        take(1, Pictures(4, bad=range(4)), workers=workers, in_memory=False)
    with pytest.raises(ValueError, match="none of 4 images can be read"):
        take(1, Pictures(4, bad=range(4)))


# ---------------------------------------------------------------- which mode
def test_small_equal_images_go_to_memory(monkeypatch):
    assert loader.fits_in_memory(Pictures(ragged=False))
    assert not loader.fits_in_memory(Pictures())
    monkeypatch.setattr(in_memory, "MAX_SIDE", 19)
    assert not loader.fits_in_memory(Pictures(ragged=False))
    monkeypatch.setattr(in_memory, "MAX_SIDE", 96)
    monkeypatch.setattr(in_memory, "memory_bytes", lambda: 23 * 16 * 20 * 3 * 4 - 4)
    assert not loader.fits_in_memory(Pictures(ragged=False))
    assert in_memory.memory_bytes() > 0


def test_a_late_surprise_falls_back_to_workers(monkeypatch):
    monkeypatch.setattr(loader, "fits_in_memory", lambda images: True)
    with loader.stream(Pictures(), PLAN, 4, 0, workers=0) as stream:
        assert not stream.in_memory
        next(stream)
    with pytest.raises(ValueError, match="not all of one size"):
        loader.stream(Pictures(), PLAN, 4, 0, in_memory=True)


def test_auto_workers(monkeypatch):
    for cores, processes, workers in ((1, 1, 2), (2, 1, 2), (64, 1, 16), (64, 8, 8)):
        monkeypatch.setattr(loader, "cores", lambda cores=cores: cores)
        assert loader.auto_workers(processes) == workers


def test_images_are_asked_for_at_the_size_that_the_plan_needs():
    class Asked(Pictures):
        sizes: tuple = ()

        def read(self, i, at_least=None):
            self.sizes = (*self.sizes, at_least)
            return super().read(i)

    images = Asked()
    take(1, images, workers=0, in_memory=False)
    assert set(images.sizes) == {augment.at_least(PLAN)}


# ---------------------------------------------------------------- the life of workers
SCRIPT = """
    import os, signal, sys, time
    import numpy as np
    from omma.core.protocols import Crop
    from omma.data.batches import loader

    class Pictures:
        channels = 3
        def __len__(self): return 50
        def path(self, i): return str(i)
        def read(self, i, at_least=None): return np.full((30 + i, 40, 3), i, np.uint8)

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born without
        stream = loader.stream(Pictures(), (Crop(size=16),), 8, 0, workers=2, start_method={method!r})
        pids = set()
        for step, got in zip(range(4), stream): assert got.crops[0].shape == (8, 1, 3, 16, 16)
        import torch.multiprocessing as mp
        print(*[p.pid for p in mp.active_children()], flush=True)
        {end}
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("method", "end", "status"),
    [
        # signals to the whole group, as a terminal or a cluster's scheduler sends them: the parent still gets
        # its data; then it leaves without closing the stream
        (
            "fork",
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN); "
            "os.killpg(0, signal.SIGINT); os.killpg(0, signal.SIGTERM); "
            "[next(stream) for _ in range(20)]; sys.exit(0)",
            0,
        ),
        ("fork", "os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        pytest.param("spawn", "stream.close()", 0, marks=pytest.mark.slow),
        pytest.param(
            "fork", "os.killpg(0, signal.SIGINT); time.sleep(60)", -signal.SIGINT, marks=pytest.mark.slow
        ),
    ],
    ids=["group", "kill", "spawn", "interrupt"],
)
def test_workers_leave_with_their_parent(method, end, status, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT).format(method=method, end=end))
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        line = process.stdout.readline()
        pids = [int(p) for p in line.split()]
        assert len(pids) == 2, process.stderr.read()
        assert process.wait(timeout=30) == status, process.stderr.read()
        deadline = time.monotonic() + 12  # PyTorch's watchdog looks every five seconds
        while any(alive(p) for p in pids):
            assert time.monotonic() < deadline, "workers outlived their parent"
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
