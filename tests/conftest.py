"""What all tests share: one thread a process, a cache of the test's own, and runs without a report."""

import gc
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# else each worker, and each of the processes that tests start, compiles the same modules again
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
gc.disable()  # until all is imported: nothing of that is garbage

import pytest
import torch

from omma.ops.cpu import library
from omma.reporting import run_report

torch.set_num_threads(1)  # tests run in several processes, which would fight over the cores
KERNELS = library.load()[0]
WRITE_REPORT = run_report.write_report
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


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported by now is never searched for garbage
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # as libraries expect at the end


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where each test has its cache; fixtures that tests share have one, too."""
    caches = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMMA_CACHE", str(_cache(caches)))
        yield caches


@pytest.fixture(autouse=True)
def _own_cache(_caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMMA_CACHE", str(_cache(_caches)))


def _cache(caches: Path) -> Path:
    cache = caches / str(next(NUMBERS))
    cache.mkdir()
    if KERNELS is not None:  # processes that a test starts need not compile them again
        (cache / Path(KERNELS._name).name).symlink_to(KERNELS._name)
    return cache


@pytest.fixture(autouse=True, scope="session")
def _no_report() -> Iterator[None]:
    """The report takes longer than a tiny run does, so it is written for tests marked `report` alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_report, "write_report", lambda folder, *args: folder.report)
        yield


@pytest.fixture(autouse=True)
def _report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("report") is not None:
        monkeypatch.setattr(run_report, "write_report", WRITE_REPORT)
