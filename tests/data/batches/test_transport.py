"""No failure of a worker process goes unheard, and batches arrive without shared memory too."""

import logging
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from omma.core.explain import explain
from omma.core.protocols import BadImage, Crop, Key
from omma.data.batches import loader, transport

PLAN = (Crop(size=8, scale=(0.4, 1.0)), Crop(size=6, count=2, scale=(0.1, 0.4)))


class Pictures:
    """Pictures of their index, whose reading may go wrong."""

    labels, classes, splits, channels = None, (), None, 3

    def __init__(self, fault=None):
        self.fault = fault

    def __len__(self):
        return 40

    def path(self, i):
        return f"{i}.png"

    def read(self, i, at_least=None):
        if self.fault is not None:
            self.fault(i)
        return np.full((20 + i % 5, 24, 3), i, np.uint8)


def take(steps=2, **options):
    with loader.stream(options.pop("images", Pictures()), PLAN, 6, 5, in_memory=False, **options) as stream:
        return [next(stream) for _ in range(steps)]


def full(*_):
    raise RuntimeError(
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    )


def test_batches_arrive_through_pipes_where_shared_memory_is_full(monkeypatch, caplog):
    """The same numbers, and one line that says so."""
    expected = take(workers=0)
    for reason in (full, lambda *_: (_ for _ in ()).throw(OSError(24, "Too many open files"))):
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(transport, "ForkingPickler", SimpleNamespace(dumps=reason))
            with caplog.at_level(logging.WARNING):
                arrived = take(workers=2)
        for a, b in zip(expected, arrived, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a.crops, b.crops, strict=True))
            assert a.read.tolist() == b.read.tolist()
        assert caplog.text.count("--shm-size") == 1


def test_an_error_of_a_worker_is_raised_as_it_is():
    def no_memory(i):
        raise MemoryError(f"image {i}")

    def own_mistake(i):
        raise KeyError("x")

    def full_disk(i):
        raise OSError(28, "No space left on device", "/cache/x")

    for fault, kind in ((no_memory, MemoryError), (own_mistake, KeyError), (full_disk, OSError)):
        with pytest.raises(kind) as raised:
            take(images=Pictures(fault), workers=1)
        assert f"in {fault.__name__}" in str(raised.value.__cause__)  # the worker's own traceback
        assert (explain(raised.value) is None) == (kind is KeyError)


def test_an_error_that_cannot_travel_is_told_in_words():
    class Odd(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} and {b}")

    def odd(i):
        raise Odd(1, 2)

    with pytest.raises(RuntimeError, match="Odd: 1 and 2"):
        take(images=Pictures(odd), workers=1)


def test_a_killed_worker_is_told_at_once():
    def end(i):
        os.kill(os.getpid(), signal.SIGKILL)

    started = time.monotonic()
    with pytest.raises((RuntimeError, ValueError)) as raised:
        take(images=Pictures(end), workers=1)
    assert "--workers" in str(explain(raised.value))
    assert time.monotonic() - started < 60


def test_without_processes_this_one_loads(monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(38, "Function not implemented")

    expected = take(workers=0)
    monkeypatch.setattr(loader, "DataLoader", refuse)
    with caplog.at_level(logging.WARNING):
        arrived = take(workers=2)
    assert all(torch.equal(x, y) for x, y in zip(expected[0].crops, arrived[0].crops, strict=True))
    assert "Function not implemented" in caplog.text


def test_what_is_packed_arrives_whole(monkeypatch):
    monkeypatch.setattr(transport, "ForkingPickler", SimpleNamespace(dumps=full))
    key = Key(1, np.arange(2), np.arange(2))

    class Work:
        def __getitem__(self, key):
            return (torch.arange(3), (torch.ones(2),), key, {1: "bad"})

    packed = transport.Sender(Work())[key]
    ((a, (b,), c, d),) = transport.received(iter([packed]))
    assert (a.tolist(), b.tolist(), c.index.tolist(), d) == ([0, 1, 2], [1.0, 1.0], [0, 1], {1: "bad"})


def test_bad_images_stay_bad_images():
    def bad(i):
        if i % 3 == 0:
            raise BadImage("truncated")

    assert all("truncated" in step.bad.values() for step in take(images=Pictures(bad), workers=1))
