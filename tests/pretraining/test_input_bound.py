"""The remedy fits the run: workers where cores are free, a cache where images are decoded each time."""

from dataclasses import replace

import pytest

from omma.pretraining.input_bound import Feeding, remedy

RUN = Feeding(in_memory=False, decodes=True, workers=4, cores=16, busy=1, side=400, enough=303)


@pytest.mark.parametrize(
    ("waited", "steps", "change"),
    [(0.2, 1000, {}), (0.9, 49, {}), (0.9, 1000, {"in_memory": True, "workers": 0})],
)
def test_nothing_is_said_without_need(waited, steps, change):
    assert remedy(waited, steps, replace(RUN, **change)) is None


@pytest.mark.parametrize(
    ("change", "said", "unsaid"),
    [
        ({}, ("38% of the time", "--workers 15 (now 4)", "--cache"), ("px", "all cores")),
        ({"workers": 15}, ("--cache",), ("--workers", "all cores")),
        ({"busy": 16, "workers": 0}, ("--workers 1 (now 0)",), ()),  # trains on the same cores
        ({"busy": 16, "workers": 2}, ("--cache",), ("--workers",)),
        ({"decodes": False}, ("--workers",), ("--cache",)),
        ({"side": 3000}, ("--cache", "3000 px along the shorter side, 303 suffice"), ()),
        ({"decodes": False, "workers": 15}, ("fewer or smaller", "all cores"), ("--cache", "--workers")),
    ],
)
def test_the_remedy_fits_the_run(change, said, unsaid):
    text = remedy(0.38, 50, replace(RUN, **change))
    assert text is not None
    assert "\n" not in text
    assert all(words in text for words in said)
    assert not any(words in text for words in unsaid)
