"""Helpers: small weights files, and the assertions that tests of reading share."""

import pytest
import torch

from omma.weights.read_file import read

LEGACY = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "blocks.0.weight": torch.randn(3, 4, generator=generator),
        "norm.bias": torch.randn(4, generator=generator).half(),
        "bn.num_batches_tracked": torch.tensor(7),
    }


def save(value, file, legacy=False):
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file


def same(read_tensors, wanted):
    assert list(read_tensors) == list(wanted)
    for name, x in wanted.items():
        assert read_tensors[name].dtype == x.dtype
        assert torch.equal(read_tensors[name], x)
        assert not read_tensors[name].requires_grad


def sorted_by_name(tensors):
    return dict(sorted(tensors.items()))


def refused(file, *words, **options):
    """Assert that the file is refused in one line, and return it."""
    with pytest.raises(ValueError) as caught:
        read(file, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert str(file) in line
    assert len(line) < 200 + 2 * len(str(file)) + 80
    for word in words:
        assert word in line, line
    return line
