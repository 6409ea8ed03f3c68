"""Training by many processes, as torchrun starts them: equal to one, spread, stopped, killed, resumed."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import distributed_runs as worker
import numpy as np
import processes
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from omma import backbones, weights
from omma.core import dist
from omma.core.protocols import Preprocess
from omma.pretraining.folder import RunFolder
from omma.train import checkpoint

CLOSE = 3e-4  # what AdamW makes of rounding in weights that it moves by up to 1e-3 a step


def many(count: int, folder: Path) -> list[dict]:
    """What each of the processes reports."""
    processes.finish(processes.ranks(count, worker.main, count, folder))
    return [json.loads((folder / f"results-{count}-{rank}.json").read_text()) for rank in range(count)]


def commands(count: int, *words: str, **options) -> tuple[list[int], str, str]:
    """The command line in several processes: their statuses, and all that they print."""
    children = processes.ranks(count, processes.omma, *words, **options)
    statuses = [child.wait() for child in children]
    return statuses, "".join(child.text for child in children), "".join(child.errors for child in children)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With weights for the runs that start from some."""
    path = tmp_path_factory.mktemp("many")
    thirds, ends = (0.5,) * 3, {"low": (0.0,) * 3, "high": (255.0,) * 3}
    prepared = Preprocess(size=16, channels=3, mean=thirds, std=thirds, **ends)
    torch.manual_seed(0)
    weights.save(path / "start", backbones.build(name="vit-n/4", image_size=16, depth=3), prepared)
    return path


@pytest.fixture(scope="module")
def two(folder):
    return many(2, folder)


@pytest.fixture(scope="module")
def one(folder, two):
    """The same runs on one process."""
    for name, options in worker.RUNS.items():
        worker.run(folder / "one" / name, **options)
    worker.run(folder / "one" / "bf16", **{**worker.RUNS["dino"], "precision": "bf16"})
    return folder / "one"


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in RunFolder(run).metrics() if line["event"] == "step"]


def norms(run: Path) -> list[float]:
    return [line["gradient_norm"] for line in RunFolder(run).metrics() if line["event"] == "step"]


def furthest(a: Path, b: Path) -> float:
    """The largest difference of two runs' weights.

    The last shift is left out: a batch norm follows it in SimCLR, so its gradient is mere rounding, of which
    AdamW makes whole steps.
    """
    one, two = (load_file(run / "model.safetensors") for run in (a, b))
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one.keys() - {"norm.bias"})


@pytest.mark.parametrize("name", worker.RUNS)
def test_two_processes_equal_one_with_the_joined_batch(folder, one, name):
    assert losses(folder / name) == pytest.approx(losses(one / name), rel=1e-5)
    assert furthest(folder / name, one / name) < CLOSE


@pytest.mark.parametrize("name", worker.SHARDED)
def test_spread_blocks_give_what_whole_ones_give(folder, two, name):
    spread = folder / f"{name}-sharded"
    assert losses(spread) == pytest.approx(losses(folder / name), rel=1e-5)
    assert norms(spread) == pytest.approx(norms(folder / name), rel=3e-6)
    assert furthest(spread, folder / name) < CLOSE / 20
    assert all(path.is_dir() for path in checkpoint.paths(spread / "checkpoints"))


def test_in_bf16_too(folder, two, one):
    """After one step, whose gradients are the same but for rounding, bf16's AdamW goes its own ways."""
    first, single = (RunFolder(run / "bf16").metrics()[1] for run in (folder, one))
    assert first["event"] == single["event"] == "step"
    assert first["loss"] == pytest.approx(single["loss"], rel=1e-3)
    assert first["gradient_norm"] == pytest.approx(single["gradient_norm"], rel=2e-3)
    spread, whole = losses(folder / "bf16-sharded"), losses(folder / "bf16")
    assert spread[0] == pytest.approx(whole[0], rel=1e-5)
    # Gradients are the same bit for bit, but the norm that clips them is summed in another order where some
    # are spread. Its last bit moves fp32 weights by 1e-8; once that rounds a bf16 weight the other way,
    # all of bf16's later rounding differs. With one norm for both, all steps are equal bit for bit.
    assert spread == pytest.approx(whole, rel=1e-3)
    assert furthest(folder / "bf16-sharded", folder / "bf16") < 1e-3


def test_a_budget_ends_at_the_same_step_on_all(two):
    assert two[0]["budget"] == two[1]["budget"] > 0
    assert two[0]["planned"] == two[1]["planned"]


def test_a_signal_to_one_stops_all_after_the_same_step(folder, two):
    for name in ("stopped", "stopped-whole"):
        assert two[0][name] == two[1][name]
        steps, number = two[0][name]
        assert number == signal.SIGTERM
        assert steps in (1, 2)
        assert checkpoint.newest(folder / name / "checkpoints")[0].step == steps
    assert checkpoint.newest(folder / "stopped" / "checkpoints")[0].folder is not None


def test_what_two_have_stopped_goes_on_with_four_and_with_one(folder, two, one):
    """From shards to shards, from a whole to shards, and from shards to a whole; batches stay the same."""
    for name in ("stopped", "stopped-whole"):
        shutil.copytree(folder / name, folder / f"{name}-four")
        shutil.copytree(folder / name, folder / f"{name}-one")
    stopped = two[0]["stopped"][0]
    for result in many(4, folder):
        assert result["four"] == result["four whole"] == [stopped, 4]
    assert worker.resumed(folder / "stopped-one", **worker.RUNS["dino"]) == [stopped, 4]
    for name in ("stopped-four", "stopped-whole-four", "stopped-one"):
        assert losses(folder / name) == pytest.approx(losses(one / "dino"), rel=1e-5), name
        assert furthest(folder / name, one / "dino") < CLOSE, name


def test_a_damaged_folder_of_shards_is_passed_over(folder, two):
    copied = shutil.copytree(folder / "dino-sharded" / "checkpoints", folder / "damaged")
    (last,) = checkpoint.paths(copied)
    shutil.copytree(last, last.with_name("step-000000002"))
    data = max(last.glob("*.distcp"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-100])
    saved, damaged = checkpoint.newest(copied)
    assert saved is not None
    assert saved.folder == last.with_name("step-000000002")
    assert len(damaged) == 1
    other = max(saved.folder.glob("*.distcp"), key=lambda path: path.stat().st_size)
    whole = other.read_bytes()
    other.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])  # of the same length
    assert checkpoint.newest(copied)[0] is None
    other.write_bytes(whole)
    assert checkpoint.newest(copied)[0] is not None
    (saved.folder / ".metadata").write_bytes(
        b"cos\nsystem\n(S'true'\ntR."
    )  # a pickle that would run a command
    assert checkpoint.newest(copied)[0] is None


def test_what_processes_agree_on(two):
    for result in two:
        assert result["sums"] == [2.0, 1.0]
        assert result["broadcast"] == 5
        assert result["propagated"] == "of one is of all"
        assert "another configuration" in result["refused"]["text"]
    assert sorted(result["refused"]["kind"] for result in two) == ["AlreadyReported", "ValueError"]


# ---------------------------------------------------------------- the command line
@pytest.fixture
def images(tmp_path):
    pictures = worker.pictures()
    np.savez(tmp_path / "images.npz", images=np.stack([pictures.read(i) for i in range(len(pictures))]))
    return tmp_path / "images.npz"


def words(images, out, steps):
    return [
        "pretrain", str(images), "--out", str(out), "--steps", str(steps), "--model", "vit-n/4",
        "--batch-size", "8", "--image-size", "16", "--device", "cpu", "--precision", "fp32",
    ]  # fmt: skip


def test_errors_are_reported_once(tmp_path, images):
    """One that every process meets, and one that is met before they have found each other."""
    for wrong, message in (
        (words(tmp_path / "nothing", tmp_path / "run", 1), "nothing: not found"),
        ([*words(images, tmp_path / "run", 1), "--no-such-option"], "Unrecognized options: --no-such-option"),
    ):
        statuses, text, errors = commands(2, *wrong)
        assert (text + errors).count(message) == 1, text + errors
        assert statuses == [2, 2]


def agent(folder: Path, options: list[str]) -> tuple[str, str]:
    """What torchrun does, its workers forked from the tests' server."""
    logs = DefaultLogsSpecs(log_dir=str(folder), redirects=Std.ALL)
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
        run_id="test", max_restarts=2, monitor_interval=0.1, start_method="forkserver", logs_specs=logs,
    )  # fmt: skip
    elastic_launch(config, processes.worker)(os.environ["OMMA_CACHE"], *options)
    text, errors = (
        "".join(file.read_text() for file in sorted(folder.rglob(name)))
        for name in ("stdout.log", "stderr.log")
    )
    return text, errors


def torchrun(folder: Path, options: list[str]) -> tuple[str, str]:
    """The command itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "--max-restarts=2", "-m", "omma", *options], capture_output=True, text=True, check=False,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("launch", [agent, pytest.param(torchrun, marks=pytest.mark.slow)])
def test_a_killed_worker_resumes_by_itself_and_one_process_speaks(tmp_path, launch):
    """Also past its own readers of images, which hold its lock for some seconds after it."""
    (tmp_path / "images").mkdir()
    (tmp_path / "logs").mkdir()
    for i in range(24):  # of unlike sizes, so that they are not all kept in memory
        Image.effect_noise((18 + i % 2, 20), 60).convert("RGB").save(tmp_path / "images" / f"{i}.png")
    out = RunFolder(tmp_path / "run")
    options = [*words(tmp_path / "images", out.path, 20), "--checkpoint-every", "0.1", "--workers", "1"]
    killed: list[int] = []

    def kill() -> None:
        while not (checkpoint.paths(out.checkpoints) and (holder := _holder(out.path))):
            time.sleep(0.02)
        killed.append(holder)
        os.kill(holder, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    text, errors = launch(tmp_path / "logs", options)
    assert killed
    assert text.count("done: 20 steps") == 1, text + errors
    assert text.count("images: 24 images") == 2, text  # before and after
    assert text.count("resumed at step") == 1
    steps = [line["step"] for line in out.metrics() if line["event"] == "step"]
    assert steps == list(range(1, 21))
    assert out.finished


def test_a_restarted_worker_waits_for_the_lock(tmp_path, monkeypatch):
    """Readers of images of the one that was killed hold it a little longer."""
    out, taken = RunFolder(tmp_path / "run"), threading.Event()
    worker.run(out.path, steps=1, method="simclr")

    def hold() -> None:
        with out.locked():
            taken.set()
            time.sleep(0.5)

    ranks = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (ranks | {"TORCHELASTIC_RESTART_COUNT": "1"}).items():
        monkeypatch.setenv(name, value)
    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    assert worker.run(out.path, steps=1, method="simclr").steps == 1
    holder.join()


def test_two_processes_embed_what_one_does(tmp_path):
    """Each a share; the table is the same, bit for bit, and one speaks."""
    pixels = np.random.default_rng(0).integers(0, 256, (1030, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(1030) % 3)
    torch.manual_seed(0)
    plain = Preprocess(
        size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    weights.save(tmp_path / "run", backbones.build(name="vit-n/4", image_size=16), plain, {})
    command = ["embed", "run", "images.npz", "--device", "cpu", "--precision", "fp32", "--out"]
    statuses, text, errors = commands(2, *command, "two.parquet", cwd=tmp_path)
    assert statuses == [0, 0], errors
    assert text.count("1,030 vectors of 192 dimensions") == 1
    statuses, _, errors = commands(1, *command, "one.parquet", cwd=tmp_path)
    assert statuses == [0], errors
    one, two = (pq.read_table(tmp_path / name) for name in ("one.parquet", "two.parquet"))
    assert two.equals(one, check_metadata=True)
    assert pq.ParquetFile(tmp_path / "two.parquet").num_row_groups == 2  # a part of each
    statuses, text, errors = commands(2, *command, "ray.parquet", "--engine", "ray", cwd=tmp_path)
    assert all(statuses)
    assert (text + errors).count("leave torchrun out") == 1


def _holder(run: Path) -> int | None:
    """The process that holds a run's lock; its readers of images, which are younger, hold it with it."""
    lock = str(run / ".lock")
    holders = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(file) == lock for file in (process / "fd").iterdir()):
                holders.append(int(process.name))
    return min(holders, default=None)


def test_one_process_has_nobody_to_ask():
    assert dist.broadcast(3) == 3
    assert dist.gather_objects(3) == [3]
    assert dist.sum_floats([1.5]) == [1.5]
    dist.require_same("nothing", "x")
    with pytest.raises(ValueError, match="mine"), dist.propagate_errors():
        raise ValueError("mine")
    with dist.sequentially(), dist.process_group():
        assert not torch.distributed.is_initialized()


def test_metrics_of_a_run_without_a_checkpoint_are_restarted(tmp_path):
    worker.run(tmp_path, steps=2)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "model.safetensors").unlink()
    worker.run(tmp_path, steps=2)
    assert [line["step"] for line in RunFolder(tmp_path).metrics() if line["event"] == "step"] == [1, 2]
