"""The same command again: after kills, damage and changed images, to a later end, without leave to write."""

import json
import os
import shutil
import signal

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import omma
from omma.core import files
from omma.core.protocols import Inaccessible
from omma.data.sources.skipped import write_skipped
from omma.pretraining import repeat
from omma.pretraining.events import Note, Plan, Progress
from omma.pretraining.folder import RunFolder
from omma.reporting import run_report
from omma.train import checkpoint
from omma.verbs.evaluate import evaluate
from omma.verbs.pretrain import pretrain

TINY = {
    "method": "simclr", "model": "vit-n/8", "image_size": 16, "batch_size": 8, "device": "cpu",
    "precision": "fp32", "workers": 0, "model_options": {"depth": 1, "dim": 16, "heads": 2, "hidden": 16},
}  # fmt: skip


def photos(folder, n=16):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:02}.png")
    return folder


def run(images, out, steps=3, **options):
    events = []
    result = pretrain(images, out=out, steps=steps, listen=events.append, **{**TINY, **options})
    plans = [event for event in events if isinstance(event, Plan)]
    notes = [*(plans[-1].notes if plans else ()), *(e.text for e in events if isinstance(e, Note))]
    return result, " | ".join(notes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Images, and a run on them that is finished."""
    folder = tmp_path_factory.mktemp("whole")
    run(photos(folder / "photos"), folder / "run")
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole / "photos", tmp_path / "photos")
    shutil.copytree(whole / "run", tmp_path / "run")
    return tmp_path


def same(a, b):
    one, two = (omma.load(folder).encoder.state_dict() for folder in (a, b))
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("gone", ["model.json", "model.safetensors", "flipped", "cut"])
def test_what_a_killed_or_damaged_end_lacks_is_written_again(whole, copied, gone):
    file = copied / "run" / "model.safetensors"
    whole_bytes = file.read_bytes()
    if gone in ("flipped", "cut"):
        broken = whole_bytes[:-9] + bytes([whole_bytes[-9] ^ 1]) + whole_bytes[-8:]
        file.write_bytes(broken if gone == "flipped" else whole_bytes[:-50])
    else:
        (copied / "run" / gone).unlink()
    lines = len(RunFolder(copied / "run").metrics())
    run(copied / "photos", copied / "run")
    assert RunFolder(copied / "run").finished
    assert same(whole / "run", copied / "run")
    assert len(RunFolder(copied / "run").metrics()) == lines  # and nothing is read twice


def test_a_report_that_is_missing_is_made_again(copied, monkeypatch):
    made = []
    monkeypatch.setattr(run_report, "write_report", lambda folder, *args: folder.report.write_text("x"))
    run(copied / "photos", copied / "run")
    assert (copied / "run" / "report.html").exists()
    monkeypatch.setattr(run_report, "write_report", lambda folder, *args: made.append(folder))
    run(copied / "photos", copied / "run")
    assert not made


def test_a_damaged_model_without_checkpoints_is_not_trained_over(copied):
    shutil.rmtree(copied / "run" / "checkpoints")
    (copied / "run" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged and no checkpoint is left"):
        run(copied / "photos", copied / "run")


def test_damaged_checkpoints_are_set_aside_and_all_of_them_refused(copied):
    folder = copied / "run"
    (folder / "model.safetensors").unlink()
    (path,) = checkpoint.paths(folder / "checkpoints")
    data = path.read_bytes()
    path.write_bytes(data[:2000] + bytes(300) + data[2300:])
    with pytest.raises(ValueError, match=r"no checkpoint .* is whole .*remove .*checkpoints to train"):
        run(copied / "photos", folder)
    assert not RunFolder(folder).finished


# ---------------------------------------------------------------- images
def test_images_that_are_touched_copied_or_spelled_otherwise_are_the_same(whole, copied, monkeypatch):
    for file in (copied / "photos").iterdir():
        os.utime(file, (1, 1))
    (copied / "run" / "model.safetensors").unlink()
    monkeypatch.chdir(copied)
    run("photos/", copied / "run")
    assert same(whole / "run", copied / "run")
    run(f"{copied}/photos/../photos", copied / "run")
    assert RunFolder(copied / "run").config().get("data_changes") is None


def test_an_added_image_is_named_and_accepted(copied):
    (copied / "run" / "model.safetensors").unlink()
    Image.new("RGB", (16, 16), "red").save(copied / "photos" / "red.png")
    with pytest.raises(
        ValueError, match=r"1 image added \(red\.png\).*--accept-changed-data.*--init"
    ) as error:
        run(copied / "photos", copied / "run")
    assert "\n" not in str(error.value)
    _, notes = run(copied / "photos", copied / "run", accept_changed_data=True)
    assert "1 image added (red.png)" in notes
    assert RunFolder(copied / "run").config()["data_changes"] == ["1 image added (red.png)"]
    assert RunFolder(copied / "run").finished
    run(copied / "photos", copied / "run")  # needs no leave any more


def test_a_run_without_a_record_of_its_images_resumes_and_gets_one(copied):
    record = copied / "run" / "images.parquet"
    record.unlink()
    run(copied / "photos", copied / "run")
    assert record.exists()
    record.unlink()
    (copied / "photos" / "00.png").unlink()
    with pytest.raises(ValueError, match=r"its images changed \(which ones was not recorded"):
        run(copied / "photos", copied / "run")


def test_two_sources_of_one_name_have_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "a" / "photos", 10)
    photos(tmp_path / "b" / "photos", 12)
    for _ in range(2):
        first, second = (run(tmp_path / side / "photos", None)[0].out for side in "ab")
        assert (first.name, second.name) == ("photos-simclr-vit-n-8", "photos-simclr-vit-n-8-2")


# ---------------------------------------------------------------- a later end
def test_a_finished_run_is_extended(whole, copied):
    folder = RunFolder(copied / "run")
    with pytest.raises(ValueError, match=r"end\.steps: 3 there, 6 now.*--extend continues|add --extend"):
        run(copied / "photos", folder.path, steps=6)
    result, notes = run(copied / "photos", folder.path, steps=6, extend=True)
    assert result.steps == 6
    assert "extended to 6 steps" in notes
    config = folder.config()
    assert config["end"] == {"steps": 6}
    assert config["extended"] == [{"step": 3, "end": {"steps": 3}}]
    assert folder.finished
    rates = {line["step"]: line["lr"] for line in folder.metrics() if line["event"] == "step"}
    assert rates[4] > rates[3]  # the stretched schedule's
    run(copied / "photos", folder.path, steps=6)  # the same with and without --extend
    with pytest.raises(ValueError, match="has made 6 steps already"):
        run(copied / "photos", folder.path, steps=5, extend=True)
    with pytest.raises(ValueError, match="later end"):
        pretrain(copied / "photos", out=folder.path, extend=True, **TINY)


def test_an_extension_that_is_killed_goes_on_to_the_same_end(copied):
    folder = RunFolder(copied / "run")
    folder.revise({"end": {"steps": 6}, "extended": [{"step": 3, "end": {"steps": 3}}]})  # and no step since
    assert not folder.finished
    assert run(copied / "photos", folder.path, steps=6)[0].steps == 6
    assert folder.finished


# ---------------------------------------------------------------- evaluate
def test_a_run_folder_that_cannot_be_written_keeps_no_figures_from_the_user(whole, monkeypatch):
    images = omma.data.sources.collection.ArrayImages(
        np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8), np.arange(40) % 2, ("a", "b")
    )
    monkeypatch.setattr(files.os, "replace", _read_only)
    result = evaluate(whole / "run", images, protocols=("knn",), device="cpu", cache=None, floors=False)
    assert any(
        "evaluation.json" in note and "Read-only" in note and "--json" in note for note in result.notes
    )
    assert result.results


def _read_only(*_):
    raise OSError(30, "Read-only file system")


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_everything_that_a_run_writes_can_be_read_by_others(whole):
    private = [p for p in (whole / "run").rglob("*") if p.is_file() and p.stat().st_mode & 0o044 != 0o044]
    assert [p.name for p in private if p.name != ".lock"] == []
    assert json.loads((whole / "run" / "model.json").read_text())["digests"].keys() == {"model.safetensors"}


def test_images_that_an_earlier_session_could_not_read_stay_listed(copied):
    """Which it found in training; not those that it could not access, which may have changed."""
    earlier = [("05.png", "cut off"), ("06.png", str(Inaccessible("permission denied"))), ("=7.png", "cut")]
    write_skipped(copied / "run" / "skipped.csv", earlier)
    run(copied / "photos", copied / "run", steps=4, extend=True)
    lines = (copied / "run" / "skipped.csv").read_text().splitlines()
    assert lines == ["path,reason", "05.png,cut off", "'=7.png,cut"]


def test_a_run_too_short_for_its_warmup_says_so(tmp_path):
    """And one whose recipe has what this version does not know is refused with the reason."""
    images = photos(tmp_path / "photos")
    paper = {"recipe": "paper", "options": {"hidden": 16, "out": 8}}
    _, notes = run(images, tmp_path / "run", **paper)
    assert "the 10 epochs of the recipe paper are too long for 1.5 epochs" in notes
    _, notes = run(images, tmp_path / "small")
    assert "warm-up" not in notes
    config = tmp_path / "run" / "config.json"
    settings = json.loads(config.read_text())
    settings["settings"] |= {"unheard_of": 1}
    config.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"unheard_of: 1 there.*with the version of omma that began"):
        run(images, tmp_path / "run", **paper)


# SimCLR's has LARS, DINO's clips each tensor, warms up and freezes in epochs
PAPER = {
    "simclr": {"hidden": 16, "out": 8},
    "dino": {"prototypes": 16, "head_hidden": 16, "head_bottleneck": 8, "crop_size": 16, "local_crops": 0},
}


def killed(images, out, method):
    """In a process of its own: a run that is killed in its fourth step."""

    def listen(event):
        if isinstance(event, Progress) and event.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    pretrain(images=images, out=out, listen=listen, checkpoint_every=1e-9, **paper_run(method))


def paper_run(method):
    return {**TINY, "method": method, "recipe": "paper", "options": PAPER[method], "steps": 30}


@pytest.mark.parametrize("method", PAPER)
def test_a_paper_run_that_is_killed_goes_on_bit_for_bit(tmp_path, method):
    images = photos(tmp_path / "photos")
    child = processes.start_own(__file__, "killed", images, tmp_path / "killed", method)
    assert child.wait(120) == -signal.SIGKILL, child.errors[-2000:]
    assert not RunFolder(tmp_path / "killed").finished
    for out in ("killed", "whole"):
        pretrain(images=images, out=tmp_path / out, **paper_run(method))
    one, two = (
        torch.load(checkpoint.paths(tmp_path / out / "checkpoints")[-1], weights_only=True)
        for out in ("killed", "whole")
    )
    moments = {"momentum", "step"} if method == "simclr" else {"exp_avg", "exp_avg_sq", "step"}
    assert {key for entry in one["optimizer"]["state"].values() for key in entry} == moments
    assert str(one["optimizer"]) == str(two["optimizer"])
    assert all(torch.equal(value, two["method"][name]) for name, value in one["method"].items())


# ---------------------------------------------------------------- what a program holds
class Pairs(Dataset):
    """Items (picture, label)."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, i):
        return Image.fromarray(self.values[i]), i % 2


def hub(values, folder):
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": [*map(Image.fromarray, values)]}, features=features)


HELD = {
    "data set": lambda values, folder: Pairs(values),
    "Hugging Face": hub,
    "array": lambda values, folder: values,
    "paths": lambda values, folder: sorted(photos(folder / "photos").iterdir()),
}


@pytest.mark.parametrize("kind", HELD)
def test_a_run_on_what_a_program_holds_is_interrupted_and_goes_on_bit_for_bit(tmp_path, kind):
    def images():  # made anew, as by a new process
        return HELD[kind](np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8), tmp_path)

    def interrupt(event):
        if isinstance(event, Progress) and event.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    run(images(), tmp_path / "whole")
    stopped = pretrain(images(), out=tmp_path / "run", steps=3, listen=interrupt, **TINY)
    assert (stopped.steps, stopped.stopped_by) == (2, signal.SIGINT)  # the next step notices
    with pytest.raises(ValueError, match=r"Python program: go on there with omma\.pretrain, or name images"):
        repeat.read(tmp_path / "run", "pretrain", ())
    assert repeat.read(tmp_path / "run", "pretrain", ("images",)).options["method"] == "simclr"
    result, notes = run(images(), tmp_path / "run")
    assert (result.steps, result.stopped_by) == (3, None), notes
    assert same(tmp_path / "run", tmp_path / "whole")
