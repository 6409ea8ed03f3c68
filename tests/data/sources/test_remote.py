"""Addresses in a table are fetched only if the user asks for it, within bounds; what fails is that row's."""

import io
import time

import fsspec
import numpy as np
import pytest
from PIL import Image

from omma.core.protocols import BadImage, Inaccessible
from omma.data.sources import remote
from omma.data.sources.check import checked
from omma.data.sources.collection import open_images
from omma.data.sources.readers import Files


@pytest.fixture
def listing(tmp_path, monkeypatch):
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path / "cache"))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file := io.BytesIO(), "PNG")
    (tmp_path / "here.png").write_bytes(file.getvalue())
    with fsspec.open("memory://pictures/there.png", "wb") as there:
        there.write(file.getvalue())  # pyright: ignore[reportAttributeAccessIssue]
    rows = [
        "here.png",
        f"file://{tmp_path}/here.png",
        "memory://pictures/there.png",
        "memory://pictures/gone.png",
    ]
    rows += ["nothing://x", "http://127.0.0.1:9/x.png", "memory://::x"]
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(rows) + "\n")
    return tmp_path / "list.csv"


def paths(images):
    return [images.path(i).rpartition("/")[2] for i in range(len(images))]


def test_nothing_is_fetched_unasked(listing, monkeypatch):
    monkeypatch.delenv("OMMA_REMOTE", raising=False)
    monkeypatch.setattr(remote, "fetch", lambda *_: pytest.fail("fetched"))
    images = checked(open_images(listing))
    assert paths(images) == ["here.png", "here.png"]
    assert len(images.skipped) == 5
    assert {reason for _, reason in images.skipped} == {remote.REFUSED}
    with pytest.raises(Inaccessible, match="--remote"):
        Files("").content("memory://pictures/there.png", None)


def test_what_is_asked_for_is_fetched_and_one_row_ends_nothing(listing, monkeypatch):
    monkeypatch.setenv("OMMA_REMOTE", "1")
    images = checked(open_images(listing))
    assert paths(images) == ["here.png", "here.png", "there.png"]
    assert images.read(2).shape == (8, 8, 3)
    assert len(images.skipped) == 4
    assert all("cannot be fetched" in reason for _, reason in images.skipped)


def test_only_addresses(tmp_path, monkeypatch):
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OMMA_REMOTE", raising=False)
    (tmp_path / "list.csv").write_text("path\nhttps://x.org/1.png\n")
    with pytest.raises(ValueError, match=r"no images in it .*add --remote"):
        open_images(tmp_path / "list.csv")


def test_bounds_of_size_and_time(monkeypatch):
    with fsspec.open("memory://large", "wb") as file:
        file.write(b"x" * 3_000_000)  # pyright: ignore[reportAttributeAccessIssue]
    assert len(remote.fetch("memory://large", 3_000_000)) == 3_000_000
    with pytest.raises(BadImage, match="over 0 GB"):
        remote.fetch("memory://large", 2_999_999)
    monkeypatch.setattr(remote, "SECONDS", 0.2)
    monkeypatch.setattr(remote, "_read", lambda *_: time.sleep(1))
    start = time.monotonic()
    with pytest.raises(Inaccessible, match="not fetched within"):
        remote.fetch("memory://large", 10)
    assert time.monotonic() - start < 0.9


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.png", False),
        ("/a/b.png", False),
        ("file:///a.png", False),
        ("s3://b/k", True),
        ("zip://a::http://b", True),
    ],
)
def test_what_is_remote(path, expected):
    assert remote.is_remote(path) == expected
