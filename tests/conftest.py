"""What all tests share: one thread a process, a cache of the test's own, and runs without a report."""

import gc
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# tests run in several processes, which would fight over the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
# else each worker, and each of the processes that tests start, compiles the same modules again
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

NUMBERS = itertools.count()
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Every second worker begins at the end: each reads what the other has compiled."""
    report = yield
    if WORKER % 2 and isinstance(collector, pytest.Directory):
        report.result.reverse()
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One order for all workers: files that start processes first, the costliest of them before all.

    They stay with the first worker, since others take tests from the end of its list. So one server is forked
    from, and what these tests share is made once.
    """

    def rank(item: pytest.Item) -> tuple[bool, bool, Path]:
        starts = hasattr(getattr(item, "module", None), "processes")
        return not starts, item.path.name != "test_processes.py", item.path

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Nothing that is imported is garbage: it is not looked for meanwhile, and never among that later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # as libraries expect at the end


# torch and omma are imported by the workers alone: the process that they report to needs neither
@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Makes a cache: each test has its own; fixtures that tests share have one, too."""
    import torch

    from omma.ops.cpu import library

    torch.set_num_threads(1)
    caches, kernels = tmp_path_factory.mktemp("caches"), library.load()[0]

    def make() -> Path:
        cache = caches / str(next(NUMBERS))
        cache.mkdir()
        if kernels is not None:  # processes that a test starts need not compile them again
            (cache / Path(kernels._name).name).symlink_to(kernels._name)
        return cache

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMMA_CACHE", str(make()))
        yield make


@pytest.fixture(autouse=True)
def _own_cache(_caches: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMMA_CACHE", str(_caches()))


@pytest.fixture(autouse=True, scope="session")
def _write_report() -> Iterator[Callable[..., Path]]:
    """The report takes longer than a tiny run does, so it is written for tests marked `report` alone."""
    from omma.reporting import run_report

    write = run_report.write_report
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_report, "write_report", lambda folder, *args: folder.report)
        yield write


@pytest.fixture(autouse=True)
def _report(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, _write_report: Callable[..., Path]
) -> None:
    if request.node.get_closest_marker("report") is not None:
        from omma.reporting import run_report

        monkeypatch.setattr(run_report, "write_report", _write_report)
