"""`omma pretrain`, whole: from files to a model; killed, resumed, refused, with hostile files."""

import dataclasses
import io
import json
import os
import random
import signal
import tarfile
import time
from pathlib import Path

import fsspec
import numpy as np
import processes
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.checkpoint import checkpoint

import omma
from omma.data.batches import gpu_jpeg
from omma.data.sources import check
from omma.data.sources.collection import ArrayImages
from omma.data.sources.decode import decode
from omma.methods import simclr
from omma.ops import recompute
from omma.pretraining import input_bound, readings
from omma.pretraining.events import Note, Plan, Progress, Read
from omma.pretraining.folder import RunFolder
from omma.pretraining.monitor import Monitor
from omma.pretraining.trainer import Diverged
from omma.train.profile import Profile
from omma.verbs.pretrain import pretrain

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SMALL = {"model": "vitc-15mf", "batch_size": 16, "image_size": 16, "device": "cpu"}


def pictures(n=64, channels=3, labels=False, seed=0, size=16):
    """Random images of two kinds: bright on the left, bright on the right."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (n, size, size, channels), dtype=np.uint8)
    kind = np.arange(n) % 2
    pixels[kind == 0, :, : size // 2] += 120
    pixels[kind == 1, :, size // 2 :] += 120
    return ArrayImages(pixels, kind if labels else None, ("left", "right") if labels else ())


def state(folder):
    return omma.load(folder).encoder.state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.report
@pytest.mark.parametrize(
    ("method", "model"), [("simclr", "vitc-15mf"), ("dino", "vit-n/4"), ("mae", "vit-n/4")]
)
def test_images_in_model_out(tmp_path, method, model):
    events = []
    result = pretrain(
        pictures(), method=method, out=tmp_path / "run", steps=4, listen=events.append,
        **{**SMALL, "model": model},
    )  # fmt: skip
    folder = tmp_path / "run"
    assert result.steps == 4
    assert result.stopped_by is None
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "model.safetensors", "model.json", "skipped.csv",
            "report.html"} <= names  # fmt: skip
    assert any(n.startswith("events.") for n in names)
    lines = RunFolder(folder).metrics()
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2, 3, 4]
    kinds = [type(event) for event in events]
    assert kinds.index(Plan) < kinds.index(Progress)
    assert kinds.count(Progress) == 4
    assert Read in kinds
    plan = next(e for e in events if isinstance(e, Plan))
    assert plan.used == 64
    assert plan.steps == 4
    assert plan.images_per_second > 0
    model = omma.load(folder)
    assert model.provenance["method"] == method
    vectors = model.embed([np.zeros((16, 16, 3), np.uint8), np.full((20, 30, 3), 255, np.uint8)])
    assert vectors.shape == (2, model.encoder.dim)
    assert np.isfinite(vectors).all()
    report = (folder / "report.html").read_text()
    assert "Nearest neighbours" in report
    assert ("Reconstructions" in report) == (method == "mae")


@pytest.mark.report
@pytest.mark.parametrize(("method", "learned"), [("supervised", True), ("simclr", False)])
def test_the_report_says_whether_labels_were_learned_from(tmp_path, method, learned):
    pretrain(pictures(labels=True), method=method, out=tmp_path / "run", steps=2, **SMALL)
    report = (tmp_path / "run" / "report.html").read_text()
    assert ("Labels were used in training" in report) == learned
    assert ("Labels were not used in training" in report) == (not learned)
    assert ("labels for evaluation only" in report) == (not learned)


def test_a_bad_image_that_checking_has_missed_does_not_end_a_run(tmp_path, monkeypatch):
    """As in collections that are checked by sample."""
    (tmp_path / "images").mkdir()
    for i in range(12):
        Image.effect_noise((16, 16), 60).convert("RGB").save(tmp_path / "images" / f"{i:02}.png")
    whole = (tmp_path / "images" / "00.png").read_bytes()
    (tmp_path / "images" / "00.png").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(check, "verify", lambda *_: [])
    assert (
        pretrain(tmp_path / "images", out=tmp_path / "run", steps=2, **{**SMALL, "batch_size": 4}).steps == 2
    )
    assert "00.png" in (tmp_path / "run" / "skipped.csv").read_text()


def test_the_same_twice_is_the_same(tmp_path):
    for name in ("a", "b"):
        pretrain(pictures(), out=tmp_path / name, steps=3, **SMALL)
    pretrain(pictures(), out=tmp_path / "c", steps=3, seed=1, **SMALL)
    assert equal(state(tmp_path / "a"), state(tmp_path / "b"))
    assert not equal(state(tmp_path / "a"), state(tmp_path / "c"))


def test_recomputing_changes_no_weight(tmp_path, monkeypatch):
    forgot = []
    monkeypatch.setattr(recompute, "checkpoint", lambda *a, **k: forgot.append(1) or checkpoint(*a, **k))
    for name, recomputed in (("a", False), ("b", True)):
        pretrain(pictures(), out=tmp_path / name, steps=3, recompute=recomputed, **SMALL)
        assert bool(forgot) == recomputed
    assert equal(state(tmp_path / "a"), state(tmp_path / "b"))
    with pytest.raises(ValueError, match="--recompute works block by block, and dalle/8 has none"):
        pretrain(pictures(), out=tmp_path / "c", steps=1, recompute=True, **{**SMALL, "model": "dalle/8"})


def test_a_finished_run_is_left_alone_and_another_configuration_refused(tmp_path):
    pretrain(pictures(), out=tmp_path / "run", steps=2, **SMALL)
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    assert pretrain(pictures(), out=tmp_path / "run", steps=2, **SMALL).steps == 2
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"settings\.lr: .* there, 0\.5 now") as error:
        pretrain(pictures(), out=tmp_path / "run", steps=2, lr=0.5, **SMALL)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="holds no run"):
        pretrain(pictures(), out=tmp_path, steps=2, **SMALL)


def test_a_run_goes_on_by_its_own_recipe_after_an_update(tmp_path, monkeypatch):
    """A later version's recipe may differ; what the user asks for may not."""
    today = simclr.small

    def earlier(image_size, model):
        recipe = today(image_size, model)
        plain = dataclasses.replace(recipe.config, views=2, temperature=0.3)
        return dataclasses.replace(recipe, config=plain, batch=16, lr=0.004, optimizer="adamw", matrix_lr=1.0)

    def stop(event):
        if isinstance(event, Progress) and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    same = {"steps": 4, "method": "simclr", "model": "vit-n/4", "device": "cpu", "workers": 0, "seed": 1}
    monkeypatch.setattr(simclr, "small", earlier)
    pretrain(pictures(), out=tmp_path / "whole", **same)
    assert pretrain(pictures(), out=tmp_path / "run", listen=stop, **same).steps < 4
    monkeypatch.setattr(simclr, "small", today)
    with pytest.raises(ValueError, match=r"settings\.lr: .* there, 0\.5 now"):
        pretrain(pictures(), out=tmp_path / "run", lr=0.5, **same)
    pretrain(pictures(), out=tmp_path / "run", **same)
    assert equal(state(tmp_path / "whole"), state(tmp_path / "run"))


def test_a_resumed_run_keeps_the_precision_that_was_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("omma.core.device.cpu_gain", lambda: 2.0)
    pretrain(pictures(), out=tmp_path / "run", steps=2, **SMALL)
    monkeypatch.setattr("omma.core.device.cpu_gain", lambda: 1.0)
    pretrain(pictures(), out=tmp_path / "run", steps=2, **SMALL)  # is refused if it differs
    assert RunFolder(tmp_path / "run").config()["precision"] == "bf16"
    with pytest.raises(ValueError, match="precision: 'bf16' there, 'fp32' now"):
        pretrain(pictures(), out=tmp_path / "run", steps=2, precision="fp32", **SMALL)


def test_a_profile_tells_the_parts_of_a_step(tmp_path, monkeypatch):
    monkeypatch.setattr("omma.core.device.best_product", lambda device, dtype: 1e12)
    events = []
    pretrain(pictures(), out=tmp_path / "run", steps=6, profile=True, listen=events.append, **SMALL)
    (measured,) = (event for event in events if isinstance(event, Profile))
    assert len(measured.steps) == 3
    assert measured.seconds == pytest.approx(sum(measured.steps) / 3)
    assert measured.flops > 0
    record = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert sum(part["share"] for part in record["parts"].values()) == pytest.approx(1)
    assert record["parts"]["wait for data"]["ms"] == pytest.approx(0, abs=1)  # images are in memory
    assert record["limit_flops_per_second"] == 1e12
    assert record["images_per_second"] == pytest.approx(measured.images_per_second)

    pretrain(pictures(), out=tmp_path / "plain", steps=6, **SMALL)
    assert equal(state(tmp_path / "run"), state(tmp_path / "plain"))
    assert not (tmp_path / "plain" / "profile.json").exists()

    pretrain(pictures(), out=tmp_path / "one", steps=1, profile=True, listen=events.append, **SMALL)
    assert any(isinstance(event, Note) and "two steps" in event.text for event in events)


def test_slow_readings_are_made_less_often(tmp_path, monkeypatch):
    quick, slow = [], []
    with monkeypatch.context() as patch:
        patch.setattr(readings, "SHARE", 1e9)  # whatever a reading takes is little
        pretrain(pictures(), out=tmp_path / "quick", steps=40, listen=quick.append, **SMALL)
    read = Monitor.read

    def slowly(*args):
        time.sleep(1.0)
        return read(*args)

    monkeypatch.setattr(Monitor, "read", slowly)
    pretrain(pictures(), out=tmp_path / "slow", steps=40, listen=slow.append, **SMALL)
    steps = [[e.step for e in events if isinstance(e, Read)] for events in (quick, slow)]
    assert len(steps[0]) > 2
    assert steps[1] == [0, 40]  # the untrained and the last, in any case
    assert equal(state(tmp_path / "quick"), state(tmp_path / "slow"))


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    pretrain(pictures(), out=tmp_path / "run", steps=2, **SMALL)
    with (
        RunFolder(tmp_path / "run").locked(),
        pytest.raises(ValueError, match="trained by another process"),
    ):
        pretrain(pictures(), out=tmp_path / "run", steps=2, **SMALL)
    pretrain(pictures(), out=tmp_path / "run", steps=2, **SMALL)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 3, "epochs": 1}, "choose one end"),
        ({"steps": 0}, "above 0"),
        ({"budget": "soon"}, "such as"),
        ({"steps": 1, "method": "mae", "model": "vitc-15mf"}, "plain ViT"),
        ({"steps": 1, "accumulate": 3}, "cannot be divided"),
        ({"steps": 1, "device": "tpu"}, "device"),
        ({"steps": 1, "precision": "fp16"}, "precision"),
        ({"steps": 1, "precision": "fp8"}, "little at the widths of ViTs .*adr/0013.*bf16"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(tmp_path, options, words):
    with pytest.raises(ValueError, match=words) as error:
        pretrain(pictures(), out=tmp_path / "run", **{**SMALL, **options})
    assert "\n" not in str(error.value)


def test_a_learning_rate_that_breaks_it_ends_with_an_explanation(tmp_path):
    with pytest.raises(Diverged, match="lower --lr"):
        pretrain(
            pictures(), method="mae", out=tmp_path / "run", steps=200,
            **{**SMALL, "model": "vit-n/4", "lr": 1e30},
        )  # fmt: skip
    assert list((tmp_path / "run").glob("rejected-step-*.safetensors"))


def test_a_budget_is_kept(tmp_path):
    start = time.monotonic()
    result = pretrain(pictures(), out=tmp_path / "run", budget="5s", **SMALL)
    assert result.steps > 3
    assert time.monotonic() - start < 18  # on a busy machine
    assert result.seconds < 7
    lines = [line for line in RunFolder(tmp_path / "run").metrics() if line["event"] == "step"]
    assert lines[-1]["lr"] < 0.2 * max(line["lr"] for line in lines)  # the schedule came to its end


@pytest.mark.parametrize("channels", [1, 6, 13])
def test_any_channels_and_few_images(tmp_path, channels):
    events = []
    pretrain(pictures(3, channels), out=tmp_path / "run", steps=2, listen=events.append,
             **{**SMALL, "batch_size": 4})  # fmt: skip
    plan = next(e for e in events if isinstance(e, Plan))
    assert "left out" in " ".join(plan.views)
    assert omma.load(tmp_path / "run").encoder.channels == channels


@pytest.mark.parametrize("images", [2100, 60])  # held out, or each by all others
def test_labels_are_read_for_knn_but_change_nothing(tmp_path, images):
    events = []
    pretrain(pictures(images, labels=True), out=tmp_path / "a", steps=2, listen=events.append, **SMALL)
    pretrain(pictures(images, labels=False), out=tmp_path / "b", steps=2, **SMALL)
    assert equal(state(tmp_path / "a"), state(tmp_path / "b"))
    scores = [e.knn for e in events if isinstance(e, Read)]
    assert scores
    assert all(0 <= score <= 1 for score in scores)
    assert any("online_knn_top1" in line for line in RunFolder(tmp_path / "a").metrics())


def test_hostile_files_are_listed_and_the_rest_is_used(tmp_path):
    """1,000 good images and 200 that are not."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = random.Random(0)
    for i in range(1000):
        Image.effect_noise((20, 24), 60).convert("RGB").save(folder / f"good{i}.jpg", quality=60)
    good = (folder / "good0.jpg").read_bytes()
    header = (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    )
    kinds = {
        "empty": lambda: b"",
        "truncated": lambda: good[: len(good) // 2],
        "noise": lambda: rng.randbytes(500),
        "text": lambda: b"this is no image",
        "bomb": lambda: header + rng.randbytes(200),
        "html": lambda: b"<!doctype html><html></html>",
        "zip": lambda: b"PK\x03\x04" + rng.randbytes(100),
        "half": lambda: good[:20],
    }
    for i in range(200):
        kind = list(kinds)[i % len(kinds)]
        (folder / f"bad{i}-{kind}.jpg").write_bytes(kinds[kind]())
    (folder / "lying.svg").write_bytes(good)  # an image under a wrong name is used
    result = pretrain(folder, out=tmp_path / "run", steps=2, **SMALL)
    assert result.steps == 2
    lines = (tmp_path / "run" / "skipped.csv").read_text().splitlines()
    assert lines[0] == "path,reason"
    assert len(lines) == 201
    assert all(line.startswith("bad") and len(line.split(",", 1)[1]) > 5 for line in lines[1:])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["images"] == str(folder)


def test_only_bad_files_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.jpg"):
        pretrain(tmp_path / "images", out=tmp_path / "run", steps=1, **SMALL)


# ---------------------------------------------------------------- killed and resumed
def start(data, out, steps=60):
    """`omma pretrain` in a process of its own."""
    return processes.start(
        processes.omma, "pretrain", str(data), "--out", str(out), "--steps", str(steps),
        "--model", "vitc-15mf", "--batch-size", "16", "--image-size", "32", "--device", "cpu",
        "--checkpoint-every", "0.2", "--resolution", ".7@.3,.9@.6",
    )  # fmt: skip


@pytest.fixture
def data(tmp_path):
    images = pictures(200)
    np.savez(tmp_path / "images.npz", images=np.stack([images.read(i) for i in range(200)]))
    return tmp_path / "images.npz"


def test_killed_and_resumed_equals_uninterrupted(tmp_path, data):
    assert start(data, tmp_path / "straight").wait() == 0
    for _ in range(2):
        process = start(data, tmp_path / "killed")
        checkpoints = tmp_path / "killed" / "checkpoints"
        seen = set(checkpoints.glob("*.pt"))
        while process.poll() is None and not set(checkpoints.glob("*.pt")) - seen:
            time.sleep(0.05)
        time.sleep(random.Random(os.getpid()).random() * 0.2)
        process.kill()
    assert start(data, tmp_path / "killed").wait() == 0
    assert equal(state(tmp_path / "straight"), state(tmp_path / "killed"))
    steps = [line["step"] for line in RunFolder(tmp_path / "killed").metrics() if line["event"] == "step"]
    assert steps == list(range(1, 61))


@pytest.mark.parametrize(
    "name", ["SIGINT", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGTERM", "SIGHUP"))]
)  # Windows lacks the last
def test_a_signal_saves_and_exits(tmp_path, data, name):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"{name} is not known here")
    run = RunFolder(tmp_path / "run")
    process = start(data, run.path, 100_000)
    while process.poll() is None and len(run.metrics()) < 2:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    assert "the same command resumes" in process.text
    assert list(run.checkpoints.glob("step-*.pt"))
    assert not run.finished


# ---------------------------------------------------------------- a cache of decoded images
def ragged(folder, side=16, n=24, kind="png"):
    """Pictures of unlike sizes, `side` pixels or a little more along the shorter side."""
    folder.mkdir()
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 256, (side + i % 3, side + i % 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.{kind}")
    return folder


def notes(events):
    messages = [event.text for event in events if isinstance(event, Note)]
    return messages, [note for event in events if isinstance(event, Plan) for note in event.notes]


def test_a_cache_of_images_as_they_are_changes_nothing(tmp_path):
    data, events, again = ragged(tmp_path / "images"), [], []
    pretrain(data, out=tmp_path / "plain", steps=4, workers=0, **SMALL)
    pretrain(data, out=tmp_path / "cached", steps=4, workers=0, cache=True, listen=events.append, **SMALL)
    assert equal(state(tmp_path / "plain"), state(tmp_path / "cached"))
    messages, planned = notes(events)
    assert any("cache of about" in text and "24 images" in text for text in messages)
    assert any("read from a cache of" in text for text in planned)
    pretrain(data, out=tmp_path / "again", steps=4, workers=0, cache=True, listen=again.append, **SMALL)
    assert not any("cache" in text for text in notes(again)[0])  # it was there


def test_a_run_from_a_cache_resumes_bit_for_bit(tmp_path):
    data, same = ragged(tmp_path / "images", side=90), {"steps": 6, "workers": 0, "cache": True, **SMALL}

    def stop(event):
        if isinstance(event, Progress) and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    assert pretrain(data, out=tmp_path / "two", listen=stop, **same).stopped_by == signal.SIGTERM
    assert list((tmp_path / "two" / "checkpoints").glob("step-*.pt"))
    assert RunFolder(tmp_path / "two").config()["cache"] < 90
    pretrain(data, out=tmp_path / "two", **same)
    pretrain(data, out=tmp_path / "one", **same)
    assert equal(state(tmp_path / "one"), state(tmp_path / "two"))
    with pytest.raises(ValueError, match=r"cache: \d+ there, None now"):
        pretrain(data, out=tmp_path / "two", **{**same, "cache": False})


def test_images_that_fit_into_memory_are_not_cached(tmp_path):
    events = []
    pretrain(pictures(), out=tmp_path / "run", steps=1, cache=True, listen=events.append, **SMALL)
    assert any("no cache is needed" in text for text in notes(events)[1])
    assert "cache" not in RunFolder(tmp_path / "run").config()


def test_jpegs_are_decoded_where_they_are_said_to_be(tmp_path, monkeypatch):
    """omma's own decoder stands in for the GPU's, which needs one."""
    data, events, asked = ragged(tmp_path / "images", kind="jpg"), [], []

    def by_cpu(files, grey):
        asked.append(len(files))
        return [torch.from_numpy(decode(file.numpy().tobytes())).permute(2, 0, 1) for file in files]

    with pytest.raises(ValueError, match="needs an NVIDIA GPU, and this run is on cpu"):
        pretrain(data, out=tmp_path / "run", steps=2, decode="gpu", **SMALL)
    monkeypatch.setattr(gpu_jpeg, "decoder", lambda device: by_cpu)
    with pytest.raises(ValueError, match="only one of them"):
        pretrain(data, out=tmp_path / "run", steps=2, decode="gpu", cache=True, **SMALL)
    with pytest.raises(ValueError, match="no JPEG is among"):
        pretrain(ragged(tmp_path / "png"), out=tmp_path / "run", steps=2, decode="gpu", **SMALL)
    assert not asked
    pretrain(data, out=tmp_path / "run", steps=2, workers=1, decode="gpu", **SMALL)
    assert sum(asked) >= 2 * SMALL["batch_size"]
    assert RunFolder(tmp_path / "run").config()["decode"] == "gpu"
    pretrain(pictures(), out=tmp_path / "memory", steps=1, decode="gpu", listen=events.append, **SMALL)
    assert any("the GPU has nothing to decode" in text for text in notes(events)[1])
    assert "decode" not in RunFolder(tmp_path / "memory").config()


def test_a_run_that_waits_is_told_once_what_helps(tmp_path, monkeypatch):
    data, events = ragged(tmp_path / "images"), []
    monkeypatch.setattr(input_bound, "STEPS", 2)
    monkeypatch.setattr(input_bound, "SHARE", 0.01)
    pretrain(data, out=tmp_path / "run", steps=14, workers=0, listen=events.append, **SMALL)
    messages = [text for text in notes(events)[0] if "waiting for data" in text]
    assert len(messages) == 1
    assert "--cache" in messages[0]


# ---------------------------------------------------------------- shards
def test_shards_at_an_address_pretrain_and_embed(tmp_path):
    system, events = fsspec.filesystem("memory"), []
    for k in range(3):
        with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as tar:
            for i in range(8):
                Image.fromarray(pictures(1, seed=8 * k + i, size=16 + i % 3).read(0)).save(
                    image := io.BytesIO(), "PNG"
                )
                for name, data in ((f"{k}{i}.png", image.getvalue()), (f"{k}{i}.cls", str(i % 2).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        system.pipe(f"/shards/{k}.tar", file.getvalue())
    source = "memory://shards/{0..2}.tar"
    pretrain(
        source, method="supervised", out=tmp_path / "run", steps=2, workers=0, listen=events.append, **SMALL
    )
    assert any("3 shards" in text and "fetching each" in text for text in notes(events)[0])
    omma.embed(tmp_path / "run", source, out=tmp_path / "table.parquet")
    table = pq.read_table(tmp_path / "table.parquet")
    assert table["path"].to_pylist()[:2] == ["0.tar/00.png", "0.tar/01.png"]
    assert table["label"].to_pylist()[:2] == ["0", "1"]
    system.rm("/shards", recursive=True)


# ---------------------------------------------------------------- the project's own data
@pytest.mark.parametrize("name", ["cellpainting_6ch_512_u16.npz", "sentinel2_13band_5x101x100.npz"])
def test_microscopy_and_satellite_pretrain(tmp_path, name):
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not here")
    result = pretrain(
        DATA / name, out=tmp_path / "run", steps=2, image_size=32, model="vitc-15mf", device="cpu"
    )
    assert result.steps == 2
    assert omma.load(tmp_path / "run").encoder.channels in (6, 13)
