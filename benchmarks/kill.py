"""Kill omma at random moments, repeat the command, and compare with an uninterrupted run, bit for bit.

    python benchmarks/kill.py [--kills 200] [--seed 0] [--only WORD] [--state kills.jsonl]

Each trial is a command that is killed with signal 9 two to six times: at a random time, or before or after
the rename that commits a random file, or before it with half of the file written. After each kill, every
file with its final name must be whole. Then the same command runs to its end, and what it leaves must be that
of a run that nobody killed: weights, optimizer, losses, tables, caches, figures. Commands on two processes
lose one of them, and go on with one or two. Temporary files that are left over are listed. Trials are forked
from one process that has imported everything; trial N is drawn from (seed, N), and those that --state holds
are not repeated.
"""

import argparse
import collections
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import torch
import torch.distributed
from kill_cases import Case, cases, close, equal, make_data, run_left, warm
from safetensors.torch import load_file

import omma.cli
import omma.verbs.demo
import omma.verbs.embed
import omma.verbs.evaluate
import omma.verbs.export
import omma.verbs.finetune
import omma.verbs.pretrain
import omma.verbs.report
from omma.core import files
from omma.data.batches import decoded_cache, loader
from omma.features import table
from omma.ops.cpu import library

LONGEST = 600.0  # seconds that a command may take


# ---------------------------------------------------------------- processes
@dataclass(frozen=True)
class Point:
    """Where a process kills itself: at the count-th rename to a name like `name`, the commit of a file."""

    when: str  # before, after; half: before, with half of the new file cut off, as if still being written
    name: str  # digits as #
    count: int


def start(words: list[str], folder: Path, point: Point | None = None, **variables: str) -> int:
    """Fork a process that runs the command line; what it commits is listed in `renames`."""
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
        decoded_cache.SMALLEST, table.ROWS = 16, 16  # so that caches have parts, and tables shards
        files.YOUNG = 0.0  # trials take seconds
        vars(sys.modules["omma.verbs.embed"])["batch_size"] = lambda *arguments: 8
        _watch_renames(folder, point)
        omma.cli.main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            (folder / "modules").write_text("\n".join(sys.modules))
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def pattern(path: Any) -> str:
    """A file's name without what differs from run to run: digits, hashes."""
    return re.sub(r"[0-9]+", "#", re.sub(r"[0-9a-f]{32}", "#", os.path.basename(path)))


def _watch_renames(folder: Path, point: Point | None) -> None:
    own, seen = os.getpid(), 0

    def watched(rename: Callable[..., Any]) -> Callable[..., Any]:
        def replace(source: Any, target: Any, **options: Any) -> None:
            nonlocal seen
            name = pattern(target)
            mine = point is not None and os.getpid() == own and name == point.name
            seen += mine
            due = mine and seen == point.count
            if due and point.when == "half" and os.path.isfile(source):
                os.truncate(source, os.path.getsize(source) // 2)
            if due and point.when != "after":
                os.kill(own, signal.SIGKILL)
            rename(source, target, **options)
            with open(folder / "renames", "a") as file:
                file.write(name + "\n")
            if due:
                os.kill(own, signal.SIGKILL)

        return replace

    os.replace, os.rename = watched(os.replace), watched(os.rename)


def launch(
    case: Case, folder: Path, point: Point | None = None, victim: int = 0, processes: int | None = None
) -> list[int]:
    """All processes of the command; the victim kills itself at the point."""
    words, processes = case.words(folder), processes or case.processes
    if processes == 1:
        return [start(words, folder, point)]
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    STORES.append(store)
    common = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    return [
        start(
            words, folder, point if rank == victim else None, RANK=str(rank), LOCAL_RANK=str(rank), **common
        )
        for rank in range(processes)
    ]


STORES: list[Any] = []


def wait(pids: list[int]) -> list[int]:
    """Exit statuses; minus the signal of a process that was killed. AssertionError if one never ends."""
    end, statuses, late = time.monotonic() + LONGEST, {}, False
    while len(statuses) < len(pids):
        for pid in pids:
            if pid not in statuses and (done := os.waitpid(pid, os.WNOHANG))[0]:
                statuses[pid] = os.waitstatus_to_exitcode(done[1])
        if time.monotonic() > end:
            late, end = True, float("inf")
            for pid in pids:
                if pid not in statuses:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    STORES.clear()
    assert not late, f"a process goes on after {LONGEST:.0f} s"
    return [statuses[pid] for pid in pids]


def finish(case: Case, folder: Path) -> None:
    """Run the command to its end. AssertionError if it does not end well."""
    for _ in range(60):
        (folder / "log").write_text("")
        statuses = wait(launch(case, folder))
        log = (folder / "log").read_text()
        if not any(statuses):
            return
        if "by another process" not in log:  # workers of a killed process keep its lock for seconds
            break
        time.sleep(0.5)
    raise AssertionError(f"exit status {statuses}: {log[-1500:]}")


# ---------------------------------------------------------------- trials
@dataclass(frozen=True)
class Reference:
    """An uninterrupted run."""

    left: dict[str, Any]
    seconds: float
    renames: dict[str, int]  # how often it commits each file

    @classmethod
    def of(cls, case: Case, home: Path) -> "Reference":
        folder, begun = Path(tempfile.mkdtemp(dir=home)), time.monotonic()
        finish(case, folder)
        seconds = time.monotonic() - begun
        renames = (folder / "renames").read_text().split("\n")[:-1]
        left = case.left(folder)
        shutil.rmtree(folder)
        return cls(left, seconds, collections.Counter(renames))


def trial(case: Case, folder: Path, reference: Reference, rng: random.Random, at: list[str]) -> None:
    """Kill a command several times, let it end, and compare; `at` gets where it was killed.

    AssertionError says what is wrong.
    """
    rounding = False
    for _ in range(rng.randint(2, 6)):
        kind = rng.choice(("time", "before", "half", "after"))
        processes = rng.choice((1, 2)) if case.processes > 1 else 1
        victim = rng.randrange(processes)
        if kind == "time" or victim:  # process 0 commits nearly all files
            kind, name = "time", ""
            pids = launch(case, folder, processes=processes)
            time.sleep(rng.uniform(0, reference.seconds))
            os.kill(pids[victim], signal.SIGKILL)  # a zombie if it is over
        else:
            name = rng.choice(sorted(reference.renames))
            point = Point(kind, name, rng.randint(1, min(reference.renames[name], 6)))
            pids = launch(case, folder, point, processes=processes)
        if -signal.SIGKILL in wait(pids):
            at.append(f"{kind} {name}".strip())
            rounding |= processes != case.processes  # sums in another order
        assert not (found := broken(folder)), f"not whole after a kill: {found}"
    finish(case, folder)
    left = case.left(folder)
    same = close if rounding and case.left is run_left else equal
    different = [key for key in reference.left if not same(reference.left[key], left[key])]
    assert not different, f"different: {', '.join(different)}"


def leftovers(folder: Path) -> list[str]:
    """Temporary files."""
    found = {p.relative_to(folder) for p in folder.rglob("*") if re.search(r"\.partial$|^\.tmp", p.name)}
    return sorted(str(path) for path in found)


READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": lambda path: zipfile.ZipFile(path).testzip(),  # None is well
    ".safetensors": lambda path: load_file(path) and None,
    ".json": lambda path: json.loads(path.read_text()) and None,
    ".parquet": lambda path: pq.read_table(path) and None,
    ".arrow": lambda path: ipc.open_file(path).read_all() and None,
}


def broken(folder: Path) -> list[str]:
    """Files under their final names that are not whole."""
    found = []
    for path in folder.rglob("*"):
        if path.suffix in READERS and not any(p.endswith(".partial") for p in path.relative_to(folder).parts):
            try:
                if (wrong := READERS[path.suffix](path)) is not None:
                    found.append(f"{path.relative_to(folder)}: {wrong}")
            except Exception as error:
                found.append(f"{path.relative_to(folder)}: {error}")
    return found


# ---------------------------------------------------------------- the campaign
def warm_up(home: Path, every: list[Case]) -> None:
    """Import what the commands import, so that no fork must; a finished run is left in `home`/run."""
    for case in (
        warm(home),
        *(c for c in every if c.name in ("evaluate", "report", "export timm", "embed")),
    ):
        folder = home if case.name == "warm" else Path(tempfile.mkdtemp(dir=home))
        finish(case, folder)
        for name in (folder / "modules").read_text().splitlines():
            if name.partition(".")[0] in ("omma", "torch", "numba", "pyarrow", "timm", "sklearn", "scipy"):
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
    os.environ["OMMA_CACHE"] = str(home / "cache")
    library.load()


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
    every = cases(home)
    warm_up(home, every)
    lines = args.state.read_text().splitlines() if args.state.exists() else []
    done = {line["trial"]: line for line in map(json.loads, lines) if line["seed"] == args.seed}
    references: dict[str, Reference] = {}
    number = -1
    while sum(len(line["at"]) for line in done.values()) < args.kills or (number + 1) % len(every):
        number += 1
        case = every[number % len(every)]
        if number in done or args.only not in case.name:
            continue
        begun = time.monotonic()
        if case.name not in references:
            references[case.name] = Reference.of(case, home)
        folder, at, wrong = Path(tempfile.mkdtemp(dir=home)), [], ""
        try:
            trial(case, folder, references[case.name], random.Random(f"{args.seed} {number}"), at)
        except (AssertionError, OSError, ValueError) as error:
            wrong = f"{type(error).__name__}: {error}"
        line = {"seed": args.seed, "trial": number, "case": case.name, "at": at, "wrong": wrong}
        line["left"] = leftovers(folder)
        with open(args.state, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        done[number] = line
        rest = f", left over: {line['left']}" if line["left"] else ""
        seconds = time.monotonic() - begun
        print(f"{number:3} {case.name}: killed {at}: {wrong or 'equal'}{rest}, {seconds:.1f} s", flush=True)
        if wrong:
            print(f"    see {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    summary(list(done.values()))
    sys.exit(any(line["wrong"] for line in done.values()))


def summary(lines: list[dict[str, Any]]) -> None:
    """Counts, a line for each case, and for each file at whose commit commands were killed."""
    by_case: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for line in lines:
        by_case[line["case"]].append(line)
    for name, each in sorted(by_case.items()):
        wrong = sum(bool(line["wrong"]) for line in each)
        print(f"{name}: {sum(len(line['at']) for line in each)} kills in {len(each)} trials, {wrong} wrong")
    for at, count in sorted(collections.Counter(at for line in lines for at in line["at"]).items()):
        print(f"  {at}: {count}")
    kills, wrong = (sum(len(x["at"]) for x in lines), sum(bool(x["wrong"]) for x in lines))
    print(f"{kills} kills in {len(lines)} trials, {wrong} wrong")


if __name__ == "__main__":
    main()
