"""Sounds as collections: tiles, clips, archives, tables, and what is left out."""

import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tones import folder_of, in_time, tone, wav_bytes

from omma.core.errors import install_command
from omma.core.protocols import BadImage
from omma.data.sources import collection, mel
from omma.data.sources.clips import Clips, Tiles, in_tiles
from omma.data.sources.sound import tiles_in

CLIPS = {"cat/a.wav": 0.4, "cat/b.wav": 2.8, "dog/c.wav": 1.5, "dog/d.wav": 2.6}  # 1, 2, 1 and 2 tiles


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sounds(tmp_path):
    return folder_of(tmp_path / "sounds", CLIPS)


@pytest.mark.parametrize(
    ("frames", "tiles"), [(1, 1), (128, 1), (191, 1), (192, 2), (256, 2), (319, 2), (320, 3)]
)
def test_clips_are_cut_into_tiles_of_about_128_frames(frames, tiles):
    assert tiles_in(frames) == tiles


def test_a_tile_is_a_part_of_the_whole_spectrogram(tmp_path):
    """Though it is read and resampled by itself; low frequencies lie at the bottom; tiles are equal."""
    samples = np.stack([tone(3.1, 500, 44_100), tone(3.1, 3000, 44_100, seed=1)], 1)
    file = tmp_path / "stereo.wav"
    file.write_bytes(wav_bytes(samples, 44_100))
    images = collection.open_images(file)
    mono = (np.round(samples * 32767) / 32768).mean(1)
    whole = mel.log_mel(mel.resampled(mono, 0, 0, mel.length_at_16k(len(mono), 44_100), 44_100))
    assert len(images) == 2
    assert len(whole) == 308
    for k in range(2):
        image = images.read(k)
        assert image.shape == (128, 128, 1)
        assert image.dtype == np.float32
        expected = in_time(whole[154 * k : 154 * k + 154].T[::-1])
        np.testing.assert_allclose(image[:, :, 0], expected, atol=1e-5)
    first = images.read(0)[:, :, 0].mean(1)
    assert first[110:].max() < first[40:95].max()  # 500 Hz and 3 kHz lie above the lowest mels


def test_a_short_clip_fills_its_tile(tmp_path):
    samples = tone(0.4, 700)
    (tmp_path / "a.wav").write_bytes(wav_bytes(samples))
    tile = collection.open_images(tmp_path).read(0)[:, :, 0]
    whole = mel.log_mel(np.round(samples * 32767) / 32768).T[::-1]
    assert whole.shape == (128, 38)
    np.testing.assert_array_equal(tile[:, [0, -1]], whole[:, [0, -1]])
    np.testing.assert_allclose(tile, in_time(whole), atol=1e-5)


def test_a_tile_of_128_frames_is_as_it_is(tmp_path):
    samples = tone(1.295)
    (tmp_path / "a.wav").write_bytes(wav_bytes(samples))
    whole = mel.log_mel(np.round(samples * 32767) / 32768).T[::-1]
    assert whole.shape == (128, 128)
    np.testing.assert_array_equal(collection.open_images(tmp_path).read(0)[:, :, 0], whole)


def test_a_folder_lists_tiles_with_what_is_known_of_their_clips(sounds):
    for _ in range(2):  # the second is from the cache
        images = collection.open_images(sounds)
        assert isinstance(images, Tiles)
        assert images.kind == "sound"
        assert images.channels == 1
        names = ["cat/a.wav#0", "cat/b.wav#0", "cat/b.wav#1", "dog/c.wav#0", "dog/d.wav#0", "dog/d.wav#1"]
        assert [images.path(i) for i in range(len(images))] == names
        assert images.classes == ("cat", "dog")
        assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert images.columns["sequence"].to_pylist() == [name[:-2] for name in names]
        assert images.columns["frame"].to_pylist() == [0, 0, 1, 0, 0, 1]
        assert images.describe() == "sounds: 4 clips, 6 tiles, 2 classes"
    paths = images.identity.record()["content"].to_pylist()
    assert len(set(paths)) == 6  # two tiles of a clip are no copies


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_holds_the_same_tiles(sounds, tmp_path, packed):
    with zipfile.ZipFile(tmp_path / "all.zip", "w", packed) as archive:
        for name in CLIPS:
            archive.write(sounds / name, name)
        archive.writestr(
            "labels.csv", "path,label,speaker\n" + "".join(f"{n},{n[4]},x{n[4]}\n" for n in CLIPS)
        )
    for _ in range(2):
        zipped, plain = collection.open_images(tmp_path / "all.zip"), collection.open_images(sounds)
        for i in range(len(plain)):
            np.testing.assert_array_equal(zipped.read(i), plain.read(i))
        assert zipped.classes == ("a", "b", "c", "d")
        assert zipped.labels.tolist() == [0, 1, 1, 2, 3, 3]
        assert zipped.columns["speaker"].to_pylist() == ["xa", "xb", "xb", "xc", "xd", "xd"]
    assert zipped.content(2) == (sounds / "cat/b.wav").read_bytes()


def test_a_table_keeps_its_own_sequences(sounds):
    rows = "".join(f"{name},{name[:3]},test,{name[:3]}\n" for name in CLIPS)
    (sounds / "table.csv").write_text("path,label,split,sequence\n" + rows)
    images = collection.open_images(sounds / "table.csv")
    assert images.columns["sequence"].to_pylist() == ["cat"] * 3 + ["dog"] * 3
    assert set(images.splits.tolist()) == {"test"}
    clips = collection.opened(sounds / "table.csv")
    assert clips.columns.column_names == ["label", "split", "sequence"]


def test_consumers_get_clips(sounds):
    clips = collection.opened(sounds)
    assert isinstance(clips, Clips)
    assert len(clips) == 4
    assert clips.columns is None
    assert [clips.path(i) for i in range(4)] == list(CLIPS)
    assert clips.labels.tolist() == [0, 0, 1, 1]
    tiles = collection.open_images(sounds)
    np.testing.assert_array_equal(clips.read(1), np.concatenate([tiles.read(1), tiles.read(2)], axis=1))
    assert clips.describe() == "sounds: 4 clips, 6 tiles, 2 classes"
    assert clips.content(3) == (sounds / "dog/d.wav").read_bytes()
    some = collection.opened(tiles.subset(np.array([5, 3, 1])))  # a clip is whole, whichever tile is left
    assert [some.path(i) for i in range(3)] == ["dog/d.wav", "dog/c.wav", "cat/b.wav"]
    again = in_tiles(some)
    assert [again.path(i) for i in range(5)] == [
        "dog/d.wav#0", "dog/d.wav#1", "dog/c.wav#0", "cat/b.wav#0", "cat/b.wav#1",
    ]  # fmt: skip
    assert again.labels.tolist() == [1, 1, 1, 0, 0]


def test_images_and_sounds_are_not_mixed(tmp_path):
    folder_of(tmp_path, {f"{k}.wav": 0.1 for k in range(3)})
    for k in range(2):
        (tmp_path / f"{k}.ppm").write_bytes(b"P6 1 1 255\n\0\0\0")
    with pytest.raises(ValueError, match="2 images and 3 sounds are in it"):
        collection.open_images(tmp_path)
    assert len(collection.open_images(f"{tmp_path}/*.wav")) == 3


def test_a_few_of_another_kind_are_left_out(tmp_path):
    for k in range(205):
        file = tmp_path / ("cat" if k % 2 else "dog") / f"{k}.ppm"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"P6 1 1 255\n\0\0\0")
    folder_of(tmp_path / "audio", {"a.wav": 0.1, "b.wav": 0.1})
    images = collection.open_images(tmp_path)
    assert images.kind == "image"
    assert len(images) == 205
    assert images.classes == ("cat", "dog")
    assert np.bincount(images.labels).tolist() == [102, 103]
    assert images.skipped == [(f"audio/{name}.wav", "a sound among images") for name in "ab"]


def test_what_cannot_be_read_is_left_out_with_a_reason(sounds, monkeypatch):
    (sounds / "cat/e.wav").write_bytes(b"RIFFxxxxWAVE")
    (sounds / "dog/f.wav").write_bytes(wav_bytes(tone(0.02)))
    (sounds / "dog/g.mp3").write_bytes(b"ID3" + bytes(100))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    images = collection.open_images(sounds)
    assert len(images) == 6
    assert [path for path, _ in images.skipped] == ["cat/e.wav", "dog/f.wav", "dog/g.mp3"]
    reasons = [reason for _, reason in images.skipped]
    assert reasons[:2] == ["damaged WAV: no samples in it", "shorter than 25 ms"]
    assert reasons[2].startswith(f"needs torchcodec: {install_command('torchcodec')}, and FFmpeg")
    (sounds / "cat/b.wav").write_bytes(wav_bytes(tone(0.5)))  # after it was listed
    with pytest.raises(BadImage, match="was changed after it was listed"):
        images.read(2)


def test_nothing_but_broken_sounds(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFFxxxxWAVE")
    with pytest.raises(ValueError, match=r"none of 1 image can be read \(a.wav: damaged WAV"):
        collection.open_images(tmp_path)


class Decoder:
    """torchcodec's `AudioDecoder`, of 2.8 s of two channels whose header tells 10 samples too many."""

    def __init__(self, source):
        if not str(source).endswith(".flac"):
            raise RuntimeError("no stream")
        samples = torch.from_numpy(tone(2.8, 700))
        self.samples = torch.stack([samples + 0.1, samples - 0.1])
        seconds = (self.samples.shape[1] + 10) / 16_000
        self.metadata = SimpleNamespace(
            sample_rate=16_000, duration_seconds=seconds, begin_stream_seconds=0.0
        )

    def get_samples_played_in_range(self, start, stop):
        first, last = (int(np.ceil(round(each * 16_000, 6))) for each in (start, stop))
        return SimpleNamespace(data=self.samples[:, first:last])


def test_other_formats_are_decoded_in_parts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(AudioDecoder=Decoder))
    for name in ("a.flac", "b.ogg"):
        (tmp_path / name).write_bytes(b"x")
    images = collection.open_images(tmp_path)
    assert [images.path(i) for i in range(len(images))] == ["a.flac#0", "a.flac#1"]
    assert images.skipped == [("b.ogg", "damaged sound: no stream")]
    whole = mel.log_mel(tone(2.8, 700))
    for k in range(2):
        expected = in_time(whole[139 * k : 139 * k + 139].T[::-1])
        np.testing.assert_allclose(images.read(k)[:, :, 0], expected, atol=1e-4)


@pytest.mark.slow  # torchcodec takes seconds to import
def test_flac_holds_the_same_tiles(tmp_path):
    encoders = pytest.importorskip("torchcodec.encoders", exc_type=(ImportError, RuntimeError, OSError))
    samples = np.round(tone(2.8, 700) * 32767) / 32768
    encoder = encoders.AudioEncoder(torch.from_numpy(samples).float()[None], sample_rate=16_000)
    encoder.to_file(tmp_path / "a.flac")
    (tmp_path / "b.wav").write_bytes(wav_bytes(samples * 32768 / 32767))
    images = collection.open_images(tmp_path)
    assert [images.path(i) for i in range(4)] == ["a.flac#0", "a.flac#1", "b.wav#0", "b.wav#1"]
    for k in range(2):
        np.testing.assert_allclose(images.read(k), images.read(k + 2), atol=1e-3)
