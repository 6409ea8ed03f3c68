"""Positions on other grids are those of F.interpolate."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from omma.ops.positions import INTERPOLATIONS, resample

side = st.integers(1, 20)


@given(h=side, w=side, high=side, wide=st.integers(2, 20), how=st.sampled_from(INTERPOLATIONS))
@settings(max_examples=60, deadline=None)
def test_equal_to_interpolate(h, w, high, wide, how):
    positions = torch.randn(1, h * w, 5, generator=torch.Generator().manual_seed(0))
    picture = positions.double().view(1, h, w, 5).permute(0, 3, 1, 2).contiguous()
    if how == "offset" and (h, w) != (high, wide):
        wanted = F.interpolate(picture, scale_factor=((high + 0.1) / h, (wide + 0.1) / w), mode="bicubic")
    else:
        wanted = F.interpolate(picture, size=(high, wide), mode="bicubic", antialias=how == "antialias")
    wanted = wanted.permute(0, 2, 3, 1).reshape(1, -1, 5)
    found = resample(positions, (h, w), (high, wide), how)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5)


OFFICIAL = json.loads(Path(__file__).with_name("positions_official.json").read_text())


@pytest.mark.parametrize("case", sorted(OFFICIAL))
def test_equal_to_the_published_codes(case):
    """Numbers of DINO's, iBOT's and DINOv2's interpolate_pos_encoding (benchmarks/parity_positions.py)."""
    golden = OFFICIAL[case]
    home, grid = golden["home"], tuple(golden["grid"])
    i = torch.arange((1 + home * home) * 8, dtype=torch.float64)
    positions = torch.sin(0.7 * i + 0.37 * i * i).float().view(1, -1, 8)[:, 1:]
    found = resample(positions, (home, home), grid, golden["how"]).flatten()
    index = torch.arange(len(golden["values"])) * 1009 % len(found)
    torch.testing.assert_close(found[index], torch.tensor(golden["values"]), rtol=0, atol=1e-5)
    other = resample(positions, (home, home), grid, "plain").flatten()
    assert (other[index] - found[index]).abs().max() > 1e-3, "the test cannot tell two ways apart"


@pytest.mark.parametrize("how", INTERPOLATIONS)
def test_one_column_is_what_one_row_is(how):
    """torch 2.15's own antialiased resize gives every row the first one's values here."""
    positions = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(0))
    turned = positions.view(3, 4, 5).transpose(0, 1).reshape(1, 12, 5)
    column = resample(positions, (3, 4), (5, 1), how)
    row = resample(turned, (4, 3), (1, 5), how)
    torch.testing.assert_close(column, row)


def test_gradients_reach_all_positions():
    positions = torch.randn(1, 16, 5, requires_grad=True)
    resample(positions, (4, 4), (6, 5)).square().sum().backward()
    assert (positions.grad != 0).all()
