"""Everything in a folder or container is an image or is listed with the reason, whatever is damaged."""

import io
import os
import socket
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omma.core.protocols import BadImage
from omma.data.sources.check import checked
from omma.data.sources.collection import open_images
from omma.data.sources.listing import list_folder
from omma.data.sources.members import clean, tar_members, zip_members


def picture(k: int) -> bytes:
    Image.new("RGB", (4, 4), (k, 0, 0)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def tar(file: Path, members: list, form: int = tarfile.GNU_FORMAT) -> Path:
    """Members are names of pictures, (name, bytes) or headers."""
    with tarfile.open(file, "w", format=form) as archive:
        for k, each in enumerate(members):
            name, data = each if isinstance(each, tuple) else (each, picture(k))
            info = name if isinstance(name, tarfile.TarInfo) else member(name, size=len(data))
            archive.addfile(info, io.BytesIO(data))
    return file


def names(images) -> list[str]:
    return [images.path(i) for i in range(len(images))]


def red(images) -> list[int]:
    return [int(images.read(i)[0, 0, 0]) for i in range(len(images))]


# ---------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./a/b.png", "a/b.png"),
        ("a//b.png", "a/b.png"),
        ("/a/b.png", "a/b.png"),
        ("../../a/../b.png", "b.png"),
        ("train\\cat\\1.png", "train/cat/1.png"),
        ("C:\\photos\\1.png", "photos/1.png"),
        ("a/b:/1.png", "a/b:/1.png"),
    ],
)
def test_names_of_members(name, expected):
    assert clean(name) == expected


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_backslashes_separate_folders(tmp_path, kind):
    files = [
        f"{part}\\{name}\\{k}.png" for part in ("train", "test") for name in ("cat", "dog") for k in "12"
    ]
    file = tmp_path / f"x.{kind}"
    if kind == "tar":
        tar(file, files)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            for k, name in enumerate(files):
                archive.writestr(name, picture(k))
    images = open_images(file)
    assert names(images) == sorted(name.replace("\\", "/") for name in files)
    assert images.classes == ("cat", "dog")
    assert set(images.splits) == {"train", "test"}  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_of_members_of_one_name_the_last_counts(tmp_path, kind):
    file = tmp_path / f"x.{kind}"
    if kind == "tar":
        tar(file, ["a.png", "b.png", "./a.png"])
    else:
        with zipfile.ZipFile(file, "w") as archive:
            for k, name in enumerate(["a.png", "b.png", "/a.png"]):
                archive.writestr(name, picture(k))
    images = open_images(file)
    assert (names(images), red(images)) == (["a.png", "b.png"], [2, 1])
    assert images.skipped == [("a.png", "a later member has this name")]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path, form):
    long = "/".join(["a" * 70] * 2) + "/\xe9.png"
    images = open_images(tar(tmp_path / "x.tar", [long, "b.png"], form))
    assert names(images) == [long, "b.png"][::-1] or names(images) == [long, "b.png"]
    assert sorted(red(images)) == [0, 1]
    assert images.skipped == []


# ---------------------------------------------------------------- tars
def test_links_of_a_tar_lead_to_their_targets(tmp_path):
    members = [
        "a/1.png",
        "b/2.png",
        (member("c/hard.png", tarfile.LNKTYPE, "a/1.png"), b""),
        (member("c/soft.png", tarfile.SYMTYPE, "../b/2.png"), b""),
        (member("c/chain.png", tarfile.SYMTYPE, "soft.png"), b""),
        (member("c/lost.png", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (member("c/loop.png", tarfile.SYMTYPE, "loop.png"), b""),
        (member("c/folder", tarfile.SYMTYPE, "../a"), b""),
        (member("c/pipe.png", tarfile.FIFOTYPE), b""),
        (member("c/zero.png", tarfile.CHRTYPE), b""),
        (member("c/odd.png", b"Q"), b""),
    ]
    images = open_images(tar(tmp_path / "x.tar", members))
    assert dict(zip(names(images), red(images), strict=True)) == {
        "a/1.png": 0, "b/2.png": 1, "c/hard.png": 0, "c/soft.png": 1, "c/chain.png": 1,
    }  # fmt: skip
    assert dict(images.skipped) == {
        "c/lost.png": "a link to etc/passwd, which is no file of the archive",
        "c/loop.png": "a link to c/loop.png, which is no file of the archive",
        "c/folder": "a link to a, which is no file of the archive",
        "c/pipe.png": "not a regular file",
        "c/zero.png": "not a regular file",
        "c/odd.png": "of unknown type b'Q'",
    }


def headers(file: Path) -> list[int]:
    with tarfile.open(file) as archive:
        return [info.offset for info in archive]


@pytest.mark.parametrize("at", [0, 3, 11])
@pytest.mark.parametrize("shards", [False, True])
def test_a_damaged_header_costs_its_member_alone_and_is_said(tmp_path, at, shards):
    file = tar(tmp_path / "x.tar", [f"{k:02}.png" for k in range(12)])
    data, start = bytearray(file.read_bytes()), headers(file)[at]
    data[start + 140] ^= 4
    file.write_bytes(data)
    images = open_images(tmp_path if shards else file)
    prefix = "x.tar/" if shards else ""
    assert names(images) == [f"{prefix}{k:02}.png" for k in range(12) if k != at]
    ((name, reason),) = images.skipped
    assert name == "x.tar"
    assert f"bytes {start:,} to" in reason


@pytest.mark.parametrize("shards", [False, True])
def test_a_tar_that_ends_early_says_so(tmp_path, shards):
    file = tar(tmp_path / "x.tar", [f"{k}.png" for k in range(6)])
    data, starts = file.read_bytes(), headers(file)
    for end, count, reason in (
        (starts[4], 4, "ends before its end-of-archive mark"),
        (starts[4] + 100, 4, "ends before its end-of-archive mark"),
        (starts[4] + 520, 4, "ends within a member"),
    ):
        file.write_bytes(data[:end])
        images = open_images(tmp_path if shards else file)
        assert len(images) == count
        assert any(name == "x.tar" and why.startswith(reason) for name, why in images.skipped), images.skipped
    assert any(name.endswith("4.png") and why == "cut off" for name, why in images.skipped)


def test_tars_one_behind_the_other_are_read_both(tmp_path):
    first, second = tar(tmp_path / "a.tar", ["a.png"]), tar(tmp_path / "b.tar", ["b.png", "c.png"])
    (tmp_path / "both.tar").write_bytes(first.read_bytes() + second.read_bytes())
    images = open_images(tmp_path / "both.tar")
    assert (names(images), images.skipped) == (["a.png", "b.png", "c.png"], [])


def checksummed(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    "size", [b"\x80" + bytes(7) + b"\x7f\xff\xff\xff", b"\xff" * 11 + b"\0", b"77777777777\0"]
)
@pytest.mark.parametrize("kind", [b"0", b"L", b"x", b"g", b"S"])
def test_lying_sizes_of_a_header(tmp_path, kind, size):
    file = tar(tmp_path / "x.tar", ["a.png", "b.png", "c.png"])
    data, start = bytearray(file.read_bytes()), headers(file)[1]
    header = data[start : start + 512]
    header[124:136], header[156:157] = size, kind
    data[start : start + 512] = checksummed(header)
    file.write_bytes(data)
    images = open_images(file)
    assert {"a.png", "c.png"} <= set(names(images))
    assert images.skipped


def test_headers_within_headers_end(tmp_path):
    file = tmp_path / "x.tar"
    chain = tarfile.TarInfo("x")
    chain.type, chain.size = tarfile.GNUTYPE_LONGNAME, 10
    block = chain.tobuf(tarfile.GNU_FORMAT) + b"name".ljust(512, b"\0")
    file.write_bytes(tar(file, ["a.png"]).read_bytes()[:1024] + block * 3000)
    members, damages = tar_members(str(file))
    assert [each.name for each in members] == ["a.png"]
    assert damages == ["headers within headers: what follows is not read"]


# ---------------------------------------------------------------- zips
def test_zip64_and_bytes_before_a_zip(tmp_path):
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive, archive.open("a.png", "w", force_zip64=True) as stream:
        stream.write(picture(7))
    file.write_bytes(b"#!/bin/sh\n" + file.read_bytes())
    assert red(open_images(file)) == [7]


def test_members_of_a_zip_that_share_their_bytes_are_listed(tmp_path):
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        for k in range(3):
            archive.writestr(f"{k}.png", picture(k))
    data = bytearray(file.read_bytes())
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    data[second + 42 : second + 46] = struct.pack("<I", 10)
    file.write_bytes(data)
    members = list(zip_members(str(file)))
    assert [each.reason for each in members] == ["", "overlaps another member", ""]


def test_what_unpacks_to_much_more_is_listed(tmp_path):
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", picture(0))
        archive.writestr("bomb.png", bytes(80_000_000))
        archive.writestr("labels.csv", bytes(80_000_000))
    images = open_images(file)
    assert names(images) == ["a.png"]
    assert images.skipped == [("bomb.png", "unpacks to 80 MB"), ("labels.csv", "unpacks to 80 MB")]


def test_a_member_without_a_name_is_listed(tmp_path):
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("..", picture(1))
        archive.writestr("a.png", picture(0))
    images = open_images(file)
    assert (names(images), images.skipped) == (["a.png"], [("", "it has no name")])


# ---------------------------------------------------------------- folders
def links_or_skip(link: Path, target: str) -> None:
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("no symbolic links here")


def test_an_entry_that_cannot_be_read_costs_no_other(tmp_path):
    for k in range(9):
        (tmp_path / f"{k}.png").write_bytes(picture(k))
    links_or_skip(tmp_path / "loop", "loop")
    (tmp_path / "4a.png").symlink_to("4b.png")
    (tmp_path / "4b.png").symlink_to("4a.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "again").symlink_to(".")
    images = open_images(tmp_path)
    assert red(images) == list(range(9))
    skipped = dict(images.skipped)
    assert sorted(skipped) == ["4a.png", "4b.png", "again/", "gone.png", "loop"]
    assert skipped["gone.png"] == "a link to nothing"
    assert skipped["again/"] == "a link to a folder that is listed already"
    assert "symbolic links" in skipped["loop"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_what_is_no_regular_file_is_listed_and_never_opened(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(picture(1))
    for name in ("pipe.png", "pipe", "pipe.tar"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("plug.png")
        expected = dict.fromkeys(
            ("pipe", "pipe.png", "pipe.tar", "plug.png", "zero.png"), "not a regular file"
        )
        for source in (tmp_path, f"{tmp_path}/*"):
            images = checked(open_images(source))
            assert (names(images), dict(images.skipped)) == (["a.png"], expected)
        for source in ("pipe.png", "pipe.tar", "plug.png", "*.tar", "{pipe,pipe}.tar"):
            with pytest.raises(ValueError, match="not a regular file"):
                open_images(source)


def test_a_folder_whose_name_is_not_utf8_costs_no_other(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(3))
    odd = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(odd)
    except OSError:
        pytest.skip("names must be UTF-8 here")
    (Path(os.fsdecode(odd)) / "b.png").write_bytes(picture(4))
    images = open_images(tmp_path)
    assert red(images) == [3]
    assert images.skipped == [("caf\\xe9/", "its name is not valid UTF-8; rename the folder")]


@pytest.mark.parametrize("shards", [False, True])
def test_a_tar_with_a_folder_whose_name_is_not_utf8(tmp_path, shards):
    file = tar(tmp_path / "x.tar", ["a.png", "caf\udce9/b.png"])
    images = open_images(tmp_path if shards else file)
    assert red(images) == [0]
    prefix = "x.tar/" if shards else ""
    assert images.skipped == [(f"{prefix}caf\\xe9/b.png", "its name is not valid UTF-8")]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="no folder is closed to this user")
def test_a_folder_without_permission_is_listed(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(3))
    (tmp_path / "closed").mkdir(mode=0)
    listing = list_folder(str(tmp_path))
    assert len(listing.paths) == 1
    ((name, reason),) = listing.skipped
    assert name == "closed/"
    assert "permission denied" in reason


# ---------------------------------------------------------------- shards
def test_dots_in_the_names_of_samples_lose_no_image(tmp_path):
    members: list = [name for k in range(10) for name in (f"cat.{k}.png", f"dog.{k}.png")]
    members += [("cat.cls", b"7"), ("dog.cls", b"9"), ("dog.3.cls", b"11"), ("dog.4.txt", b"four")]
    members += ["a.png", "a.mask.png", ("b.cls", b"1"), ("c.1.txt", b"of none")]
    tar(tmp_path / "0.tar", members)
    images = open_images(tmp_path)
    found = {images.path(i).removeprefix("0.tar/"): i for i in range(len(images))}
    assert set(found) == {*members[:20], "a.png"}
    assert images.labels is not None
    label = {name: images.classes[images.labels[i]] for name, i in found.items() if images.labels[i] >= 0}
    expected = {name: "7" if name.startswith("cat") else "9" for name in members[:20]}
    assert label == expected | {"dog.3.png": "11"}
    assert images.text is not None
    assert images.text[found["dog.4.png"]].as_py() == ["four"]
    assert dict(images.skipped) == {
        "0.tar/a.mask.png": "a further image of its sample",
        "0.tar/b.cls": "of no image",
        "0.tar/c.1.txt": "of no image",
    }
    np.testing.assert_array_equal(red(images)[:20], [members.index(name) for name in list(found)[:20]])


def test_links_in_shards(tmp_path):
    tar(tmp_path / "0.tar", ["a.png", (member("b.png", tarfile.LNKTYPE, "a.png"), b""), ("b.cls", b"1")])
    assert red(open_images(tmp_path)) == [0, 0]


# ---------------------------------------------------------------- a file that is cut while it is open
def test_what_is_lost_when_an_open_container_is_cut_is_listed_and_the_rest_is_read(tmp_path):
    """Pages of a map behind the new end would end the interpreter with SIGBUS."""
    photo = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(photo).save(file := io.BytesIO(), "PNG")
    members = [(f"{k}.png", file.getvalue()) for k in range(3)]
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    np.save(tmp_path / "photos.npy", np.stack([photo] * 3))
    for source in (tar(tmp_path / "photos.tar", members), tmp_path / "photos.zip", tmp_path / "photos.npy"):
        images = open_images(source)
        assert np.array_equal(images.read(0), photo)
        os.truncate(source, 6000)  # within the second photo
        for i in (1, 2):
            with pytest.raises(BadImage, match=r"wrong length|damaged|cut"):
                images.read(i)
        if source.suffix != ".npy":
            assert np.array_equal(images.read(0), photo)
