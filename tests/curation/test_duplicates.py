"""Duplicates of drawn images: copies are found, different images are not, whatever their format."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from omma.core.protocols import Images
from omma.curation import duplicates
from omma.curation.duplicates import copies, hashes
from omma.data.sources.collection import ArrayImages, open_images
from omma.features.extract import FeatureSet


def drawn(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A scene of discs and boxes, different for each seed; width and height in pixels."""
    rng = np.random.default_rng([7, seed])
    image = Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = rng.uniform(-0.1, 0.9, 2) * size
        w, h = rng.uniform(0.1, 0.5, 2) * size
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def pixels(images: Images | list[np.ndarray]) -> np.ndarray:
    """Features for tests: the centred picture at 6 x 6 pixels."""
    if not isinstance(images, list):
        images = [images.read(i) for i in range(len(images))]
    values = np.stack([hashes.picture(image, 6).ravel() for image in images])
    return np.nan_to_num(values - values.mean(axis=1, keepdims=True))


def found(folder: Path, **options) -> tuple[duplicates.Found, set[tuple[str, str, str]]]:
    """What is found in a folder, and the pairs by name."""
    images = open_images(folder)
    result = duplicates.find(images, **{"copies": 0} | options)
    return result, {(images.path(p.a), images.path(p.b), p.kind) for p in result.pairs}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 different images, named 00.png to 29.png."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(30):
        drawn(seed).save(folder / f"{seed:02}.png")
    return folder


def test_different_images_are_no_duplicates(scenes: Path) -> None:
    result, pairs = found(scenes)
    assert pairs == set()
    assert result.groups == ()
    assert result.calibration is not None
    assert result.calibration.pairs == 30 * 29 // 2
    assert result.calibration.set_aside == 0


def test_copies_are_found_and_the_original_is_kept(scenes: Path, tmp_path: Path) -> None:
    for file in scenes.iterdir():
        (tmp_path / file.name).symlink_to(file)
    rng = np.random.default_rng(0)
    kinds = copies.kinds(np.dtype(np.uint8), 3)
    expected = set()
    for number, (kind, change) in enumerate(kinds.items()):
        if kind in ("crop of 40 %", "crop of 50 %"):
            continue  # beyond hashes
        changed = change(np.asarray(drawn(number)), rng)
        Image.fromarray(changed).save(tmp_path / f"{number:02}x.png")
        expected.add((f"{number:02}.png", f"{number:02}x.png", "near"))
    drawn(20).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "20x.png")
    expected.add(("20.png", "20x.png", "near"))
    result, pairs = found(tmp_path)
    assert pairs == expected
    assert result.calibration is not None
    assert result.calibration.set_aside == len(expected)
    images = open_images(tmp_path)
    kept = {images.path(group.kept): group.why for group in result.groups}
    assert set(kept) <= {a for a, _, _ in expected} | {"00x.png", "01x.png", "07x.png", "08x.png", "20x.png"}
    assert kept["02.png"] == "the largest (160 x 120)"  # of which 02x.png is a crop


def test_features_find_what_hashes_miss(scenes: Path, tmp_path: Path) -> None:
    for file in scenes.iterdir():
        (tmp_path / file.name).symlink_to(file)
    rng = np.random.default_rng(0)
    Image.fromarray(copies.crop(np.asarray(drawn(5)), rng, 0.5)).save(tmp_path / "05x.png")
    assert found(tmp_path)[1] == set()
    images = open_images(tmp_path)
    values = np.random.default_rng(1).normal(size=(len(images), 16)).astype(np.float32)
    names = [images.path(i) for i in range(len(images))]
    a, b = names.index("05.png"), names.index("05x.png")
    values[b] = values[a] + 0.2 * values[b]
    result, pairs = found(tmp_path, vectors=FeatureSet(values, np.arange(len(values))), copies=2)
    assert pairs == {("05.png", "05x.png", "near")}
    assert result.pairs[0].similarity > 0.9
    assert result.pairs[0].agreement > 0.8
    assert any("recall is that of hashes alone" in note for note in result.notes)


def test_the_recall_of_copies_is_reported_by_kind(scenes: Path) -> None:
    images = open_images(scenes)
    vectors = FeatureSet(pixels(images).astype(np.float32), np.arange(len(images)))
    asked: list[int] = []

    def embed(arrays: list[np.ndarray]) -> np.ndarray:
        asked.append(len(arrays))
        return pixels(list(arrays))

    result = duplicates.find(images, vectors=vectors, embed=embed, copies=8, seed=3)
    assert sum(asked) == 80
    assert result.calibration is not None
    recall = result.calibration.recall
    assert list(recall) == list(copies.kinds(np.dtype(np.uint8), 3))
    assert all(each.n == 8 for each in recall.values())
    for kind in ("JPEG at quality 10", "grey", "mirrored", "resized", "crop of 10 %"):
        assert recall[kind].value == 1, kind
    assert result.calibration.overall.value >= 0.8
    assert result.pairs == ()


def test_lying_and_lossless_formats_are_the_same_pixels(tmp_path: Path) -> None:
    drawn(0).save(tmp_path / "a.png")
    drawn(0).save(tmp_path / "b.bmp")
    drawn(0).save(tmp_path / "c.webp", lossless=True)
    drawn(0).save(tmp_path / "d.tif")
    (tmp_path / "e.jpg").write_bytes((tmp_path / "a.png").read_bytes())
    drawn(1).save(tmp_path / "f.png")
    drawn(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "g.png")
    result, pairs = found(tmp_path)
    best = max("abcd", key=lambda name: next(tmp_path.glob(f"{name}.*")).stat().st_size)
    assert {kind for _, _, kind in pairs} == {"file", "pixels", "near"}
    assert {(a, b) for a, b, kind in pairs if kind == "near"} == {("a.png", "g.png")}
    assert len([1 for *_, kind in pairs if kind != "near"]) == 4
    images = open_images(tmp_path)
    assert len(result.groups) == 1
    assert images.path(result.groups[0].kept).startswith(best)
    assert result.groups[0].why == "the least compressed"
    assert len(result.groups[0].others) == 5


def test_one_pair_of_two_in_many_copies(tmp_path: Path) -> None:
    """30 identical files make 29 pairs, not 435."""
    for number in range(30):
        drawn(0).save(tmp_path / f"{number:02}.png")
    result, pairs = found(tmp_path)
    assert len(pairs) == 29
    assert len(result.groups) == 1
    assert len(result.groups[0].others) == 29


def test_corrupt_files_are_listed_and_are_no_duplicates(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    drawn(0).save(buffer, "JPEG")
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(buffer.getvalue()[:40])
    drawn(1).save(tmp_path / "c.png")
    drawn(1).save(tmp_path / "d.png")
    result, pairs = found(tmp_path)
    assert pairs == {("c.png", "d.png", "file")}
    assert [row for row, _ in result.bad] == [0, 1]
    assert all(reason for _, reason in result.bad)


def test_blank_images_are_compared_by_content_alone(tmp_path: Path) -> None:
    black = Image.new("RGB", (64, 48))
    black.save(tmp_path / "a.png")
    black.save(tmp_path / "b.png")
    Image.new("RGB", (64, 50)).save(tmp_path / "c.png")
    Image.new("RGB", (64, 48), (255, 255, 255)).save(tmp_path / "d.png")
    Image.fromarray(np.eye(48, 64, dtype=np.uint8)).convert("RGB").save(tmp_path / "e.png")  # nearly black
    drawn(0).save(tmp_path / "f.png")
    result, pairs = found(tmp_path, vectors=FeatureSet(np.ones((6, 4), np.float32), np.arange(6)))
    assert pairs == {("a.png", "b.png", "file")}
    assert "5 blank images: compared by bytes and pixels alone" in result.notes


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_sixteen_bits_floats_and_many_channels(dtype: str) -> None:
    stack = np.stack([np.asarray(drawn(seed)).astype(np.float64) for seed in range(24)])
    stack = np.concatenate([stack, stack[..., :2]], axis=-1) * 20 + 300  # 12 bits used, 5 channels
    stack[23] = stack[4][:, ::-1]
    stack[22] = stack[5]
    result = duplicates.find(ArrayImages(stack.astype(dtype)), copies=2)
    assert {(p.a, p.b, p.kind) for p in result.pairs} == {(4, 23, "near"), (5, 22, "pixels")}
    assert result.calibration is not None
    assert "JPEG at quality 10" not in result.calibration.recall
    assert result.calibration.recall["mirrored"] == (2, 2)


def test_grey_and_colour_of_one_scene_are_duplicates(tmp_path: Path) -> None:
    drawn(0).save(tmp_path / "a.png")
    drawn(0).convert("L").save(tmp_path / "b.png")
    drawn(1).convert("L").save(tmp_path / "c.png")
    assert found(tmp_path)[1] == {("a.png", "b.png", "near")}


def test_huge_thin_and_tiny_images(tmp_path: Path) -> None:
    drawn(0, (3000, 2200)).save(tmp_path / "a.png", compress_level=1)
    drawn(0, (3000, 2200)).resize((40, 30)).save(tmp_path / "b.png")
    drawn(1, (900, 3)).save(tmp_path / "c.png")
    Image.new("RGB", (1, 1), (9, 0, 200)).save(tmp_path / "d.png")
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "e.png")
    result, pairs = found(tmp_path)
    assert pairs == {("a.png", "b.png", "near")}
    assert result.groups[0].why == "the largest (3000 x 2200)"


def test_empty_parts_of_features_do_not_matter(scenes: Path) -> None:
    """Images without features are compared by hash."""
    images = open_images(scenes)
    values = np.random.default_rng(0).normal(size=(25, 16)).astype(np.float32)
    result = duplicates.find(images, vectors=FeatureSet(values, np.arange(25)), copies=0)
    assert result.pairs == ()


def test_a_collapsed_model_is_not_believed(scenes: Path) -> None:
    images = open_images(scenes)
    result = duplicates.find(
        images, vectors=FeatureSet(np.ones((30, 8), np.float32), np.arange(30)), copies=0
    )
    assert result.pairs == ()
    assert result.threshold is None
    assert any("features are not used" in note for note in result.notes)


@pytest.mark.parametrize("options", [{"false_positives": 0.0}, {"false_positives": 1.0}, {"copies": -1}])
def test_wrong_options(options: dict, scenes: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        duplicates.find(open_images(scenes), **options)


# ---------------------------------------------------------------- splits
def test_duplicates_across_splits_are_reported_and_the_test_part_is_kept(tmp_path: Path) -> None:
    for split, seeds in (("train", (0, 1, 2)), ("test", (3, 4))):
        (tmp_path / split / "a").mkdir(parents=True)
        for seed in seeds:
            drawn(seed).save(tmp_path / split / "a" / f"{seed}.png")
    drawn(0).save(tmp_path / "test" / "a" / "copy.png")
    drawn(3, (160, 120)).resize((80, 60)).save(tmp_path / "test" / "a" / "small.png")
    drawn(1, (160, 120)).resize((320, 240)).save(tmp_path / "train" / "a" / "big.png")
    images = open_images(tmp_path)
    result = duplicates.find(images, copies=0)
    assert images.splits is not None
    assert duplicates.across(result, ["all"] * len(images)) == ()
    leaks = duplicates.across(result, images.splits)
    assert {(images.path(p.a), images.path(p.b), p.kind) for p in leaks} == {
        ("test/a/copy.png", "train/a/0.png", "file")
    }
    kept = {images.path(g.kept): (g.why, [images.path(i) for i in g.others]) for g in result.groups}
    assert kept == {
        "test/a/copy.png": ("of the test split", ["train/a/0.png"]),
        "train/a/big.png": ("the largest (320 x 240)", ["train/a/1.png"]),
    }  # test/a/3.png and small.png are a pair, but none of them goes


def test_every_image_that_leaks_is_named(tmp_path: Path) -> None:
    """Of three copies in training and two in the test part, none hides behind another."""
    for name in ("train/a/1.png", "train/a/2.png", "train/a/3.bmp", "test/a/4.png", "test/a/5.bmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        drawn(0).save(tmp_path / name)
    drawn(0).convert("L").save(tmp_path / "train/a/6.png")
    images = open_images(tmp_path)
    assert images.splits is not None
    leaks = duplicates.across(duplicates.find(images, copies=0), images.splits)
    assert {row for pair in leaks for row in (pair.a, pair.b)} == set(range(6))
    assert all(images.splits[pair.a] != images.splits[pair.b] for pair in leaks)


def test_two_collections(tmp_path: Path) -> None:
    for name, seeds in (("mine", (0, 1, 2)), ("theirs", (5, 1, 6))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            drawn(seed).save(tmp_path / name / f"{seed}.{'png' if name == 'mine' else 'bmp'}")
    mine, theirs = open_images(tmp_path / "mine"), open_images(tmp_path / "theirs")
    both = duplicates.Joined(mine, theirs)
    result = duplicates.find(both, copies=0)
    assert [(both.path(p.a), both.path(p.b), p.kind) for p in duplicates.across(result, both.splits)] == [
        ("1.png", "1.bmp", "pixels")
    ]
    assert [(g.kept, g.others) for g in result.groups] == [(3, (1,))]
    assert both.subset(np.array([1, 4])).path(1) == "5.bmp"
    with pytest.raises(ValueError, match="channels"):
        duplicates.Joined(mine, ArrayImages(np.zeros((2, 8, 8, 5), np.uint8)))
