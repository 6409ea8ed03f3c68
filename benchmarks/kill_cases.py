"""What benchmarks/kill.py kills: small commands of omma, and what each must leave."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from omma.evaluation import history
from omma.pretraining.folder import EVALUATION, RunFolder
from omma.train import checkpoint

SIZE, STEPS = 16, 8
DECODER = "--method.decoder-dim 16 --method.decoder-depth 1 --method.decoder-heads 2"
METHODS = {
    "dino": ("vit-n/8", "--method.prototypes 16 --method.head-hidden 16 --method.head-bottleneck 8"),
    "mae": ("vit-n/4", DECODER),
    "simclr": ("vit-n/8", ""),
    "moco": ("vit-n/8", "--method.queue 32"),
    "vqvae": ("vit-n/8", f"--method.codes 16 {DECODER}"),
    "clip": ("vit-n/8", ""),
}  # fmt: skip
SMALL = "--model.depth 1 --model.dim 16 --model.heads 2 --model.hidden 16"


@dataclass(frozen=True)
class Case:
    """A command, what it leaves, and how many processes run it."""

    name: str
    words: Callable[[Path], list[str]]  # of the folder of one trial
    left: Callable[[Path], dict[str, Any]]
    processes: int = 1


# ---------------------------------------------------------------- data and cases
def make_data(folder: Path) -> None:
    """Pictures in class folders, and a table of them with captions."""
    rng, rows = np.random.default_rng(0), ["path,caption"]
    for k in range(48):
        side = "left" if k % 2 else "right"
        path = folder / "images" / side / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 120, (20, 20, 3), np.uint8)
        pixels[:, :10] += np.uint8(120 * (k % 2))
        Image.fromarray(pixels).save(path)
        rows.append(f"{path},bright on the {side} in picture {k}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    shutil.make_archive(str(folder / "images"), "zip", folder / "images")


def cases(data: Path) -> list[Case]:
    """All of them; data: of `make_data`, with a finished run in `run`."""
    made = []
    for number, (method, (model, options)) in enumerate(METHODS.items()):
        for precision in ("fp32", "bf16"):
            for workers in (0, 2):
                cache = number % 2 == 0 and workers == 0  # decoded images on disk
                words = _pretrain(data, method, model, options, precision, workers, cache)
                name = f"pretrain {method} {precision} workers {workers}{' cache' * cache}"
                made.append(Case(name, words, run_left))
    for shard in ("none", "fsdp"):
        words = _pretrain(data, "dino", "vit-n/8", f"{METHODS['dino'][1]} --shard {shard}", "fp32", 0, False)
        made.append(Case(f"pretrain on two processes, shard {shard}", words, run_left, 2))

    def copied(folder: Path) -> Path:
        if not (folder / "run").exists():
            shutil.copytree(data / "run", folder / "new")
            (folder / "new").rename(folder / "run")
        return folder / "run"

    for adapt in ("full", "lora"):
        words = _finetune(data, adapt)
        made.append(Case(f"finetune {adapt}", words, run_left))

    run, images, archive = str(data / "run"), str(data / "images"), str(data / "images.zip")
    for name, source, processes in (
        ("embed", images, 1),
        ("embed an archive", archive, 1),
        ("embed on two processes", images, 2),
    ):
        made.append(Case(
            name, lambda f, s=source: ["embed", run, s, "--out", str(f / "x.parquet")],
            _table_left, processes,
        ))  # fmt: skip
    made.append(Case("evaluate", lambda f: ["evaluate", str(copied(f)), images], _figures_left))
    made.append(Case("report", lambda f: ["report", str(copied(f)), images], _report_left))
    for form in ("safetensors", "timm"):
        made.append(Case(
            f"export {form}",
            lambda f, form=form: (
                ["export", run, "--format", form, "--out", str(f / "out"), "--images", images]
            ),
            _export_left,
        ))  # fmt: skip
    return made


def warm(home: Path) -> Case:
    """The one that leaves the finished run."""
    return Case("warm", _pretrain(home, "simclr", "vit-n/8", "", "fp32", 0, False), run_left)


def _pretrain(
    data: Path, method: str, model: str, options: str, precision: str, workers: int, cache: bool
) -> Callable[[Path], list[str]]:
    images = data / ("captions.csv" if method == "clip" else "images")
    words = (
        f"pretrain {images} --method {method} --model {model} {options} {SMALL} --image-size {SIZE} "
        f"--steps {STEPS} --batch-size 8 --precision {precision} --workers {workers} --device cpu "
        f"--checkpoint-every 0.001 {'--cache' * cache}"
    ).split()
    return lambda folder: [*words, "--out", str(folder / "run")]


def _finetune(data: Path, adapt: str) -> Callable[[Path], list[str]]:
    words = (
        f"finetune {data / 'run'} {data / 'images'} --adapt {adapt} --steps {STEPS} --batch-size 8 "
        "--precision fp32 --workers 0 --device cpu --checkpoint-every 0.001 --method.ema 0.9"
    ).split()
    return lambda folder: [*words, "--out", str(folder / "run")]


def run_left(folder: Path) -> dict[str, Any]:
    run = RunFolder(folder / "run")
    saved, damaged = checkpoint.newest(run.checkpoints)
    assert saved is not None, "no checkpoint is whole"
    assert not damaged, damaged
    assert run.report.exists(), "no report"
    method, optimizer = saved.method, saved.optimizer
    if saved.folder is not None:  # shards
        dcp_to_torch_save(saved.folder, folder / "joined")
        method, optimizer = torch.load(folder / "joined", weights_only=True), {}
    lines = run.metrics()
    losses = [(x["step"], x["loss"], x["lr"]) for x in lines if x["event"] == "step"]
    pixels = sorted((folder / "cache").glob("pixels-*/*.pixels"))
    return {
        "result": (run.result(thorough=True) or {}).get("steps"),
        "weights": dict(load_file(run.path / "model.safetensors")),
        "beside": json.loads((run.path / "model.json").read_text())["digests"],
        "held out": [x for x in lines if x["event"] == "holdout"],
        "method": method,
        "optimizer": optimizer,
        "losses": losses,
        "cache": [path.read_bytes() for path in pixels],
    }


def _table_left(folder: Path) -> dict[str, Any]:
    table = pq.read_table(folder / "x.parquet")
    return {"table": table.to_pydict(), "rest": sorted(p.name for p in folder.glob(".x*"))}


def _figures_left(folder: Path) -> dict[str, Any]:
    (figures,) = history.read(folder / "run" / EVALUATION)
    features = sorted((folder / "run" / "features").glob("*.safetensors"))
    return {
        "figures": {k: figures[k] for k in ("results", "comparisons")},
        "features": [dict(load_file(file)) for file in features],
    }


def _report_left(folder: Path) -> dict[str, Any]:
    return {"report": (folder / "run" / "report.html").read_text()}


def _export_left(folder: Path) -> dict[str, Any]:
    weights = dict(load_file(folder / "out" / "model.safetensors"))
    return {"weights": weights, "files": sorted(p.name for p in (folder / "out").iterdir())}


def equal(a: Any, b: Any) -> bool:
    """The same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def close(a: Any, b: Any) -> bool:
    """The same but for rounding, of which AdamW makes up to 3e-4 in weights."""
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-3, atol=3e-4)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(close, a, b))
    return math.isclose(a, b, rel_tol=1e-4) if isinstance(a, float) else a == b
