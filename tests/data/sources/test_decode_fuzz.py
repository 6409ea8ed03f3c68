"""A bounded share of benchmarks/hostile_images.py: damaged files of every kind are images or one BadImage."""

import importlib.util
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from omma.core.protocols import BadImage
from omma.data.sources.decode import decode, plain_jpeg, sniff

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "hostile_images.py"


@pytest.fixture(scope="module")
def hostile() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hostile_images", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_honest_files_are_read(hostile: ModuleType) -> None:
    for name, data in hostile.samples().items():
        assert sniff(data[:64]), name
        assert decode(data).size > 0, name


def test_mutants_are_images_or_bad_images(hostile: ModuleType) -> None:
    files, start = hostile.samples(), time.process_time()
    read, lines = 0, list[str]()
    for number in range(600):
        if time.process_time() - start > 15:  # a slow machine tries fewer
            break
        name, data = hostile.mutant(files, 1, number)
        assert plain_jpeg(data) in (True, False)
        try:
            image = decode(data, channels=3 if number % 2 else None, at_least=16)
        except BadImage as error:
            lines.append(str(error))
        else:
            assert image.ndim == 3, name
            assert image.dtype in (np.uint8, np.uint16, np.float32), name
            read += 1
    assert all(lines)
    assert not any("\n" in line for line in lines)
    assert min(read, len(lines)) > 20
