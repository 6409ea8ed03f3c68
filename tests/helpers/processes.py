"""Processes that tests start, forked from a server that has imported torch and omma once for all of them."""

import importlib.util
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed

# omma, and what a first training step, a first augmentation and a first log line import, which takes seconds
PRELOADED = ["omma.cli", "omma.verbs.pretrain", "omma.verbs.embed", "omma.data.pixels.colour_numba"]
PRELOADED += ["torch._dynamo", "torch.utils.tensorboard", "numba.typed", "numba.np.arraymath"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


class Child:
    """A process with its output in files; used like `subprocess.Popen`."""

    def __init__(self, process: BaseProcess, output: Path) -> None:
        self._process = process
        self.out, self.err = output / "out", output / "err"
        self.store: torch.distributed.Store | None = None  # of the group that it belongs to

    def poll(self) -> int | None:
        """The exit status; minus the signal's number where one ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 240) -> int:
        self._process.join(timeout)
        if self._process.is_alive():
            self.kill()
            raise TimeoutError(f"still running after {timeout:.0f} s: {self.errors[-3000:]}")
        status = self._process.exitcode
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        if self._process.is_alive():
            self.send_signal(signal.SIGKILL)
            self._process.join()

    @property
    def text(self) -> str:
        return self.out.read_text()

    @property
    def errors(self) -> str:
        return self.err.read_text()


def start(function: Callable[..., Any], *args: Any, cwd: Path | None = None, **variables: str) -> Child:
    """Run a function that can be imported in a process of its own, with these environment variables too."""
    output = Path(tempfile.mkdtemp(prefix="child-", dir=os.environ.get("OMMA_CACHE")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    # not daemonic: it may start processes of its own
    process = CONTEXT.Process(target=_run, args=(output, cwd, environment, function, args))
    process.start()
    child = Child(process, output)
    child.out.touch()
    child.err.touch()
    return child


def _run(
    output: Path, cwd: Path | None, environment: dict[str, str], function: Callable, args: tuple
) -> None:
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    torch.set_num_threads(1)
    function(*args)


def omma(*words: str) -> None:
    """The command line, as `python -m omma` runs it, but without a run's report (see conftest.py)."""
    from omma import cli
    from omma.reporting import run_report

    run_report.write_report = lambda folder, *args: folder.report
    cli.main(list(words))


def worker(cache: str, *words: str) -> None:
    """The command line for torch's elastic agent, which wants a function that returns."""
    os.environ["OMMA_CACHE"] = cache
    torch.set_num_threads(1)
    try:
        omma(*words)
    except SystemExit as end:
        if end.code:
            raise


def ranks(count: int, function: Callable[..., Any], *args: Any, cwd: Path | None = None) -> list[Child]:
    """As many processes as torchrun would start, with its variables; as there, the store outlives them."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    children = [
        start(function, *args, cwd=cwd, RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank in range(count)
    ]
    for child in children:
        child.store = store
    return children


def finish(children: list[Child], timeout: float = 240) -> None:
    """Wait until all are done, and succeeded."""
    try:
        statuses = [child.wait(timeout) for child in children]
    finally:
        for child in children:
            child.kill()
    assert not any(statuses), "\n".join(child.errors[-3000:] for child in children)


def start_own(module: str | Path, name: str, *args: Any) -> Child:
    """Start a function of a test's file in a process of its own."""
    return start(_call, str(module), name, *args)


def own(module: str | Path, name: str, *args: Any, timeout: float = 240) -> None:
    """Run a function of a test's file in a process of its own; what it raises fails the test."""
    finish([start_own(module, name, *args)], timeout)


def both(module: str | Path, folder: Path, timeout: float = 240) -> None:
    """Two processes run the `main(rank, folder)` of a file."""
    finish([start_own(module, "main", rank, folder) for rank in range(2)], timeout)


def run(module: str | Path, folder: Path, timeout: float = 240) -> list[dict]:
    """`both`, and what the two wrote to RANK.pt."""
    both(module, folder, timeout)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _call(module: str, name: str, *args: Any) -> None:
    """A function of a file, which is not imported by its name: names of test files occur more than once."""
    spec = importlib.util.spec_from_file_location(Path(module).stem, module)
    assert spec is not None
    assert spec.loader is not None
    imported = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(imported)
    getattr(imported, name)(*args)
