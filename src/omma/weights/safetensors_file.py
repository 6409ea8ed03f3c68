"""Open .safetensors files whose headers are of a plausible size."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors

MOST_HEADER = (
    10_000_000  # bytes, of some 100,000 tensors: the library's own limit takes minutes and gigabytes
)


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """What `safetensors.safe_open` opens. Raises OSError or SafetensorError."""
    with open(file, "rb") as opened:
        header, size = int.from_bytes(opened.read(8), "little"), file.stat().st_size
    if header > min(MOST_HEADER, size - 8):
        raise safetensors.SafetensorError(f"a header of {header:,} bytes in a file of {size:,}")
    with safetensors.safe_open(file, framework="pt") as tensors:
        yield tensors
