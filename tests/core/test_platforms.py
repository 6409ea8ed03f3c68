"""Other systems lack modules and functions of Linux; nothing asks for them unguarded."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import omma
from omma.core import device

# What Windows, or macOS, lacks; their own ways (msvcrt, spawn) cannot be tried here
WITHOUT = """
    import os, signal, sys
    for name in ("resource", "pwd", "grp", "termios", "pty"):
        sys.modules[name] = None
    for owner, names in (
        (os, "sysconf sysconf_names sched_getaffinity geteuid getuid mkfifo statvfs fork"),
        (signal, "SIGHUP SIGUSR1"),
    ):
        for name in names.split():
            if hasattr(owner, name):
                delattr(owner, name)
    real = open

    def opened(file, *rest, **options):
        if str(file).startswith("/proc/"):
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return real(file, *rest, **options)

    import builtins, io
    builtins.open = io.open = opened
"""
RUN = """
    import importlib, pkgutil
    import omma
    for module in pkgutil.walk_packages(omma.__path__, "omma."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    import numpy as np, torch
    from omma.core import device
    from omma.verbs import doctor
    assert dict(doctor.doctor())["memory"].endswith("GiB free")
    assert device.machine_memory() > 0 and device.peak_memory(torch.device("cpu")) >= 0
    device.keep_memory()
    rng = np.random.default_rng(0)
    from PIL import Image
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (20 + i, 20, 3), dtype=np.uint8)).save(f"photos/{i}.png")
    result = omma.pretrain("photos", method="simclr", model="vit-n/8", image_size=16, batch_size=4, steps=1,
                           workers=0, out="run", device="cpu")
    assert (result.out / "model.safetensors").exists()
"""


@pytest.mark.slow
def test_every_module_and_a_run_without_what_linux_has(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    program = textwrap.dedent(WITHOUT) + textwrap.dedent(RUN)
    environment = {**os.environ, "PYTHONPATH": str(Path(omma.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_measurements_without_what_linux_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: Path, *_: object, **__: object) -> str:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    cpu = torch.device("cpu")
    everything = device.machine_memory()
    monkeypatch.setattr(device.Path, "read_text", absent)
    assert 0 < device.peak_memory(cpu) <= everything  # by getrusage, as on macOS
    monkeypatch.setitem(sys.modules, "resource", None)
    assert device.peak_memory(cpu) == 0
    monkeypatch.delattr(os, "sysconf")
    assert device.machine_memory() == 8 << 30
    monkeypatch.delattr(os, "sched_getaffinity")
    assert device.cores() == (os.cpu_count() or 1)


def test_signals_without_what_linux_has(monkeypatch: pytest.MonkeyPatch) -> None:
    from omma.data.batches import loader
    from omma.train.signals import stop_on_signals

    installed = []
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setattr(signal, "signal", lambda number, handler: installed.append(number))
    with stop_on_signals() as stop:
        assert not stop
    loader._start_worker(0)
    assert {*installed} == {signal.SIGINT, signal.SIGTERM}


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_a_closed_terminal_asks_to_stop_unless_it_is_ignored() -> None:
    from omma.train.signals import stop_on_signals

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have started the tests
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


class Recorded:
    """Stands for a tensor, and notes how it is copied."""

    def __init__(self, pinned: bool) -> None:
        self.device, self.pinned, self.copied = torch.device("cpu"), pinned, None

    def is_pinned(self) -> bool:
        return self.pinned

    def to(self, place: torch.device, dtype: object, non_blocking: bool) -> None:
        self.copied = non_blocking


@pytest.mark.parametrize("kind", ["cpu", "mps", "cuda"])
@pytest.mark.parametrize("pinned", [False, True])
def test_only_pinned_memory_is_copied_in_passing(kind: str, pinned: bool) -> None:
    x = Recorded(pinned)
    device.to_device(x, torch.device(kind))  # pyright: ignore[reportArgumentType]
    assert x.copied == (pinned and kind == "cuda")


def test_no_other_copy_is_non_blocking() -> None:
    sources = Path(omma.__file__).parent.rglob("*.py")
    assert [file.name for file in sources if "non_blocking=" in file.read_text(encoding="utf-8")] == [
        "device.py"
    ]


def test_processes_are_forked_under_linux_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from omma.data.batches import loader

    chosen = []

    def refuse(*_: object, multiprocessing_context: str | None, **__: object) -> None:
        chosen.append(multiprocessing_context)
        raise OSError

    monkeypatch.setattr(loader, "DataLoader", refuse)
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(loader.sys, "platform", platform)
        loader._processes(torch.utils.data.Dataset(), iter(()), 1, 1, None)
    assert chosen == ["fork", None, None]
