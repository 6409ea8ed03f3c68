"""Two gloo processes of a test's module, and what each of them found."""

import subprocess
import sys
from pathlib import Path

import torch


def run(module: str, folder: Path, timeout: float = 240) -> list[dict]:
    """Both run the `main(rank, folder)` of a test's file and write `rank`.pt there; what they wrote."""
    file = Path(module)
    path = [str(file.parent), *sys.path]
    start = f"import sys; sys.path[:] = {path!r}; import {file.stem}, pathlib; "
    call = f"{file.stem}.main(int(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", start + call, str(rank), str(folder)], stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        errors = [p.communicate(timeout=timeout)[1] for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
