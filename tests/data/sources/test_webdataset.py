"""WebDataset shards: samples, labels, captions, local and remote; an order that resumes; bounded copies."""

import io
import itertools
import json
import os
import pickle
import tarfile

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from omma.core.protocols import BadImage, Crop
from omma.core.random import local_order
from omma.data.batches import loader, order
from omma.data.batches.frames import samples
from omma.data.sources import webdataset_files
from omma.data.sources.check import checked
from omma.data.sources.collection import open_images
from omma.data.sources.webdataset_files import Shards, expand

PER = 5  # samples a shard


def picture(i, kind="PNG", size=(20, 24)):
    pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), kind)
    return file.getvalue()


def pack(members):
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def plain(k):
    """Shard k: samples 5 k to 5 k + 4, with labels by number and captions."""
    members = {}
    for i in range(PER * k, PER * k + PER):
        members[f"{i:04}.png"] = picture(i)
        members[f"{i:04}.cls"] = str(i % 3).encode()
        members[f"{i:04}.txt"] = f"number {i}".encode()
    return pack(members)


@pytest.fixture
def folder(tmp_path):
    """Six shards on disk."""
    (tmp_path / "shards").mkdir()
    for k in range(6):
        (tmp_path / "shards" / f"{k:03}.tar").write_bytes(plain(k))
    return tmp_path / "shards"


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """The same six at an address; which shards were fetched whole, and which parts were asked for."""
    system = fsspec.filesystem("memory")
    for k in range(6):
        system.pipe(f"/bucket/{k:03}.tar", plain(k))
    monkeypatch.setattr(webdataset_files, "PAUSE", 0.0)
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def same(images, others):
    assert [images.path(i) for i in range(len(images))] == [others.path(i) for i in range(len(others))]
    for i in range(len(images)):
        np.testing.assert_array_equal(images.read(i), others.read(i))


# ---------------------------------------------------------------- which shards
@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("odd{}.tar", ["odd{}.tar"]),
    ],
)
def test_braces(pattern, names):
    assert expand(pattern) == names


@pytest.mark.parametrize("pattern", ["", "/*.tar", "/{000..005}.tar", "/{000,001,002}.tar"])
def test_folders_and_patterns(folder, pattern):
    images = open_images(f"{folder}{pattern}")
    assert len(images) == (15 if "," in pattern else 30)
    assert images.path(7) == "001.tar/0007.png"
    assert images.labels is not None
    assert images.labels.tolist() == [i % 3 for i in range(len(images))]
    assert images.classes == ("0", "1", "2")
    assert images.text is not None
    assert images.text[7].as_py() == ["number 7"]
    assert images.skipped == []
    np.testing.assert_array_equal(images.read(7), np.asarray(Image.open(io.BytesIO(picture(7)))))
    same(pickle.loads(pickle.dumps(images)).subset(np.array([9, 2])), images.subset(np.array([9, 2])))


def test_a_missing_shard_and_an_address_without_any_are_refused(folder, remote):
    for source in (f"{folder}/{{000..006}}.tar", f"{remote}/{{000..006}}.tar"):
        with pytest.raises(ValueError, match=r"006\.tar"):
            open_images(source)
    for source in ("memory://nothing", "memory://nothing/*.tar"):
        with pytest.raises(ValueError, match=r"no \.tar files|no such shards|cannot be found"):
            open_images(source)


def test_a_folder_with_an_image_is_a_folder_of_images(folder):
    (folder / "one.png").write_bytes(picture(0))
    assert len(open_images(folder)) == 1


# ---------------------------------------------------------------- samples
def test_what_lies_beside_an_image(tmp_path):
    first = {
        "./a.jpg": picture(0, "JPEG"),
        "a.json": json.dumps({"label": "owl", "caption": "an owl"}).encode(),
        "a.txt": b"an owl",  # the JSON has it too
        "b.seg.png": picture(1),
        "b.jpg": picture(2, "JPEG"),
        "b.cls": b"newt\n",
        "b.txt": b"\xff\xfe",
        "deep/er/b.input.png": picture(3),
        "deep/er/b.json": b"{",
        "notes.md": b"hello",
        ".hidden.jpg": picture(0),
        "c.cls": b"7",  # of no image
    }
    second = {"d.png": picture(4), "d.json": json.dumps({"cls": "owl", "texts": ["one", "two"]}).encode()}
    (tmp_path / "0.tar").write_bytes(pack(first))
    (tmp_path / "1.tar").write_bytes(pack(second))
    (tmp_path / "2.tar").write_bytes(b"no tar at all" * 99)
    (tmp_path / "3.tar").write_bytes(pack({"e.png": picture(5), "f.png": picture(6)})[:3000])
    for _ in range(2):  # listed, then remembered
        images = open_images(tmp_path)
        names = [images.path(i) for i in range(len(images))]
        assert names[:4] == ["0.tar/a.jpg", "0.tar/b.jpg", "0.tar/deep/er/b.input.png", "1.tar/d.png"]
        assert images.classes == ("newt", "owl")
        assert images.labels is not None
        assert images.labels[:4].tolist() == [1, 0, -1, 1]
        assert images.text is not None
        assert images.text[0].as_py() == ["an owl"]
        assert images.text[1].as_py() == [None]
        assert images.text[3].as_py() == ["one", "two"]
        reasons = dict(images.skipped)
        assert reasons["0.tar/b.seg.png"] == "a further image of its sample"
        assert reasons["0.tar/deep/er/b.json"] == "not readable as JSON"
        assert reasons["0.tar/notes.md"] == "not an image"
        assert "not a readable tar" in reasons["2.tar"]
    good = checked(images)
    assert len(good) >= 4
    assert all(good.read(i).ndim == 3 for i in range(len(good)))


def test_labels_of_odd_samples(tmp_path):
    """A byte order mark is no part of a label; numbers and lists of one are labels."""
    values = {"a": "\ufeffowl\n".encode(), "b": b'{"label": 2.0}'}
    values |= {"c": b'{"label": ["newt"]}', "d": b'{"label": {"id": 1}}'}
    members = {f"{name}.png": picture(1) for name in values}
    members |= {f"{name}.{'cls' if name == 'a' else 'json'}": value for name, value in values.items()}
    (tmp_path / "0.tar").write_bytes(pack(members))
    images = open_images(tmp_path)
    assert images.labels is not None
    names = [images.classes[k] if k >= 0 else None for k in images.labels]
    assert names == ["owl", "2.0", "newt", None]


def test_folders_name_parts_and_classes(tmp_path):
    for side, name in itertools.product(("train", "val"), ("cat", "dog")):
        (tmp_path / side).mkdir(exist_ok=True)
        data = pack({f"{name}/{i}.png": picture(i) for i in range(2)})
        (tmp_path / side / f"{name}.tar").write_bytes(data)
    images = open_images(tmp_path)
    assert images.path(0) == "train/cat.tar/cat/0.png"
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1, 1] * 2
    assert images.splits is not None
    assert images.splits.tolist() == ["train"] * 4 + ["test"] * 4


def test_the_list_is_made_once_and_anew_when_a_shard_changed(folder, monkeypatch):
    messages = []
    open_images(folder, tell=messages.append)
    assert messages
    assert "6 shards" in messages[0]
    open_images(folder, tell=lambda text: pytest.fail("listed again"))
    (folder / "005.tar").write_bytes(plain(9) + bytes(1024))
    os.utime(folder / "005.tar")
    assert open_images(folder).path(29) == "005.tar/0049.png"


# ---------------------------------------------------------------- remote
@pytest.mark.parametrize("pattern", ["", "/*.tar", "/{000..005}.tar"])
def test_remote_shards_are_like_local_ones(folder, remote, pattern):
    local, far = open_images(folder), open_images(f"{remote}{pattern}")
    same(far, local)
    assert far.labels is not None
    np.testing.assert_array_equal(far.labels, local.labels)
    assert far.text == local.text
    assert checked(far).skipped == []


def test_few_images_are_asked_for_one_by_one_and_many_are_fetched(remote, tmp_path, monkeypatch):
    first = open_images(remote)
    store = Shards(first._store.shards, str(tmp_path / "elsewhere"))
    images, expected = first.stored(store, first._where), first.read(0)
    monkeypatch.setattr(webdataset_files, "MANY", 2)
    for _ in range(2):
        np.testing.assert_array_equal(images.read(0), expected)
        assert not store.available(0)
    np.testing.assert_array_equal(images.read(0), expected)
    assert store.available(0)
    assert not store.available(1)


def test_copies_are_bounded_and_the_oldest_go(remote, tmp_path, monkeypatch):
    first = open_images(remote)
    store = Shards(first._store.shards, str(tmp_path / "copies"))
    size, free = max(s.size for s in store.shards), {}

    class Usage:
        @property
        def free(self):  # half of it and what is copied is the bound: two shards and a half
            copied = sum(file.stat().st_size for file in (tmp_path / "copies").glob("*.tar"))
            return 5 * size - copied

    monkeypatch.setattr(webdataset_files.shutil, "disk_usage", lambda _: Usage())
    images = first.stored(store, first._where)
    for number, there in ((0, {0}), (1, {0, 1}), (0, {0, 1}), (2, {0, 2}), (3, {2, 3})):
        store.fetch(number)
        os.utime(store.local(number), ns=(free.setdefault("t", 0) + 10**9,) * 2)  # clocks may be coarse
        free["t"] += 10**9
        assert {k for k in range(6) if store.available(k)} == there, number
    assert not list((tmp_path / "copies").glob("*.partial"))
    np.testing.assert_array_equal(images.read(0), first.read(0))  # given up, and asked for
    monkeypatch.setattr(webdataset_files.shutil, "disk_usage", lambda _: type("U", (), {"free": 100}))
    with pytest.raises(ValueError, match=r"005\.tar.*OMMA_CACHE") as error:
        Shards(first._store.shards, str(tmp_path / "full")).fetch(5)
    assert "\n" not in str(error.value)


def test_a_shard_that_went_away(remote, tmp_path):
    first = open_images(remote)
    store = Shards(first._store.shards, str(tmp_path / "copies"))
    fsspec.filesystem("memory").rm("/bucket/001.tar")
    images = first.stored(store, first._where)
    with pytest.raises(BadImage, match=r"001\.tar"):
        images.read(PER)
    with pytest.raises(ValueError, match=r"001\.tar: cannot be fetched") as error:
        store.fetch(1)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- order
def test_an_epoch_visits_all_images_window_by_window():
    blocks = np.repeat(np.arange(10), [3, 9, 1, 4, 4, 6, 2, 8, 5, 7])
    seen = []
    for epoch in range(3):
        order = local_order(4, epoch, blocks, 4)
        assert sorted(order) == list(range(49))
        visited = blocks[order]
        runs = [set(), set(), set()]
        for block in visited.tolist():
            at = next((k for k, run in enumerate(runs) if block in run), None)
            at = next(k for k, run in enumerate(runs) if len(run) < 4) if at is None else at
            runs[at].add(block)
        spans = [np.flatnonzero(np.isin(visited, list(run))) for run in runs]
        assert [len(run) for run in runs] == [4, 4, 2]
        assert all(span[-1] - span[0] + 1 == len(span) for span in spans)  # no window reaches into another
        assert len(set(np.sign(np.diff(visited[spans[0]])).tolist())) > 1  # mixed within
        np.testing.assert_array_equal(order, local_order(4, epoch, blocks, 4))
        seen.append(order.tolist())
    assert seen[0] != seen[1] != seen[2]
    assert seen[0] != local_order(5, 0, blocks, 4).tolist()
    assert sorted(local_order(4, 0, np.zeros(5), 4)) == list(range(5))


PLAN = (Crop(size=8, count=2),)


def take(images, steps, **options):
    with loader.stream(images, PLAN, 4, 5, in_memory=False, **options) as stream:
        return [next(stream) for _ in range(steps)]


def test_the_stream_is_the_same_local_remote_resumed_and_by_workers(folder, remote, tmp_path, monkeypatch):
    monkeypatch.setattr(order, "WINDOW", 2)
    local, first = open_images(folder), open_images(remote)
    straight = take(local, 16, workers=0)  # two epochs and more
    store = Shards(first._store.shards, str(tmp_path / "copies"))
    monkeypatch.setattr(Shards, "_download_image", lambda *_: pytest.fail("not fetched ahead"))
    others = {
        "remote": take(first.stored(store, first._where), 16, workers=0),
        "workers": take(first.stored(store, first._where), 16, workers=2),
        "resumed": [None] * 11 + take(local, 5, workers=0, start_step=11),
    }
    for name, got in others.items():
        for step, (a, b) in enumerate(zip(straight, got, strict=True)):
            if b is not None:
                assert torch.equal(a.crops[0], b.crops[0]), (name, step)
                assert a.read.tolist() == b.read.tolist()
    shares = [take(local, 3, workers=0, rank=r, world=2) for r in range(2)]
    for step in range(3):
        assert torch.equal(torch.cat([share[step].crops[0] for share in shares]), straight[step].crops[0])


def test_shards_are_fetched_ahead_and_no_further():
    blocks, asked, here = np.repeat(np.arange(20), 3), [], set()
    fetched = order.fetched(samples(order.keys(60, 3, 0, blocks=blocks), None), blocks, asked.append)
    plain = order.keys(60, 3, 0, blocks=blocks)
    for _ in range(12):
        key = next(fetched).key
        np.testing.assert_array_equal(key.index, next(plain).index)
        here |= set(blocks[key.index].tolist())
        assert here <= set(asked)
        assert len(set(asked) - here) <= 2 * order.WINDOW + 2
    fetched.close()
    assert len(asked) == len(set(asked))  # once each, within an epoch


def test_a_failed_fetch_ends_the_stream():
    def fails(block):
        raise ValueError("cannot be fetched")

    blocks = np.arange(6)
    with pytest.raises(ValueError, match="cannot be fetched"):
        next(order.fetched(samples(order.keys(6, 2, 0, blocks=blocks), None), blocks, fails))
