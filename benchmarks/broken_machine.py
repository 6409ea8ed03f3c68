"""What benchmarks/faults.py needs: small commands of omma, and a machine that fails under them."""

import contextlib
import ctypes
import os
import random
import resource
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from filelock import FileLock
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

    def words(self, verb: str, workers: int, steps: int) -> list[str]:
        """The command's words."""
        return {
            "pretrain": ["pretrain", str(self.photos), "--out", str(self.out), "--method", "simclr",
                         "--model", "vit-n/8", "--image-size", "16", "--batch-size", "8",
                         "--steps", str(steps),
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
            # each case has an empty cache, so kernels would be compiled anew
            os.environ.update({"OMMA_CACHE": str(ground.cache), "OMMA_KERNELS": "off"})
            before()
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
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
