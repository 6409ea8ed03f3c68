"""Any source becomes an index with its paths, labels and splits; bad files are listed and end nothing."""

import csv
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from omma.core.protocols import BadImage, Images
from omma.data.sources import check, listing
from omma.data.sources.check import checked
from omma.data.sources.collection import ArrayImages, open_images
from omma.data.sources.readers import as_images
from omma.data.sources.skipped import write_skipped

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> bytes:
    values = RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(file := io.BytesIO(), kind)
    return file.getvalue()


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def paths(images) -> list[str]:
    return [images.path(i) for i in range(len(images))]


CLASSES = {
    f"{side}/{name}/{k}.jpg": picture() for side in ("train", "val") for name in "ab" for k in range(2)
}
MESSY = {
    "one.jpg": picture(),
    "two.PNG": picture("PNG"),
    "lying.svg": picture(),  # a JPEG
    "no_extension": picture("GIF"),
    "deep/er/three.webp": picture("WEBP"),
    ".hidden.jpg": picture(),
    ".git/x.jpg": picture(),
    "__MACOSX/one.jpg": b"resource fork",
    "notes.txt": b"hello",
    "drawing.svg": b"<svg/>",
}
MESSY_PATHS = ["lying.svg", "no_extension", "one.jpg", "two.PNG", "deep/er/three.webp"]
MESSY_SKIPPED = [
    ("drawing.svg", "SVG, which omma does not read: convert it to JPEG or PNG"),
    ("notes.txt", "not an image"),
]


def packed(tmp_path: Path, kind: str, files: dict[str, bytes]) -> Path:
    """The same files as a folder or an archive."""
    if kind == "folder":
        return fill(tmp_path / "images", files)
    file = tmp_path / f"images.{kind.partition('-')[0]}"
    if kind == "tar":
        with tarfile.open(file, "w") as tar:
            for name, data in files.items():
                member = tarfile.TarInfo("./" + name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    else:
        method = zipfile.ZIP_DEFLATED if kind == "zip-deflated" else zipfile.ZIP_STORED
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    return file


KINDS = ("folder", "zip", "zip-deflated", "tar")


# ---------------------------------------------------------------- folders and archives
@pytest.mark.parametrize("kind", KINDS)
def test_messy_source(tmp_path, kind):
    source = packed(tmp_path, kind, MESSY)
    for _ in range(2):  # listed, then perhaps remembered
        images = open_images(source)
        assert isinstance(images, Images)
        assert paths(images) == MESSY_PATHS
        assert images.skipped == MESSY_SKIPPED
        assert (images.channels, images.labels, images.splits) == (3, None, None)
        assert all(images.read(i).shape == (10, 12, 3) for i in range(len(images)))
        assert "5 images, 3 channels, 2 skipped" in images.describe()


@pytest.mark.parametrize("kind", KINDS)
def test_class_folders_and_splits(tmp_path, kind):
    source = packed(tmp_path, kind, CLASSES)
    for _ in range(2):
        images = open_images(source)
        assert images.classes == ("a", "b")
        assert images.labels is not None
        assert images.labels.dtype == np.int64
        assert images.labels.tolist() == [0, 0, 1, 1] * 2
        assert images.splits is not None
        assert images.splits.tolist() == ["train"] * 4 + ["test"] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_labels_csv(tmp_path, kind):
    table = "path,split,label,name\nx/2.jpg,test,10,ten\nx/1.jpg,train,9,nine\n"
    table += "y/3.jpg,,,\nabsent.jpg,train,9,nine\n"
    files = {"x/1.jpg": picture(), "x/2.jpg": picture(), "y/3.jpg": picture(), "y/4.jpg": picture()}
    images = open_images(packed(tmp_path, kind, files | {"labels.csv": table.encode()}))
    assert paths(images) == ["x/1.jpg", "x/2.jpg", "y/3.jpg", "y/4.jpg"]
    assert images.classes == ("nine", "ten")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, -1, -1]
    assert images.splits is not None
    assert images.splits.tolist() == ["train", "test", "train", "train"]
    assert images.skipped == []


def test_glob_and_single_file(tmp_path):
    fill(tmp_path, CLASSES | {"top.jpg": picture()})
    images = open_images(f"{tmp_path}/train/**/*.jpg")
    assert paths(images) == ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"]
    assert images.classes == ("a", "b")
    assert images.read(3).shape == (10, 12, 3)
    assert paths(open_images(tmp_path / "top.jpg")) == ["top.jpg"]


def test_relative_source_survives_change_of_directory(tmp_path, monkeypatch):
    fill(tmp_path / "here", CLASSES)
    monkeypatch.chdir(tmp_path)
    images = open_images("here")
    monkeypatch.chdir("/")
    assert images.read(0).shape == (10, 12, 3)


def test_links_in_circles(tmp_path):
    fill(tmp_path / "a", {"x.jpg": picture()})
    try:
        (tmp_path / "a" / "again").symlink_to(tmp_path)
    except OSError:
        pytest.skip("no symbolic links here")
    assert paths(open_images(tmp_path)) == ["a/x.jpg"]


# ---------------------------------------------------------------- manifests
@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_manifest(tmp_path, kind):
    fill(tmp_path / "pictures", {"a.jpg": picture(), "b.jpg": picture(), "c.jpg": picture()})
    fill(tmp_path / "elsewhere", {"d.jpg": picture()})
    columns = {
        "path": [
            "pictures/b.jpg",
            str(tmp_path / "elsewhere/d.jpg"),
            f"file://{tmp_path}/pictures/a.jpg",
            None,
        ],
        "label": ["owl", "newt", None, "owl"],
        "split": ["train", "val", "train", "train"],
        "text": ["an owl", "a newt, resting", None, None],
    }
    file = tmp_path / f"list.{kind}"
    table = pa.table(columns)
    if kind == "parquet":
        pq.write_table(table, file)
    elif kind == "csv":
        with open(file, "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerows([list(columns), *zip(*columns.values())])
    else:
        file.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
    images = open_images(file)
    assert len(images) == 3
    assert images.classes == ("newt", "owl")
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, -1]
    assert images.splits is not None
    assert images.splits.tolist() == ["train", "test", "train"]
    assert images.text is not None
    assert images.text[1].as_py() == ["a newt, resting"]
    assert images.skipped == [("row 4", "no path")]
    assert all(images.read(i).shape == (10, 12, 3) for i in range(3))


def test_missing_file_of_a_manifest_is_a_bad_image(tmp_path):
    fill(tmp_path, {"a.jpg": picture(), "list.csv": b"path\na.jpg\ngone.jpg\n"})
    images = checked(open_images(tmp_path / "list.csv"))
    assert paths(images) == ["a.jpg"]
    assert images.skipped == [("gone.jpg", "not accessible now: no such file or directory")]


# ---------------------------------------------------------------- arrays
@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 40, 50, 3), (5, 40, 50, 3)),
        ((5, 3, 40, 50), (5, 40, 50, 3)),
        ((5, 101, 100, 13), (5, 101, 100, 13)),
        ((6, 512, 512), (1, 512, 512, 6)),
        ((512, 512, 6), (1, 512, 512, 6)),
        ((100, 28, 28), (100, 28, 28, 1)),
        ((10, 28, 28), (10, 28, 28, 1)),
        ((100, 64, 64), (100, 64, 64, 1)),
    ],
)
def test_shapes(shape, expected):
    assert as_images(np.zeros(shape, np.uint8)).shape == expected


@pytest.mark.parametrize("shape", [(5,), (5, 784), (1, 2, 3, 4, 5)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="not a set of images"):
        as_images(np.zeros(shape))


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_array_files(tmp_path, kind):
    values = RNG.integers(0, 65536, (7, 20, 30, 4), dtype=np.uint16)
    file = tmp_path / f"x.{kind}"
    if kind == "npz":
        np.savez(file, x=values, y=np.arange(7) % 2, thumbnail=np.zeros((2, 5, 5)))
    else:
        np.save(file, values)
    images = pickle.loads(pickle.dumps(open_images(file)))
    assert (len(images), images.channels, images.path(3)) == (7, 4, f"x.{kind}[3]")
    assert images.read(3).dtype == np.uint16
    np.testing.assert_array_equal(images.read(3), values[3])
    if kind == "npz":
        assert images.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    np.testing.assert_array_equal(images.subset(np.array([5, 2])).read(0), values[5])


def test_npz_with_train_and_test(tmp_path):
    parts = {"x_train": np.zeros((4, 28, 28), np.uint8), "y_train": np.array([0, 1, 0, 1])}
    parts |= {"x_test": np.ones((2, 28, 28), np.uint8), "y_test": np.array([1, 0])}
    np.savez(tmp_path / "mnist.npz", **parts)
    images = open_images(tmp_path / "mnist.npz")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 0, 1, 1, 0]
    assert images.splits is not None
    assert images.splits.tolist() == ["train"] * 4 + ["test"] * 2
    assert images.read(5).max() == 1


def test_idx(tmp_path):
    values = RNG.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    with gzip.open(tmp_path / "t-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">HBBIII", 0, 8, 3, 3, 28, 28) + values.tobytes())
    with gzip.open(tmp_path / "t-labels-idx1-ubyte.gz", "wb") as file:
        file.write(struct.pack(">HBBI", 0, 8, 1, 3) + bytes([2, 0, 2]))
    images = open_images(tmp_path / "t-images-idx3-ubyte.gz")
    assert (images.channels, images.classes) == (1, ("0", "2"))
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(images.read(2)[..., 0], values[2])


def test_array_in_memory():
    values = RNG.normal(size=(6, 8, 8, 2)).astype(np.float32)
    values[4, 0, 0, 0] = np.nan
    images = ArrayImages(values, labels=np.array(list("abcabc")), splits=np.array(["train", "test"] * 3))
    assert isinstance(images, Images)
    assert images.classes == ("a", "b", "c")
    good = checked(images)
    assert len(good) == 5
    assert good.skipped == [("array[4]", "NaN or infinite values")]
    assert images.fingerprint == ArrayImages(values, images.labels, images.classes, images.splits).fingerprint
    read = images.read(0)
    read[:] = 0  # a copy, not a view of the data
    np.testing.assert_array_equal(images.read(0), values[0])
    with pytest.raises(ValueError, match="5 labels for 6 images"):
        ArrayImages(values, labels=np.zeros(5))


# ---------------------------------------------------------------- channels
@pytest.mark.parametrize(("modes", "channels"), [("L", 1), (["L", "RGB"], 3), (["RGB"], 3)])
def test_channels(tmp_path, modes, channels):
    images = open_images(fill(tmp_path, {f"{k}.png": picture("PNG", mode) for k, mode in enumerate(modes)}))
    assert images.channels == channels
    assert all(images.read(i).shape[-1] == channels for i in range(len(images)))


# ---------------------------------------------------------------- hostile
@pytest.mark.parametrize("kind", KINDS)
def test_bad_files_are_listed(tmp_path, kind):
    bad = {
        "b/empty.jpg": b"",
        "b/text.jpg": b"hello",
        "b/cut.jpg": picture(size=(99, 99))[:900],
        "b/cut.png": picture("PNG", size=(99, 99))[:900],
    }
    images = open_images(packed(tmp_path, kind, CLASSES | bad))
    readable = checked(images)
    assert paths(readable) == sorted(CLASSES)
    assert [path for path, _ in readable.skipped] == sorted(bad)
    assert len(images) == len(CLASSES) + 4
    write_skipped(tmp_path / "skipped.csv", readable.skipped)
    with open(tmp_path / "skipped.csv", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["path", "reason"]
    assert ["b/empty.jpg", "empty file"] in rows


def test_check_is_remembered_and_sees_a_repair(tmp_path, monkeypatch):
    fill(tmp_path, {"a.jpg": picture(), "b.jpg": b"damaged"})
    images = open_images(tmp_path)
    assert len(checked(images)) == 1
    monkeypatch.setattr(check, "verify", lambda *_: pytest.fail("checked again"))
    assert len(checked(open_images(tmp_path))) == 1
    monkeypatch.undo()
    (tmp_path / "b.jpg").write_bytes(picture())
    assert len(checked(open_images(tmp_path))) == 2


def test_none_left(tmp_path):
    with pytest.raises(ValueError, match=r"none of 2 images can be read \(a.jpg: empty file; b"):
        open_images(fill(tmp_path / "bad", {"a.jpg": b"", "b.jpg": b"x"}))


def test_zip_members_that_explode_or_are_damaged(tmp_path):
    file = packed(tmp_path, "zip-deflated", {"a.jpg": picture(), "b.jpg": picture()})
    data = file.read_bytes()
    at = data.rindex(b"PK\1\2")  # b.jpg in the directory: its inflated size
    file.write_bytes(data[: at + 24] + struct.pack("<I", 2**31) + data[at + 28 :])
    images = open_images(file)
    assert images.skipped == [("b.jpg", "unpacks to 2.1 GB")]
    at = data.index(b"a.jpg") + 40  # in the compressed bytes
    file.write_bytes(data[:at] + b"\0\0\0\0" + data[at + 4 :])
    assert [path for path, _ in checked(open_images(file)).skipped] == ["a.jpg"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("absent", None, "not found"),
        ("empty", {}, "no images in it"),
        ("texts", {"a.txt": b"x"}, r"no images in it \(1 other file; a.txt: not an image\)"),
        ("x.tar.gz", b"", "unpack"),
        ("x.zip", b"not a zip", "not a readable zip"),
        ("x.tar", b"not a tar" * 99, "not a readable tar"),
        ("x.csv", b"file\na.jpg\n", "name the column of image paths `path`"),
        ("x.csv", b"", "not a readable table"),
        ("x.parquet", b"no", "not a readable table"),
        ("x.npz", b"no", "cannot be read"),
        ("x.npy", b"no", "cannot be read"),
        ("x.gz", gzip.compress(b"no", mtime=0), "not an IDX file"),
        ("x.bin", b"what is this", "neither an image, sound or video nor"),
        ("*.nothing", None, "no images in it"),
        ("s3://bucket/x.csv", None, "manifest"),
        ("memory://bucket/x", None, "manifest"),
    ],
)
def test_errors_in_one_line(tmp_path, name, data, message):
    source = name if "://" in name else tmp_path / name
    if isinstance(data, bytes):
        Path(source).write_bytes(data)
    elif data is not None:
        fill(Path(source), data)
        Path(source).mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=message) as caught:
        open_images(source)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


# ---------------------------------------------------------------- cache, memory, workers
def settle(root: Path) -> None:
    """Make folders look older than the moment of listing."""
    past = time.time() - 100
    for folder, _, _ in os.walk(root):
        os.utime(folder, (past, past))


def test_unchanged_folder_is_not_listed_again(tmp_path, monkeypatch):
    fill(tmp_path, CLASSES)
    settle(tmp_path)
    first = open_images(tmp_path)
    monkeypatch.setattr(listing, "list_folder", lambda root: pytest.fail("listed again"))
    second = open_images(tmp_path)
    assert paths(second) == paths(first)
    assert second.fingerprint == first.fingerprint
    assert second.classes == first.classes
    monkeypatch.undo()
    (tmp_path / "val" / "b" / "new.jpg").write_bytes(picture())
    third = open_images(tmp_path)
    assert len(third) == len(first) + 1
    assert third.fingerprint != first.fingerprint


def test_file_added_right_after_listing_is_seen(tmp_path):
    """Within the resolution of modification times."""
    fill(tmp_path, CLASSES)
    for k in range(5):
        assert len(open_images(tmp_path)) == len(CLASSES) + k
        (tmp_path / "train" / "a" / f"new{k}.jpg").write_bytes(picture())


def test_changed_archive_is_listed_again(tmp_path, monkeypatch):
    file = packed(tmp_path, "zip", CLASSES)
    assert len(open_images(file)) == 8
    with monkeypatch.context() as patch:
        patch.setattr(listing, "list_zip", lambda file: pytest.fail("listed again"))
        assert len(open_images(file)) == 8
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("val/b/new.jpg", picture())
    assert len(open_images(file)) == 9


def test_damaged_or_unwritable_cache_is_done_without(tmp_path):
    cache = tmp_path / "cache"
    file = packed(tmp_path, "zip", CLASSES)
    open_images(file, cache)
    for written in cache.iterdir():
        written.write_bytes(b"nonsense")
    assert len(open_images(file, cache)) == 8
    (tmp_path / "a_file").write_bytes(b"")
    assert len(checked(open_images(file, tmp_path / "a_file"), tmp_path / "a_file")) == 8


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_pickle_is_small_and_independent(tmp_path, kind):
    data = picture()
    files = {f"train/class_{k % 20:02}/a_name_of_usual_length_{k:06}.jpg": data for k in range(1000)}
    images = open_images(packed(tmp_path, kind, files))
    images.read(0)  # opens the archive, which must not be pickled
    frozen = pickle.dumps(images)
    assert len(frozen) < 200 * 1000
    thawed = pickle.loads(frozen)
    np.testing.assert_array_equal(thawed.read(999), images.read(999))
    assert len(pickle.dumps(images.subset(np.arange(10)))) < 200 * 10 + 2000


def test_subset_keeps_columns_together(tmp_path):
    images = open_images(fill(tmp_path, CLASSES))
    part = images.subset(np.array([7, 0, 2]))
    assert paths(part) == ["val/b/1.jpg", "train/a/0.jpg", "train/b/0.jpg"]
    assert part.labels is not None
    assert part.labels.tolist() == [1, 0, 1]
    assert part.splits is not None
    assert part.splits.tolist() == ["test", "train", "train"]
    assert part.fingerprint != images.fingerprint
    assert len(images.subset(np.array([]))) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_reading_from_threads(tmp_path, kind):
    images = open_images(packed(tmp_path, kind, CLASSES))
    expected = [images.read(i) for i in range(8)]
    fresh = pickle.loads(pickle.dumps(images))
    with ThreadPoolExecutor(8) as pool:
        for i, image in enumerate(pool.map(fresh.read, list(range(8)) * 20)):
            np.testing.assert_array_equal(image, expected[i % 8])


# ---------------------------------------------------------------- shared data
@pytest.mark.parametrize(
    ("name", "n", "channels", "classes", "skipped"),
    [
        ("cifar10_25k.zip", 25_000, 3, 10, 0),
        ("hymenoptera_s192.zip", 396, 3, 2, 0),
        ("flickr8k_1000_s192.zip", 1000, 3, 0, 0),
        ("ukbench_dups.zip", 32, 3, 4, 2),
        ("kitti_vo_s192.zip", 102, 3, 0, 4),
        ("cellpainting_6ch_512_u16.npz", 1, 6, 0, 0),
        ("sentinel2_13band_5x101x100.npz", 5, 13, 0, 0),
        ("fashion_t10k-images-idx3-ubyte.gz", 10_000, 1, 10, 0),
    ],
)
def test_real_collections(name, n, channels, classes, skipped):
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is not in shared/data")
    images = open_images(SHARED / name)
    images = checked(images) if len(images) < 2000 else images
    assert (len(images), images.channels, len(images.classes)) == (n, channels, classes)
    assert images.read(len(images) - 1).shape[-1] == channels


def test_real_corrupt_files_are_named():
    if not (SHARED / "ukbench_dups.zip").exists():
        pytest.skip("ukbench_dups.zip is not in shared/data")
    images = open_images(SHARED / "ukbench_dups.zip")
    with pytest.raises(BadImage, match="not an image"):
        images.read(paths(images).index("mixed_images/ukbench09268_corrupt.jpg"))
    images = checked(images)
    corrupt = [path for path, _ in images.skipped if "corrupt" in path]
    assert len(corrupt) == 2
    assert any(path.endswith(".svg") for path in paths(images))
