"""Break the machine under small commands, and check that they say so in one line, lose nothing, or go on.

    python benchmarks/faults.py [--seed 0] [--only pretrain] [--times 3] [--folder /tmp/faults]

Linux; with root also full and read-only disks, small shared memory and unreadable files (mounts of its own
namespace, capabilities given up). Each case runs one command under a fault, then the same command without it.
Right is: the first ends with status 0, with 2 and one line, or by the signal that it got; no traceback; and
the second ends with status 0 and, where the fault left the data alone, with an undisturbed run's results.
`--folder` keeps results, so that a run which was stopped continues.
"""

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from broken_machine import (
    LIBC,
    LIMIT,
    ONE_LINE,
    RAN,
    READ_ONLY,
    Command,
    Ended,
    Ground,
    change_photos,
    closed_pipe,
    disk,
    free,
    kill_a_worker,
    limit,
    lose,
    obey_permissions,
    occupied,
    own_namespace,
    readable,
    send,
    small_shared_memory,
    unreadable,
)
from PIL import Image


# ---------------------------------------------------------------- cases
@dataclass
class Case:
    """One fault under one verb."""

    name: str
    verb: str
    right: tuple[int, ...]
    arrange: Callable[[Ground], None] = lambda ground: None  # in this process, before
    before: Callable[[Ground], Callable[[], None]] = lambda ground: lambda: None  # in the command's process
    during: Callable[[Ground, Command], None] = lambda ground, command: None
    restore: Callable[[Ground], None] = lambda ground: None
    workers: int = 0
    same: bool = True  # are the results those of an undisturbed run?
    again: tuple[str, ...] = ()  # words that the second command takes beside
    steps: int = 8
    root: bool = False  # does it take a mount?


LONG = 200  # steps of runs that go on for a while after the fault
VERBS = ("pretrain", "evaluate", "embed", "export", "report")


def cases(times: int, rng: random.Random) -> Iterator[Case]:
    """The table: what is broken, under which verb, and what is right then."""
    for verb in VERBS:
        for _ in range(times if verb != "report" else 1):
            kilobytes = rng.choice((4, 16, 64, 256, 512, 1024, 2048, 4096))
            arrange, restore = disk("disk", f"{kilobytes}k")
            yield Case(f"disk of {kilobytes} KiB", verb, ONE_LINE, arrange, restore=restore, root=True)
        arrange, restore = disk("disk", "64m", READ_ONLY)
        yield Case("read-only disk", verb, ONE_LINE, arrange, restore=restore, root=True)
        arrange, restore = disk("cache", "8k")
        yield Case("full cache", verb, RAN, arrange, restore=restore, root=True)
        arrange, restore = disk("cache", "64m", READ_ONLY)
        yield Case("read-only cache", verb, RAN, arrange, restore=restore, root=True)
        yield Case("no HOME", verb, RAN, before=lambda ground: lambda: _no_home())
        for megabytes in (8, 64, 256):
            yield Case(f"{megabytes} MiB more memory", verb, ONE_LINE,
                       before=limit(resource.RLIMIT_AS, megabytes << 20, extra=True))  # fmt: skip
        yield Case("files of 8 KiB at most", verb, ONE_LINE, before=limit(resource.RLIMIT_FSIZE, 8 << 10))
        yield Case("ulimit -n 64", verb, ONE_LINE, before=limit(resource.RLIMIT_NOFILE, 64))
        yield Case("ulimit -n 16", verb, ONE_LINE, before=limit(resource.RLIMIT_NOFILE, 16))
        for name, numbers, right in (
            ("SIGTERM", (signal.SIGTERM,), (0, 128 + 15, -15)),
            ("SIGINT", (signal.SIGINT,), (0, 128 + 2)),
            ("SIGINT twice", (signal.SIGINT, signal.SIGINT), (0, 128 + 2, -2)),
            ("SIGHUP", (signal.SIGHUP,), (0, 128 + 1, -1)),
        ):
            for _ in range(times):
                yield Case(name, verb, right, during=send(*numbers))
        yield Case("nobody reads", verb, RAN, before=closed_pipe)
        other = verb == "pretrain"  # a run on some of the photographs is another run
        yield Case("unreadable photos", verb, ONE_LINE, unreadable, lambda ground: obey_permissions,
                   restore=readable, root=True, same=not other,
                   again=("--accept-changed-data",) * other)  # fmt: skip
    learn = "pretrain"
    yield Case("/dev/shm of 1 MiB", learn, RAN, before=small_shared_memory("1m"), workers=2, root=True)
    yield Case("/dev/shm of 4 KiB", learn, RAN, before=small_shared_memory("4k"), workers=2, root=True)
    yield Case("ulimit -n 64, workers", learn, ONE_LINE, before=limit(resource.RLIMIT_NOFILE, 64), workers=2)
    for _ in range(times):
        yield Case("a worker killed", learn, ONE_LINE, during=kill_a_worker, workers=2)
        yield Case("SIGTERM, workers", learn, (0, 143), during=send(signal.SIGTERM), workers=2)
    yield Case("run folder lost", learn, ONE_LINE, during=lose, same=False, steps=LONG)
    for name, share in (("half of the photos", 0.5), ("all photos", 1.0)):
        for what, change in (
            ("deleted", Path.unlink),
            ("replaced by text", lambda file: file.write_text("no image")),
            ("emptied", lambda file: file.write_bytes(b"")),
        ):
            yield Case(f"{name} {what}", learn, ONE_LINE, during=change_photos(change, share), workers=2,
                       restore=make_photos, same=False, steps=LONG,
                       again=("--accept-changed-data",))  # fmt: skip
    yield Case("two runs in one folder", learn, ONE_LINE, occupied, restore=free)


def _no_home() -> None:
    for name in ("HOME", "OMMA_CACHE", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)


# ---------------------------------------------------------------- the campaign
def make_photos(ground: Ground) -> None:
    """Photographs of two classes and several sizes, the same each time, as old as at the first time."""
    rng = np.random.default_rng(0)
    for i in range(24):
        file = ground.photos / f"class{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (20 + i % 5, 20 + i % 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
        os.utime(file, (1e9, 1e9))
    for folder in (*ground.photos.iterdir(), ground.photos):
        os.utime(folder, (1e9, 1e9))


def prepared(root: Path, photos: Path, model: Path, seed: int, verb: str) -> Ground:
    shutil.rmtree(root, ignore_errors=True)
    ground = Ground(root, photos, model, random.Random(seed))
    (root / "disk").mkdir(parents=True)
    ground.cache.mkdir()
    if verb == "pretrain":
        (root / "is-pretrain").touch()
    else:
        shutil.copytree(model, root / "model")
        ground.model = root / "model"
    make_photos(ground)
    return ground


def tried(case: Case, root: Path, photos: Path, model: Path, seed: int, expected: object) -> tuple[str, str]:
    """What is wrong with a case, "" if nothing is; and the command's status with its last line of errors."""
    ground = prepared(root, photos, model, seed, case.verb)
    words = ground.words(case.verb, case.workers, case.steps)
    case.arrange(ground)
    if case.verb not in ("pretrain", "report"):
        with contextlib.suppress(OSError):
            ground.out.mkdir(parents=True, exist_ok=True)
    try:
        command = Command(words, ground, case.before(ground))
        case.during(ground, command)
        first = command.wait()
    finally:
        case.restore(ground)
    said = f"{first.status} {first.errors.strip().rpartition(chr(10))[2]}"
    if wrong := first.wrong(case.right):
        return wrong, said
    if case.verb not in ("pretrain", "report"):
        ground.out.mkdir(parents=True, exist_ok=True)
    if case.verb != "export" or first.status:  # what is exported is not exported over itself
        second = Command([*words, *case.again], ground).wait()
        if wrong := second.wrong(RAN):
            return f"again: {wrong}", said
    if case.same and ground.results(case.verb) != expected:
        return "again: other results than an undisturbed run's", said
    return "", said


def by_exec(photos: Path, root: Path) -> Iterator[tuple[str, str, str]]:
    """Faults that an interpreter meets when it starts: (name, what is wrong, its last words)."""
    source = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PATH": os.environ["PATH"]}
    bare = re.sub(r"[^:]*/usr/bin[^:]*:?|/bin:?", "", os.environ["PATH"])
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name, options, extra, right in (
        ("C locale", [], {"LC_ALL": "C"}, RAN),
        ("ASCII alone", [], ascii_only, ONE_LINE),
        ("python -O", ["-O"], {}, RAN),
        ("no g++", [], {"PATH": bare, "CXX": ""}, RAN),
    ):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        command = [sys.executable, *options, "-m", "omma", "pretrain", str(photos), "--out", "out-ä",
                   "--steps", "2", "--method", "simclr", "--model", "vit-n/8", "--image-size", "16",
                   "--batch-size", "8", "--workers", "2", "--device", "cpu"]  # fmt: skip
        environment = {**source, "HOME": str(root), **extra}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=LIMIT)
        ended = Ended(done.returncode, "", done.stderr.decode(errors="replace"))
        yield name, ended.wrong(right), f"{ended.status} {ended.errors.strip().rpartition(chr(10))[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose `verb: name` contains this")
    parser.add_argument("--times", type=int, default=3, help="of each fault at a random moment or size")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    # what children need not import again, each for itself
    import numba  # noqa: F401
    import pyarrow.dataset  # noqa: F401
    import torch._dynamo
    import torch.utils.tensorboard

    from omma.verbs import embed, evaluate, export, pretrain, report  # noqa: F401

    torch.set_num_threads(1)
    folder = (args.folder or Path(tempfile.mkdtemp())).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "results.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    mounts = own_namespace()
    photos, root = folder / "photos", folder / "case"
    plain = prepared(folder / "reference", photos, folder / "none", args.seed, "pretrain")
    model = folder / "model"
    expected: dict[str, object] = {}
    for verb in VERBS:
        if verb != "pretrain":
            plain = prepared(folder / "reference", photos, model, args.seed, verb)
            plain.out.mkdir(parents=True)
        if wrong := (ended := Command(plain.words(verb, 0, 8), plain).wait()).wrong(RAN):
            sys.exit(f"{verb}, undisturbed: {wrong}\n{ended.errors}")
        expected[verb] = plain.results(verb)
        if verb == "pretrain":
            shutil.rmtree(model, ignore_errors=True)
            shutil.copytree(plain.out, model)
    counts: Counter[str] = Counter()

    def tell(name: str, wrong: str, said: str) -> None:
        counts["wrong" if wrong else "right"] += 1
        print(f"{'WRONG' if wrong else 'right'}  {name}{': ' * bool(wrong)}{wrong}", flush=True)
        with open(log, "a") as file:
            file.write(json.dumps({"case": name, "wrong": wrong, "said": said}) + "\n")

    for number, case in enumerate(cases(args.times, random.Random(args.seed))):
        name = f"{number} {case.verb}: {case.name}"
        if args.only not in name or any(each["case"] == name and not each["wrong"] for each in done):
            continue
        if case.root and not mounts:
            counts["left out, for want of root"] += 1
            continue
        tell(name, *tried(case, root, photos, model, args.seed + number, expected[case.verb]))
        LIBC.umount2(str(root / "disk").encode(), 2)
        LIBC.umount2(str(root / "cache").encode(), 2)
    if args.only in "exec":
        for name, wrong, said in by_exec(photos, folder / "exec"):
            tell(f"exec: {name}", wrong, said)
    print("; ".join(f"{count} {what}" for what, count in counts.items()))
    sys.exit(counts["wrong"] > 0)


if __name__ == "__main__":
    main()
