"""What all tests share: one thread a process, and no cache outside the test's own folder."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)  # tests run in several processes, which would fight over the cores


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path_factory.mktemp("cache")))
