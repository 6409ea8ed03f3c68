"""Images are decoded once for all workers, and what is remembered is what was read."""

import multiprocessing
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from omma.core.protocols import BadImage, Crop
from omma.data.batches import loader, remembered
from omma.data.batches.decoded_cache import Cache
from omma.data.batches.remembered import Remembered
from omma.data.sources.collection import indexed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


class Images:
    """Of any sizes and types, with a mark in `reads` (a file) for each read."""

    def __init__(self, reads, images):
        self.reads, self.images = reads, images

    def __call__(self, i):
        with open(self.reads, "a") as file:
            file.write(f"{i}\n")
        if self.images[i] is None:
            raise BadImage("broken")
        return self.images[i]

    def read(self):
        return sorted(map(int, self.reads.read_text().split()))


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    types = (np.uint8, np.uint16, np.float32, np.float64)
    arrays = [(rng.random((3 + i, 5, 1 + i % 3)) * 200).astype(types[i % 4]) for i in range(8)]
    return Images(tmp_path / "reads", [*arrays, None])


def test_each_image_is_read_once_and_bad_ones_each_time(images):
    memory = Remembered(images, 9, 1 << 20)
    for _ in range(3):
        for i in range(8):
            image = memory(i)
            assert image.dtype == images.images[i].dtype
            np.testing.assert_array_equal(image, images.images[i])
        with pytest.raises(BadImage, match="broken"):
            memory(8)
    # doubles are no type of images' values, and are not remembered
    assert images.read() == [0, 1, 2, 3, 3, 3, 4, 5, 6, 7, 7, 7, 8, 8, 8]


def test_forked_processes_share_what_one_has_read(images):
    memory = Remembered(images, 9, 1 << 20)
    context = multiprocessing.get_context("fork")
    for rows in (range(3), range(2, 7)):
        process = context.Process(target=lambda rows=rows: [memory(i) for i in rows])
        process.start()
        process.join()
        assert process.exitcode == 0
    assert [memory(i).tolist() for i in range(7)] == [images.images[i].tolist() for i in range(7)]
    assert images.read() == [0, 1, 2, 3, 3, 4, 5, 6]


def test_what_does_not_fit_is_read_each_time(images, monkeypatch):
    monkeypatch.setattr(remembered, "LEAST", 1)
    memory = Remembered(images, 9, images.images[0].nbytes + 1)
    for _ in range(2):
        assert np.array_equal(memory(0), images.images[0])
        assert np.array_equal(memory(1), images.images[1])
    assert images.read() == [0, 1, 1]


def test_nothing_is_remembered_of_far_too_many(images):
    memory = Remembered(images, 1 << 20, 1 << 20)
    assert np.array_equal(memory(0), memory(0))
    assert images.read() == [0, 0]


def test_without_locks_and_pickled_it_reads_each_time(images, monkeypatch):
    copy = pickle.loads(pickle.dumps(Remembered(images, 9, 1 << 20)))

    def none(method):
        raise OSError("no semaphores")

    monkeypatch.setattr(remembered.multiprocessing, "get_context", none)
    for memory in (copy, Remembered(images, 9, 1 << 20)):
        images.reads.unlink(missing_ok=True)
        assert np.array_equal(memory(0), images.images[0])
        assert np.array_equal(memory(0), images.images[0])
        assert len(memory.read.read()) == 2


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 255, (20 + i, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_decodes_files_once_and_its_crops_are_the_same(photos, monkeypatch, workers):
    source, plan = indexed(photos), [Crop(count=2, size=8, scale=(0.3, 1.0))]

    def crops():
        with loader.stream(source, plan, batch=4, seed=0, workers=workers, in_memory=False) as stream:
            return [next(stream).crops[0] for _ in range(6)]

    opened = multiprocessing.get_context("fork").Value("i", 0)
    load = type(source._store).load

    def counted(self, *arguments):
        with opened.get_lock():
            opened.value += 1
        return load(self, *arguments)

    monkeypatch.setattr(type(source._store), "load", counted)
    kept = crops()
    once = opened.value
    monkeypatch.setattr(loader, "room", lambda: 0)
    for one, other in zip(kept, crops(), strict=True):
        assert one.equal(other)
    assert len(source) <= once <= 2 * len(source) < opened.value - once


def test_a_cache_on_disk_is_not_remembered_too(photos, tmp_path, monkeypatch):
    cache = Cache(indexed(photos), 16, tmp_path / "cache")
    cache.write()
    monkeypatch.setattr(loader, "Remembered", lambda *arguments: pytest.fail("copied into memory"))
    plan = [Crop(count=1, size=8, scale=(0.3, 1.0))]
    with loader.stream(cache.images, plan, batch=4, seed=0, workers=0, in_memory=False) as stream:
        assert next(stream).crops[0].shape == (4, 1, 3, 8, 8)
