"""A cache gives what was decoded, whole or resized; bad images stay bad, a killed writer costs one part."""

import pickle
import threading
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from omma.core.protocols import BadImage, Crop
from omma.data.batches import augment, decoded_cache, loader
from omma.data.batches.decoded_cache import Cache
from omma.data.sources.collection import ArrayImages, open_images
from omma.data.sources.indexed import IndexedImages


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Nine pictures of several sizes, one of them damaged; three images a part."""
    monkeypatch.setattr(decoded_cache, "SMALLEST", 3)
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(9):
        values = rng.integers(0, 256, (30 + 5 * i, 40, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "4.png").write_bytes(b"")
    return tmp_path / "images"


def read(images, i):
    try:
        return images.read(i)
    except BadImage as error:
        return str(error)


def test_what_needs_no_resizing_is_as_decoded(folder):
    source = open_images(folder)
    cache = Cache(source, 100)
    cache.write()
    copy = pickle.loads(pickle.dumps(cache.images))
    assert len(pickle.dumps(cache.store)) < 500
    for i in range(9):
        np.testing.assert_array_equal(read(copy, i), read(source, i))
    assert read(copy, 4) == "empty file"
    part = copy.subset(np.array([7, 2]))
    assert [part.path(0), part.path(1)] == ["7.png", "2.png"]
    np.testing.assert_array_equal(part.read(1), source.read(2))


def test_a_read_copies_nothing(folder):
    cache = Cache(open_images(folder), 100)
    cache.write()
    first, again = cache.images.read(0), cache.images.read(0)
    assert np.shares_memory(first, again)


def test_larger_images_are_resized_with_antialiasing(folder):
    source = open_images(folder)
    cache = Cache(source, 32)
    cache.write()
    assert cache.images.read(0).shape == (30, 40, 3)  # never enlarged
    assert cache.images.read(8).shape == (56, 32, 3)
    wide = cache.images.read(1)
    assert wide.shape == (32, 37, 3)
    plain = torch.from_numpy(source.read(1)).permute(2, 0, 1)[None].float()
    slow = F.interpolate(plain, size=(32, 37), mode="bicubic", antialias=True).clamp(0, 255)
    # white noise overshoots, and the 8-bit kernel clips between its two passes
    assert (slow[0].permute(1, 2, 0) - torch.from_numpy(wide)).abs().mean() < 1


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_raw_values_and_any_channels_keep_their_type(channels):
    values = np.random.default_rng(0).normal(1000, 300, (4, 20, 20, channels)).astype(np.float32)
    for side, at in ((20, (20, 20)), (10, (10, 10))):
        cache = Cache(ArrayImages(values), side)
        cache.write()
        copy = cache.images.read(2)
        assert (copy.dtype, copy.shape) == (np.float32, (*at, channels))
        if side == 20:
            np.testing.assert_array_equal(copy, values[2])
    eight = Cache(ArrayImages((values % 256).astype(np.uint8)), 10)
    eight.write()
    assert eight.images.read(0).dtype == np.uint8


def test_a_later_run_finds_it_and_a_changed_source_does_not(folder, monkeypatch):
    Cache(open_images(folder), 32).write()
    monkeypatch.setattr(Cache, "_write", lambda *_: pytest.fail("written again"))
    Cache(open_images(folder), 32).write()
    assert Cache(open_images(folder), 33).missing() == [0, 1, 2]
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(folder / "3.png")
    assert Cache(open_images(folder), 32).missing() == [0, 1, 2]


def test_a_killed_writer_costs_one_part(folder, monkeypatch):
    cache, done, whole = Cache(open_images(folder), 32), [], IndexedImages.read

    def dies(images, i, at_least=None):
        done.append(i)
        if len(done) > 9 + 4:  # nine are looked at for the size; the second part's second image
            raise KeyboardInterrupt
        return whole(images, i, at_least)

    monkeypatch.setattr(IndexedImages, "read", dies)
    with pytest.raises(KeyboardInterrupt):
        cache.write()
    monkeypatch.undo()
    monkeypatch.setattr(decoded_cache, "SMALLEST", 3)
    assert Cache(open_images(folder), 32, cache.folder).missing() == [1, 2]
    assert not list(cache.store.file(0).parent.glob("*.partial"))


def test_a_part_that_was_cut_is_written_again(folder):
    cache = Cache(open_images(folder), 100)
    cache.write()
    file = cache.store.file(1)
    whole = file.read_bytes()
    for kept in (len(whole) // 2, 40, 0):
        file.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"part-001\.pixels.*writes it again"):
            Cache(open_images(folder), 100).images.read(3)
        assert cache.missing() == [1]
        cache.write()
        assert file.read_bytes() == whole


def test_two_writers_share_the_work(folder, monkeypatch):
    source, written, write, both = open_images(folder), [], Cache._write, threading.Barrier(2, timeout=20)

    def noted(cache, number):
        if number < 2:  # each has one of the first two, at the same time
            both.wait()
        written.append(number)
        write(cache, number)

    monkeypatch.setattr(Cache, "_write", noted)
    caches = [Cache(source, 32), Cache(source, 32)]
    threads = [threading.Thread(target=cache.write) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(written) == [0, 1, 2]
    assert caches[0].images.read(8).shape == (56, 32, 3)


def test_size_is_told_before_anything_is_written(folder, monkeypatch):
    cache, messages = Cache(open_images(folder), 100), []

    def tell(text):
        messages.append(text)
        assert cache.missing() == [0, 1, 2]

    cache.write(tell)
    where = f" at {cache.store.folder} (9 images, shorter side 100)"
    assert where in messages[0]
    assert cache.describe().endswith(where)
    size, _ = Cache(open_images(folder), 100).expected()
    on_disk = sum(cache.store.file(number).stat().st_size for number in range(3))
    assert 0.95 < 9 * size / on_disk < 1.1


def test_a_full_disk_is_told_in_one_line(folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(decoded_cache.shutil, "disk_usage", lambda _: usage(10**6, 10**6, 10**4))
    cache = Cache(open_images(folder), 32)
    with pytest.raises(
        ValueError, match=r"cache of about .* 0.0 GB are free; .*OMMA_CACHE.*--cache"
    ) as error:
        cache.write()
    assert "\n" not in str(error.value)
    assert cache.missing() == [0, 1, 2]


def test_a_cache_that_is_gone_ends_the_run(folder):
    cache = Cache(open_images(folder), 32)
    with pytest.raises(ValueError, match=r"No such file.*writes it again"):
        cache.images.read(0)


def test_the_stream_from_it_is_the_stream_without_it(folder):
    source, plan = open_images(folder), (Crop(size=64, count=2),)
    cache = Cache(source, augment.at_least(plan))
    cache.write()
    taken = []
    for images, workers in ((source, 0), (cache.images, 0), (cache.images, 2)):
        with loader.stream(images, plan, 4, 5, workers=workers) as stream:
            taken.append([next(stream) for _ in range(4)])
            assert list(stream.bad) == [4]
    for plain, *cached in zip(*taken):
        for other in cached:
            assert torch.equal(plain.crops[0], other.crops[0])
            assert plain.read.tolist() == other.read.tolist()
