"""What all tests share: one thread a process, and no cache outside the test's own folder."""

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from omma.ops.cpu import library

torch.set_num_threads(1)  # tests run in several processes, which would fight over the cores
KERNELS = library.load()[0]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    if KERNELS is not None:
        shutil.copy(KERNELS._name, cache)  # processes that a test starts need not compile them anew
    monkeypatch.setenv("OMMA_CACHE", str(cache))
