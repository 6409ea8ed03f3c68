"""The machine's peak rate is measured by matrix products that grow while time allows."""

import time

import pytest
import torch

from omma.core.device import best_product


def test_the_best_product_is_the_fastest_that_fits_into_the_time(monkeypatch):
    now, sizes = 0.0, []
    rates = {1024: 1e11, 2048: 2e11, 4096: 9e11}  # expected to take two thirds of a second

    def product(a, b, out):
        nonlocal now
        sizes.append(len(a))
        now += 2 * len(a) ** 3 / rates[len(a)]

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert best_product(torch.device("cpu"), torch.float32) == pytest.approx(2e11)
    assert set(sizes) == {1024, 2048}
    assert now < 1.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_this_machine_is_measured(dtype):
    start = time.perf_counter()
    assert best_product(torch.device("cpu"), dtype, seconds=0.1) > 1e8
    assert time.perf_counter() - start < 60
