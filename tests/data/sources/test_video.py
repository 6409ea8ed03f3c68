"""Videos as sequences: listed as their frames, each equal to the one that decoding in order gives."""

import multiprocessing
import os
import pickle
import re
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from omma.core.errors import install_command
from omma.core.protocols import BadImage
from omma.data.sources import collection, sequences, video
from omma.data.sources.collection import open_images
from omma.data.sources.decode import decode

FRAMES = 30


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of 30 frames with predicted frames between whole ones, its frames in order, and its folder."""
    try:
        from torchcodec.decoders import VideoDecoder
        from torchcodec.encoders import VideoEncoder
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchcodec with FFmpeg is needed to read videos: {type(error).__name__}")
    import torch

    folder = tmp_path_factory.mktemp("clips")
    noise = np.random.default_rng(0).integers(0, 255, (1, 3, 48, 64 + FRAMES))
    moving = np.concatenate([noise[..., k : k + 64] for k in range(FRAMES)]).astype(np.uint8)
    try:
        encoder = VideoEncoder(torch.from_numpy(moving), frame_rate=10)
        encoder.to_file(folder / "a.mp4", extra_options={"g": "12"})
    except (RuntimeError, ValueError, TypeError) as error:
        pytest.skip(f"FFmpeg without an encoder: {type(error).__name__}")
    (folder / "b.mp4").write_bytes((folder / "a.mp4").read_bytes())
    decoder = VideoDecoder(folder / "a.mp4", dimension_order="NHWC")
    return folder, decoder.get_frames_in_range(0, FRAMES).data.numpy()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path / "cache"))


def test_a_folder_of_videos_is_listed_as_frames(clip, monkeypatch):
    folder, frames = clip
    os.utime(folder, (1e9, 1e9))  # settled, so the listing is remembered
    first = open_images(folder)
    monkeypatch.setattr(collection, "lister", lambda source, typed: ((lambda _: pytest.fail("listed")), True))
    for images in (first, open_images(folder)):
        np.testing.assert_array_equal(images.read(FRAMES + 5), frames[5])
        assert len(images) == 2 * FRAMES
        assert [images.path(i) for i in (0, 12, FRAMES)] == ["a.mp4#00000", "a.mp4#00012", "b.mp4#00000"]
        assert images.columns["sequence"].to_pylist() == ["a.mp4"] * FRAMES + ["b.mp4"] * FRAMES
        known = sequences.read(images)
        np.testing.assert_array_equal(known.sequence, np.repeat([0, 1], FRAMES))
        np.testing.assert_array_equal(known.frame, [*range(FRAMES)] * 2)
        assert images.channels == 3
        assert images.notes == ("60 frames of 2 videos, each an image",)


def test_frames_in_any_order_equal_those_in_order(clip):
    folder, frames = clip
    assert len({frame.tobytes() for frame in frames}) == FRAMES  # each is another, so a wrong one shows
    images = open_images(folder / "a.mp4")
    for i in (*np.random.default_rng(1).permutation(FRAMES).tolist(), FRAMES - 1, 0):
        np.testing.assert_array_equal(images.read(i), frames[i])
    np.testing.assert_array_equal(decode(images.content(7), 3, None), frames[7])


def _mean(images, i):
    return int(images.read(i).astype(np.int64).sum())


def test_threads_and_processes_read_alike(clip, monkeypatch):
    folder, frames = clip
    monkeypatch.setattr(video, "OPEN", 1)  # a.mp4 and b.mp4 are closed and opened in turn
    images = pickle.loads(pickle.dumps(open_images(folder)))
    rows = np.random.default_rng(2).permutation(2 * FRAMES).tolist()
    expected = [int(frames[i % FRAMES].astype(np.int64).sum()) for i in rows]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: _mean(images, i), rows)) == expected
    if "fork" in multiprocessing.get_all_start_methods():
        with multiprocessing.get_context("fork").Pool(2) as pool:  # the parent's videos are open
            answer = pool.starmap_async(_mean, [(images, i) for i in rows])
            assert [_mean(images, i) for i in rows] == expected
            assert answer.get(60) == expected


def test_a_table_names_videos_frames_and_images(clip, tmp_path):
    folder, frames = clip
    Image.fromarray(np.full((48, 64, 3), 9, np.uint8)).save(tmp_path / "c.png")
    (tmp_path / "a.mp4").write_bytes((folder / "a.mp4").read_bytes())
    rows = ["a.mp4,walk,Oslo,7,", "a.mp4#00012,run,Bergen,3,1", "c.png,run,Bergen,s,4", "a.mp4#30,run,Oslo,,"]
    (tmp_path / "x.csv").write_text("\n".join(["path,label,site,sequence,frame", *rows]))
    images = open_images(tmp_path / "x.csv")
    assert len(images) == FRAMES + 2
    assert [images.path(i) for i in (3, FRAMES, FRAMES + 1)] == ["a.mp4#00003", "a.mp4#00012", "c.png"]
    assert [images.classes[k] for k in images.labels[[0, FRAMES - 1, FRAMES]]] == ["walk", "walk", "run"]
    assert images.columns["site"].to_pylist() == ["Oslo"] * FRAMES + ["Bergen"] * 2
    assert images.columns["sequence"].to_pylist() == ["a.mp4"] * (FRAMES + 1) + ["s"]
    np.testing.assert_array_equal(sequences.read(images).frame, [*range(FRAMES), 12, 4])
    np.testing.assert_array_equal(images.read(FRAMES), frames[12])
    assert (images.read(FRAMES + 1) == 9).all()
    assert images.skipped == [("a.mp4#30", "the video has no frame 30, but 0 to 29")]


def test_folders_label_videos_and_a_pattern_finds_them(clip, tmp_path):
    folder, _ = clip
    for name in ("run/1.mp4", "run/2.mp4", "walk/1.mp4", "walk/2.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((folder / "a.mp4").read_bytes())
    images = open_images(tmp_path)
    assert images.classes == ("run", "walk")
    np.testing.assert_array_equal(images.labels, np.repeat([0, 1], 2 * FRAMES))
    assert len(open_images(tmp_path / "*/1.mp4")) == 2 * FRAMES


def test_the_record_of_a_collection_knows_frames_apart(clip):
    folder, _ = clip
    images = open_images(folder / "a.mp4")
    record = images.identity.record()
    assert len(set(record["content"].to_pylist())) == FRAMES
    assert set(record["size"].to_pylist()) == {(folder / "a.mp4").stat().st_size}


def test_damaged_videos_are_listed(clip, tmp_path):
    folder, _ = clip
    data = (folder / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data)
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.mkv").write_bytes(b"")
    images = open_images(tmp_path)
    assert len(images) == FRAMES
    reason = "a damaged video, or none that FFmpeg reads"
    assert images.skipped == [("cut.mp4", reason), ("empty.mkv", reason)]
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(BadImage, match="not accessible now"):
        images.read(0)


# ---------------------------------------------------------------- without FFmpeg, too
def test_videos_beside_images_and_in_archives_are_listed(tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "c.png")
    (tmp_path / "a.mp4").write_bytes(b"video")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(tmp_path / "c.png", "c.png")
        archive.write(tmp_path / "a.mp4", "a.mp4")
    assert open_images(tmp_path / "x.zip").skipped == [("a.mp4", "a video in an archive: unpack it")]
    (tmp_path / "x.zip").unlink()
    shutil.rmtree(tmp_path / "cache")
    why = "a video beside images: give it, or a table that names it, as the source"
    assert open_images(tmp_path).skipped == [("a.mp4", why)]


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_without_torchcodec_or_ffmpeg_the_remedy_is_said_and_nothing_remembered(tmp_path, monkeypatch, error):
    (tmp_path / "a.mp4").write_bytes(b"video")
    remedy = re.escape(install_command("torchcodec")) if error is ImportError else "apt-get install ffmpeg"
    real = __import__

    def without(name, *args, **kwargs):
        if name == "torchcodec":
            raise error(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr("builtins.__import__", without)
    with pytest.raises(
        ValueError, match=f"none of 1 image can be accessed .a.mp4: not accessible now: .*{remedy}"
    ):
        open_images(tmp_path)
    assert not [*(tmp_path / "cache").glob("index-*")]
