"""What cannot be accessed now is left out and never remembered; an exhausted machine is no verdict."""

import builtins
import errno
import io
import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from omma.core.caches import cache_folder
from omma.core.explain import explain
from omma.core.protocols import BadImage, Inaccessible
from omma.data.batches import skip_bad
from omma.data.batches.decoded_cache import Cache
from omma.data.sources import check, decode, readers, webdataset_files
from omma.data.sources.check import checked
from omma.data.sources.collection import open_images
from omma.features import table
from omma.features.extract import FeatureBatch

NAMES = [f"{name}.png" for name in "abcd"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for k, name in enumerate(NAMES):
        Image.new("RGB", (12, 10), (40 * k, 9, 9)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


class Faults:
    """Makes opening a file fail, by the ending of its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[str, Exception] = {}
        real = os.open

        def faulty(path, *rest, **options):
            for ending, error in self.of.items():
                if str(path).endswith(ending):
                    raise error
            return real(path, *rest, **options)

        monkeypatch.setattr(os, "open", faulty)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


ACCESS = [errno.EACCES, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOENT, errno.ENXIO]


@pytest.mark.parametrize("number", ACCESS)
def test_an_error_of_access_is_forgotten(number: int, folder: Path, faults: Faults) -> None:
    faults.of["b.png"] = OSError(number, os.strerror(number))
    for _ in range(2):  # the second time from the caches
        found = checked(open_images(folder))
        assert len(found) == 3
        assert found.skipped == [("b.png", f"not accessible now: {os.strerror(number).lower()}")]
    assert not list(cache_folder().glob("index-*"))  # its channels might have changed the collection's
    faults.of.clear()
    assert len(checked(open_images(folder))) == 4


def test_a_verdict_about_bytes_is_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    os.utime(folder, (1e9, 1e9))
    assert len(checked(open_images(folder))) == 3
    monkeypatch.setattr(check, "verify", lambda *_: pytest.fail("checked again"))
    assert len(checked(open_images(folder))) == 3


def test_what_older_versions_remembered_is_checked_again(folder: Path) -> None:
    images = open_images(folder)
    file = cache_folder() / f"checked-{images.fingerprint}.json"
    file.write_text(json.dumps([[1, "permission denied"]]))
    assert len(checked(images)) == 4


def test_none_accessible_is_not_none_readable(folder: Path, faults: Faults) -> None:
    faults.of[".png"] = OSError(errno.EACCES, "Permission denied")
    with pytest.raises(ValueError, match=r"none of 4 images can be accessed \(a\.png: .*permission"):
        open_images(folder)
    faults.of.clear()
    images = open_images(folder)
    faults.of[".png"] = OSError(errno.EIO, "Input/output error")
    with pytest.raises(ValueError, match="none of 4 images can be accessed"):
        checked(images)
    faults.of.clear()
    assert len(checked(images)) == 4


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENFILE, "x"), OSError(errno.ENOMEM, "")],
)
def test_an_exhausted_machine_ends_the_command(error: OSError, folder: Path, faults: Faults) -> None:
    images = open_images(folder)
    faults.of["b.png"] = error
    with pytest.raises(OSError) as raised:
        checked(images)
    assert raised.value is error
    assert explain(error) is not None
    faults.of.clear()
    assert len(checked(images)) == 4


def test_want_of_memory_ends_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images(folder)
    with monkeypatch.context() as patch:
        patch.setattr(decode, "by_pillow", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            checked(images)
    assert len(checked(images)) == 4


class Cut(Exception):
    """An error as network libraries have them: neither OSError nor ValueError."""


@pytest.mark.parametrize(
    "error", [Cut("payload is not completed"), ImportError("Install s3fs"), ValueError("no")]
)
def test_remote_errors_of_any_kind(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with fsspec.open("memory://access/a.png", "wb") as file:
        file.write(buffer.getvalue())  # pyright: ignore
    (tmp_path / "list.csv").write_text("path\nmemory://access/a.png\nmemory://access/b.png\n")
    real = fsspec.open

    def opened(address, mode):
        if address.endswith("b.png"):
            raise error
        return real(address, mode)

    monkeypatch.setenv("OMMA_REMOTE", "1")
    monkeypatch.setattr(fsspec, "open", opened)
    found = checked(open_images(tmp_path / "list.csv"))
    assert found.skipped == [("memory://access/b.png", f"not accessible now: cannot be fetched: {error}")]


def test_odd_rows_are_single_images(tmp_path: Path) -> None:
    """A pipe without a writer, a name with a zero byte, a protocol that nobody knows."""
    store = readers.Files(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match="not a regular file"):
        store.content("pipe.png", None)
    with pytest.raises(BadImage, match="null"):
        store.content("a\0b.png", None)
    remote = readers.Files(str(tmp_path), remote=True)
    with pytest.raises(Inaccessible, match="cannot be fetched: Protocol not known"):
        remote.content("nobodys-protocol://a/b.png", None)
    with pytest.raises(Inaccessible, match="unless you add --remote"):
        store.content("nobodys-protocol://a/b.png", None)


def test_a_shards_download_that_stays_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset_files, "PAUSE", 0.0)

    def cut():
        raise Cut("incomplete")

    def exhausted():
        raise MemoryError

    with pytest.raises(OSError, match="incomplete"):
        webdataset_files._retry(cut)
    with pytest.raises(MemoryError):
        webdataset_files._retry(exhausted)


def test_a_reader_tries_again_after_a_while(folder: Path, faults: Faults, monkeypatch) -> None:
    images = open_images(folder)
    reader = skip_bad.Reader(images, images.read)
    faults.of["a.png"] = OSError(errno.EIO, "Input/output error")
    assert reader.read(0)[1:] == (1, [0])
    faults.of.clear()
    assert reader.read(0)[1:] == (1, [0])
    monkeypatch.setattr(skip_bad.time, "monotonic", lambda: 1e12)
    assert reader.read(0)[1:] == (0, [])


def test_a_cache_of_decoded_images_has_room_for_those_that_come_back(folder: Path, faults: Faults) -> None:
    images = open_images(folder)
    faults.of["b.png"] = OSError(errno.EIO, "Input/output error")
    Cache(images, 8).write()
    with pytest.raises(Inaccessible, match="input/output error"):
        Cache(images, 8).images.read(1)
    before = Cache(images, 8).store.file(0).stat().st_ino
    Cache(images, 8).write()
    assert Cache(images, 8).store.file(0).stat().st_ino == before  # still not there: the part stays
    faults.of.clear()
    Cache(images, 8).write()
    assert Cache(images, 8).images.read(1).shape == (8, 10, 3)


def test_shards_of_a_table_are_written_again(folder: Path, tmp_path: Path) -> None:
    images = open_images(folder)
    written = table.ShardedTable(tmp_path / "t.parquet", images, table.table_schema(2, False, {}), 2, "key")

    def embed(bad):
        def features(chosen):
            for first in range(0, len(chosen), 2):
                yield FeatureBatch(np.zeros((1, 2), np.float32), np.array([first]), [(f"{first}", bad)])

        return features

    with written.locked():
        list(written.fill([0], embed(str(Inaccessible("timed out")))))
        list(written.fill([1], embed("truncated")))
        assert written.missing() == []
    left = tmp_path / ".t.parquet.1-ab.partial"  # by a process that was killed while joining
    left.touch()
    with written.locked():
        assert written.missing() == [0]
        assert not left.exists()


def test_features_without_what_cannot_be_accessed_are_not_kept(
    folder: Path, faults: Faults, tmp_path
) -> None:
    from omma import backbones
    from omma.data.batches.preprocess import measure
    from omma.features.extract import extract

    images = open_images(folder)
    encoder = backbones.build(name="vit-n/4", image_size=8, channels=3)

    def features():
        kept = {"cache": tmp_path / "features", "model_digest": "x"}
        return len(extract(encoder, images, measure(images, 8), **kept).indices)

    faults.of["b.png"] = OSError(errno.EIO, "Input/output error")
    assert features() == 3
    faults.of.clear()
    assert features() == 4


def test_the_open_function_is_left_alone() -> None:
    assert builtins.open is io.open
