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
import ctypes
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from filelock import FileLock
from PIL import Image
from safetensors.numpy import load_file

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_NAMESPACE, READ_ONLY, REMOUNT, PRIVATE = 0x20000, 1, 32, (1 << 18) | (1 << 14)
LIMIT = 300.0  # seconds that a command may take
RAN, ONE_LINE = (0,), (0, 2)


# ---------------------------------------------------------------- the machine
def check(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(place: Path, size: str, flags: int = 0) -> None:
    """Memory as a disk of this size at `place`."""
    place.mkdir(parents=True, exist_ok=True)
    check(LIBC.mount(b"tmpfs", str(place).encode(), b"tmpfs", flags, f"size={size}".encode()))


def own_namespace() -> bool:
    """Whether mounts are possible, and from now on nobody else's business."""
    return LIBC.unshare(NEW_NAMESPACE) == 0 and LIBC.mount(None, b"/", None, PRIVATE, None) == 0


def obey_permissions() -> None:
    """Give up root's right to read and write everything."""
    header = struct.pack("Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    check(LIBC.capget(header, data))
    words = list(struct.unpack("6I", data.raw))
    for at in (0, 1, 2):  # effective, permitted, inheritable; bits 1 and 2: DAC_OVERRIDE, DAC_READ_SEARCH
        words[at] &= ~0b110
    check(LIBC.capset(header, struct.pack("6I", *words)))


# ---------------------------------------------------------------- commands
@dataclass
class Ground:
    """Where one case takes place."""

    root: Path
    photos: Path
    model: Path  # a finished run
    rng: random.Random
    held: list[FileLock] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.root / "disk" / "out"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def words(self, verb: str, workers: int) -> list[str]:
        """The command's words."""
        return {
            "pretrain": ["pretrain", str(self.photos), "--out", str(self.out), "--method", "simclr",
                         "--model", "vit-n/8", "--image-size", "16", "--batch-size", "8", "--steps", "8",
                         "--seed", "1", "--workers", str(workers), "--checkpoint-every", "0.01",
                         "--device", "cpu"],
            "evaluate": ["evaluate", str(self.model), str(self.photos), "--protocol", "knn", "--json",
                         str(self.out / "figures.json")],
            "embed": ["embed", str(self.model), str(self.photos), "--out", str(self.out / "vectors.parquet")],
            "export": ["export", str(self.model), "--format", "safetensors", "--out", str(self.out / "plain"),
                       "--images", str(self.photos)],
            "report": ["report", str(self.model), str(self.photos)],
        }[verb]  # fmt: skip

    def results(self, verb: str) -> object:
        """What the command has written, for comparison; None if that cannot be compared."""
        if verb == "pretrain":
            weights = load_file(self.out / "model.safetensors")
            return {name: values.tolist() for name, values in weights.items()}
        if verb == "evaluate":
            return (self.out / "figures.json").read_text().replace(str(self.root), "")
        if verb == "embed":
            return pq.read_table(self.out / "vectors.parquet").to_pydict()
        if verb == "export":
            return sorted(file.name for file in (self.out / "plain").iterdir())
        return None


@dataclass
class Ended:
    """What became of a command."""

    status: int  # negative: the signal
    output: str
    errors: str

    def wrong(self, right: tuple[int, ...]) -> str:
        """What is not as promised; "" if all is."""
        if "Traceback" in self.errors or "Exception ignored" in self.errors:
            return f"a traceback: {self.errors.strip().splitlines()[-1]}"
        if self.status not in right:
            return f"status {self.status}: {self.errors.strip()[-300:]}"
        lines = [line for line in self.errors.splitlines() if line.strip()]
        if self.status == 2 and (not lines or not lines[-1].startswith("omma: ")):
            return f"no line: {self.errors.strip()[-300:]}"
        return ""


class Command:
    """A command of omma in a forked process, which has imported everything already."""

    def __init__(self, words: list[str], ground: Ground, before: Callable[[], None] = lambda: None) -> None:
        self.files = [ground.root / "stdout", ground.root / "stderr"]
        self.pid = os.fork()
        if self.pid == 0:
            self._run(words, ground, before)

    def _run(self, words: list[str], ground: Ground, before: Callable[[], None]) -> None:
        status = 99
        try:
            os.setpgid(0, 0)
            for number, file in enumerate(self.files, 1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            # each case has an empty cache, so kernels would be compiled anew
            os.environ.update({"OMMA_CACHE": str(ground.cache), "OMMA_KERNELS": "off"})
            before()
            from omma.cli import main
            from omma.cli.shared import out

            out.file = sys.stdout
            main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            import atexit

            atexit._run_exitfuncs()
            os._exit(status)

    def poll(self) -> int | None:
        """The status, if the command has ended."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def running(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self) -> Ended:
        end = time.monotonic() + LIMIT
        while (status := self.poll()) is None:
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return Ended(999, "", f"still running after {LIMIT:.0f} s")
            time.sleep(0.02)
        output, errors = (file.read_text(errors="replace") for file in self.files)
        return Ended(status, output, errors)


# ---------------------------------------------------------------- faults
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
    root: bool = False  # does it take a mount?


def once_running(ground: Ground, command: Command) -> None:
    """Wait for a random moment of the command's work."""
    end = time.monotonic() + 60
    log = ground.out / "metrics.jsonl"
    while command.running() and time.monotonic() < end and not log.exists():
        time.sleep(0.01)
    time.sleep(ground.rng.uniform(0, 0.5))


def send(*signals: int) -> Callable[[Ground, Command], None]:
    def during(ground: Ground, command: Command) -> None:
        if (ground.root / "is-pretrain").exists():
            once_running(ground, command)
        else:
            time.sleep(ground.rng.uniform(0.05, 1.5))
        for number in signals:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.pid, number)
            time.sleep(0.05)

    return during


def kill_a_worker(ground: Ground, command: Command) -> None:
    once_running(ground, command)
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
    with contextlib.suppress(OSError, IndexError, ProcessLookupError):
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)


def limit(kind: int, value: int, extra: bool = False) -> Callable[[Ground], Callable[[], None]]:
    """A limit for the command; `extra`: on top of what it uses already."""

    def before(ground: Ground) -> Callable[[], None]:
        def apply() -> None:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 if extra else 0
            resource.setrlimit(kind, (used + value, used + value))

        return apply

    return before


def change_photos(change: Callable[[Path], None], share: float) -> Callable[[Ground, Command], None]:
    def during(ground: Ground, command: Command) -> None:
        once_running(ground, command)
        files = sorted(ground.photos.rglob("*.png"))
        for file in files[: round(share * len(files))]:
            change(file)

    return during


def lose(ground: Ground, command: Command) -> None:
    once_running(ground, command)
    shutil.rmtree(ground.out, ignore_errors=True)


def closed_pipe(ground: Ground) -> Callable[[], None]:
    def apply() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)

    return apply


def small_shared_memory(size: str) -> Callable[[Ground], Callable[[], None]]:
    def before(ground: Ground) -> Callable[[], None]:
        def apply() -> None:
            own_namespace()
            mount(Path("/dev/shm"), size)

        return apply

    return before


def disk(place: str, size: str, flags: int = 0) -> tuple[Callable[[Ground], None], Callable[[Ground], None]]:
    """A disk of this size below the case's folder, and what makes it large and writable again."""

    def arrange(ground: Ground) -> None:
        if flags:
            mount(ground.root / place, size, flags)
        else:
            mount(ground.root / place, size)

    def restore(ground: Ground) -> None:
        where = str(ground.root / place).encode()
        check(LIBC.mount(None, where, None, REMOUNT, b"size=256m"))

    return arrange, restore


def unreadable(ground: Ground) -> None:
    for file in sorted(ground.photos.rglob("*.png"))[::4]:
        file.chmod(0)


def readable(ground: Ground) -> None:
    for file in ground.photos.rglob("*.png"):
        file.chmod(0o644)


def occupied(ground: Ground) -> None:
    ground.out.mkdir(parents=True, exist_ok=True)
    ground.held.append(FileLock(ground.out / ".lock"))
    ground.held[0].acquire()


def free(ground: Ground) -> None:
    ground.held[0].release()


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
            ("SIGINT twice", (signal.SIGINT, signal.SIGINT), (0, 128 + 2)),
            ("SIGHUP", (signal.SIGHUP,), (0, 128 + 1, -1)),
        ):
            for _ in range(times):
                yield Case(name, verb, right, during=send(*numbers))
        yield Case("nobody reads", verb, RAN, before=closed_pipe)
        yield Case("unreadable photos", verb, ONE_LINE, unreadable, lambda ground: obey_permissions,
                   restore=readable, root=True)  # fmt: skip
    learn = "pretrain"
    yield Case("/dev/shm of 1 MiB", learn, RAN, before=small_shared_memory("1m"), workers=2, root=True)
    yield Case("/dev/shm of 4 KiB", learn, RAN, before=small_shared_memory("4k"), workers=2, root=True)
    yield Case("ulimit -n 64, workers", learn, ONE_LINE, before=limit(resource.RLIMIT_NOFILE, 64), workers=2)
    for _ in range(times):
        yield Case("a worker killed", learn, ONE_LINE, during=kill_a_worker, workers=2)
        yield Case("SIGTERM, workers", learn, (0, 143), during=send(signal.SIGTERM), workers=2)
    yield Case("run folder lost", learn, ONE_LINE, during=lose)
    for name, share in (("half of the photos", 0.5), ("all photos", 1.0)):
        for what, change in (
            ("deleted", Path.unlink),
            ("replaced by text", lambda file: file.write_text("no image")),
            ("emptied", lambda file: file.write_bytes(b"")),
        ):
            yield Case(f"{name} {what}", learn, ONE_LINE, during=change_photos(change, share), workers=2,
                       restore=make_photos, same=False)  # fmt: skip
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


def tried(case: Case, root: Path, photos: Path, model: Path, seed: int, expected: object) -> str:
    """What is wrong with a case; "" if nothing is."""
    ground = prepared(root, photos, model, seed, case.verb)
    words = ground.words(case.verb, case.workers)
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
    if wrong := first.wrong(case.right):
        return wrong
    if case.verb not in ("pretrain", "report"):
        ground.out.mkdir(parents=True, exist_ok=True)
    second = Command(words, ground).wait()
    if case.same or second.status not in ONE_LINE:
        if wrong := second.wrong(RAN):
            return f"again: {wrong}"
        if case.same and ground.results(case.verb) != expected:
            return f"again: other results than an undisturbed run's (first: {first.errors.strip()[-200:]})"
    return ""


def by_exec(photos: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Faults that an interpreter meets when it starts: (name, what is wrong)."""
    source = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PATH": os.environ["PATH"]}
    bare = re.sub(r"[^:]*/usr/bin[^:]*:?|/bin:?", "", os.environ["PATH"])
    for name, options, extra in (
        ("C locale", [], {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ("python -O", ["-O"], {}),
        ("no g++", [], {"PATH": bare, "CXX": ""}),
    ):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        command = [sys.executable, *options, "-m", "omma", "pretrain", str(photos), "--out", "out-ä",
                   "--steps", "2", "--method", "simclr", "--model", "vit-n/8", "--image-size", "16",
                   "--batch-size", "8", "--workers", "2", "--device", "cpu"]  # fmt: skip
        environment = {**source, "HOME": str(root), **extra}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=LIMIT)
        ended = Ended(done.returncode, "", done.stderr.decode(errors="replace"))
        yield name, ended.wrong(RAN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose `verb: name` contains this")
    parser.add_argument("--times", type=int, default=3, help="of each fault at a random moment or size")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    import torch

    from omma.verbs import embed, evaluate, export, pretrain, report  # noqa: F401 (children need not import)

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
        if wrong := (ended := Command(plain.words(verb, 0), plain).wait()).wrong(RAN):
            sys.exit(f"{verb}, undisturbed: {wrong}\n{ended.errors}")
        expected[verb] = plain.results(verb)
        if verb == "pretrain":
            shutil.rmtree(model, ignore_errors=True)
            shutil.copytree(plain.out, model)
    counts: Counter[str] = Counter()

    def tell(name: str, wrong: str) -> None:
        counts["wrong" if wrong else "right"] += 1
        print(f"{'WRONG' if wrong else 'right'}  {name}{': ' * bool(wrong)}{wrong}", flush=True)
        with open(log, "a") as file:
            file.write(json.dumps({"case": name, "wrong": wrong}) + "\n")

    for number, case in enumerate(cases(args.times, random.Random(args.seed))):
        name = f"{number} {case.verb}: {case.name}"
        if args.only not in name or any(each["case"] == name and not each["wrong"] for each in done):
            continue
        if case.root and not mounts:
            counts["left out, for want of root"] += 1
            continue
        tell(name, tried(case, root, photos, model, args.seed + number, expected[case.verb]))
        LIBC.umount2(str(root / "disk").encode(), 2)
        LIBC.umount2(str(root / "cache").encode(), 2)
    if args.only in "exec":
        for name, wrong in by_exec(photos, folder / "exec"):
            tell(f"exec: {name}", wrong)
    print("; ".join(f"{count} {what}" for what, count in counts.items()))
    sys.exit(counts["wrong"] > 0)


if __name__ == "__main__":
    main()
