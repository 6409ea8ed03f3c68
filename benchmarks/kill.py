"""Kill omma at random moments, repeat the command, and compare with an uninterrupted run, bit for bit.

    python benchmarks/kill.py [--kills 200] [--seed 0] [--only WORD] [--state kills.jsonl]

Each trial is a process that is killed with signal 9 once or twice: at a random time, or when it has just
written, or is about to rename, a random file. Then the same command runs to its end. What it leaves must be
that of a run that nobody killed: weights, optimizer, losses, tables, caches, figures. Temporary files that
are left over are listed. Trials are forked from one process that has imported everything; trial N is drawn
from (seed, N), and those that --state holds are not repeated.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed
from PIL import Image
from safetensors.torch import load_file

import omma.cli
import omma.verbs.demo
import omma.verbs.embed
import omma.verbs.evaluate
import omma.verbs.export
import omma.verbs.pretrain
import omma.verbs.report
from omma.data.batches import loader
from omma.pretraining.folder import RunFolder
from omma.train import checkpoint

SIZE, STEPS = 16, 8
LONGEST = 300.0  # seconds that a command may take
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


def cases(data: Path) -> list[Case]:
    """All of them; data: of `make_data`, with a finished run in `run`."""
    made = []
    for number, (method, (model, options)) in enumerate(METHODS.items()):
        for precision in ("fp32", "bf16"):
            for workers in (0, 2):
                cache = number % 2 == 0 and workers == 0  # decoded images on disk
                words = _pretrain(data, method, model, options, precision, workers, cache)
                name = f"pretrain {method} {precision} workers {workers}{' cache' * cache}"
                made.append(Case(name, words, _run_left))
    two = _pretrain(data, "simclr", "vit-n/8", "", "fp32", 0, False)
    made.append(Case("pretrain on two processes", two, _run_left, 2))

    def copied(folder: Path) -> Path:
        if not (folder / "run").exists():
            shutil.copytree(data / "run", folder / "run")
        return folder / "run"

    images = str(data / "images")
    for processes in (1, 2):
        made.append(Case(
            f"embed on {processes}",
            lambda f: ["embed", str(data / "run"), images, "--out", str(f / "x.parquet"), "--batch", "8"],
            _table_left, processes,
        ))  # fmt: skip
    made.append(Case("evaluate", lambda f: ["evaluate", str(copied(f)), images], _figures_left))
    for form in ("safetensors", "timm"):
        made.append(Case(
            f"export {form}", lambda f, form=form: [
                "export", str(data / "run"), form, "--out", str(f / "out"), "--images", images,
            ], _export_left,
        ))  # fmt: skip
    return made


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


def _run_left(folder: Path) -> dict[str, Any]:
    run = RunFolder(folder / "run")
    saved, damaged = checkpoint.newest(run.checkpoints)
    assert saved is not None, "no checkpoint is whole"
    assert not damaged, damaged
    assert run.report.exists(), "no report"
    lines = run.metrics()
    losses = [(x["step"], x["loss"], x["lr"]) for x in lines if x["event"] == "step"]
    pixels = sorted((folder / "cache").glob("pixels-*/*.pixels"))
    return {
        "result": (run.result(thorough=True) or {}).get("steps"),
        "weights": dict(load_file(run.path / "model.safetensors")),
        "method": saved.method,
        "optimizer": saved.optimizer,
        "losses": losses,
        "cache": [path.read_bytes() for path in pixels],
    }


def _table_left(folder: Path) -> dict[str, Any]:
    table = pq.read_table(folder / "x.parquet")
    return {"table": table.to_pydict(), "rest": sorted(p.name for p in folder.glob(".x*"))}


def _figures_left(folder: Path) -> dict[str, Any]:
    figures = RunFolder(folder / "run").evaluation()
    features = sorted((folder / "run" / "features").glob("*.safetensors"))
    return {
        "figures": {k: figures[k] for k in ("results", "comparisons")},
        "features": [dict(load_file(file)) for file in features],
        "report": (folder / "run" / "report.html").exists(),
    }


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


# ---------------------------------------------------------------- processes
def start(words: list[str], folder: Path, die_at: tuple[str, int] | None = None, **variables: str) -> int:
    """Fork a process that runs the command line; die_at: it kills itself at this write."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(variables, OMMA_CACHE=str(folder / "cache"))
        loader.fits_in_memory = lambda images: False  # so that workers and caches are used
        if die_at is not None:
            _die_at(*die_at)
        omma.cli.main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _die_at(when: str, count: int) -> None:
    """Kill this process before or after the count-th rename, the commit of every file."""
    rename, left, own = os.replace, [count], os.getpid()

    def replace(*args: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] == 0 and when == "before" and os.getpid() == own:
            os.kill(own, signal.SIGKILL)
        rename(*args, **options)
        if left[0] == 0 and os.getpid() == own:
            os.kill(own, signal.SIGKILL)

    os.replace = replace


def launch(case: Case, folder: Path, **options: Any) -> list[int]:
    """All processes of the command."""
    words = case.words(folder)
    if case.processes == 1:
        return [start(words, folder, **options)]
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    STORES.append(store)
    common = {"WORLD_SIZE": str(case.processes), "LOCAL_WORLD_SIZE": str(case.processes)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    return [
        start(words, folder, **options, RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank in range(case.processes)
    ]


STORES: list[Any] = []


def wait(pids: list[int]) -> list[int]:
    """Exit statuses; minus the signal of a process that was killed."""
    end, statuses = time.monotonic() + LONGEST, {}
    while len(statuses) < len(pids):
        for pid in pids:
            if pid not in statuses and (done := os.waitpid(pid, os.WNOHANG))[0]:
                statuses[pid] = os.waitstatus_to_exitcode(done[1])
        if time.monotonic() > end:
            for pid in pids:
                if pid not in statuses:
                    os.kill(pid, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.01)
    STORES.clear()
    return [statuses[pid] for pid in pids]


def finish(case: Case, folder: Path) -> str:
    """Run the command to its end; returns what is wrong, "" if nothing is."""
    for _ in range(60):
        (folder / "log").write_text("")
        statuses = wait(launch(case, folder))
        log = (folder / "log").read_text()
        if not any(statuses):
            return ""
        if "by another process" not in log:  # workers of a killed process keep its lock for seconds
            break
        time.sleep(0.5)
    return f"exit status {statuses}: {log[-400:]}"


# ---------------------------------------------------------------- trials
def trial(case: Case, folder: Path, seconds: float, rng: random.Random) -> tuple[str, int]:
    """One killed command; returns what is wrong, "" if nothing is, and how many kills hit."""
    hits = 0
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.choice(("time", "before", "after"))
        victim = rng.randrange(case.processes)
        if kind == "time":
            pids = launch(case, folder)
            time.sleep(rng.uniform(0, seconds))
            os.kill(pids[victim], signal.SIGKILL)  # a zombie if it is over
        else:
            pids = launch(case, folder, die_at=(kind, rng.randint(1, 24)))
        hits += -signal.SIGKILL in wait(pids)
    return finish(case, folder), hits


def partials(folder: Path) -> list[str]:
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.endswith(".partial")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name has this word")
    parser.add_argument("--state", type=Path, default=Path("kills.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    home = Path(tempfile.mkdtemp(prefix="kill-"))
    make_data(home)
    warm = Case("warm", _pretrain(home, "simclr", "vit-n/8", "", "fp32", 0, False), _run_left)
    assert not (why := finish(warm, home)), why
    lines = args.state.read_text().splitlines() if args.state.exists() else []
    done = {line["trial"]: line for line in map(json.loads, lines) if line["seed"] == args.seed}
    chosen = [case for case in cases(home) if args.only in case.name]
    references: dict[str, tuple[dict[str, Any], float]] = {}
    kills, number = sum(line["hits"] for line in done.values()), -1
    while kills < args.kills:
        number += 1
        if number in done:
            continue
        case, rng = chosen[number % len(chosen)], random.Random(f"{args.seed} {number}")
        if case.name not in references:
            folder = Path(tempfile.mkdtemp(dir=home))
            begun = time.monotonic()
            assert not (why := finish(case, folder)), f"{case.name}: {why}"
            references[case.name] = case.left(folder), time.monotonic() - begun
        reference, seconds = references[case.name]
        folder = Path(tempfile.mkdtemp(dir=home))
        why, hits = trial(case, folder, seconds, rng)
        if not why:
            try:
                left = case.left(folder)
                different = [key for key in reference if not equal(reference[key], left[key])]
                why = f"different: {', '.join(different)}" if different else ""
            except (AssertionError, OSError, ValueError) as error:
                why = f"{type(error).__name__}: {error}"
        line = {"seed": args.seed, "trial": number, "case": case.name, "hits": hits, "wrong": why}
        line["left"] = partials(folder)
        with open(args.state, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        done[number], kills = line, kills + hits
        rest = f", left over: {line['left']}" if line["left"] else ""
        print(f"{kills:4} kills  {case.name}: {why or 'equal'}{rest}", flush=True)
        if not why:
            shutil.rmtree(folder)
    summary(list(done.values()))
    shutil.rmtree(home)
    sys.exit(any(line["wrong"] for line in done.values()))


def summary(lines: list[dict[str, Any]]) -> None:
    """Counts, a line for each case."""
    by_case: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for line in lines:
        by_case[line["case"]].append(line)
    for name, each in sorted(by_case.items()):
        wrong = sum(bool(line["wrong"]) for line in each)
        print(f"{name}: {sum(line['hits'] for line in each)} kills in {len(each)} trials, {wrong} wrong")
    print(f"{sum(line['hits'] for line in lines)} kills, {sum(bool(x['wrong']) for x in lines)} wrong")


if __name__ == "__main__":
    main()
