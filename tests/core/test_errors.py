"""Every expected kind of error is one line with a remedy; only omma's own mistakes keep their traceback."""

import errno
import http.client
import json
import lzma
import os
import re
import struct
import subprocess
import sys
import tarfile
import tomllib
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
import safetensors
import torch
from tifffile import TiffFileError

from omma import cli, verbs
from omma.core import errors, explain, files
from omma.core.protocols import BadImage, Inaccessible
from omma.verbs import (  # noqa: F401 (attributes of verbs)
    doctor,
    embed,
    evaluate,
    export,
    finetune,
    predict,
    pretrain,
    report,
)


def foreign(module: str, name: str, *bases: type[BaseException]) -> type[Exception]:
    """An exception class as a package that is not installed would define it."""
    return type(name, bases or (Exception,), {"__module__": module})


def nested() -> RecursionError:
    try:
        json.loads("[" * 100_000)
    except RecursionError as error:
        return error
    raise AssertionError


EXPECTED = [
    (ValueError("--lr 0: must be positive"), "--lr 0: must be positive"),
    (BadImage("truncated"), "truncated"),
    (
        PermissionError(errno.EACCES, "Permission denied", "/data/a.png"),
        "/data/a.png: permission denied; give",
    ),
    (OSError(errno.ENOSPC, "No space left on device", "/nowhere/x"), "/nowhere/x: no space left"),
    (OSError(errno.ENOSPC, "No space left on device"), "are free on its disk"),
    (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    (OSError(errno.EIO, "Input/output error", "/data"), "/data: input/output error; the disk"),
    (OSError("one of a library"), "one of a library"),
    (MemoryError(), "out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory"),
    (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "no space left"),
    (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "no space left"),
    (
        RuntimeError("unable to allocate shared memory(shm) for file </t>: No space left on device"),
        "--workers",
    ),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "process that loads data"),
    (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), "process that loads data"),
    (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
    (RuntimeError("can't start new thread"), "ulimit -u"),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "--device cpu"),
    (NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device"), "cpu"),
    (foreign("aiohttp.client_exceptions", "ClientPayloadError")("not completed"), "remote store"),
    (foreign("botocore.exceptions", "NoCredentialsError")("no credentials"), "remote store"),
    (http.client.IncompleteRead(b"", 100), "remote store"),
    (ImportError("Install s3fs to access S3"), "Install s3fs"),
    (ModuleNotFoundError("No module named 'zarr'", name="zarr"), "pip install -U zarr"),
    (pa.ArrowTypeError("cannot mix struct and non-struct"), "a file is damaged"),
    (pa.ArrowKeyError("label"), "a file is damaged"),
    (zipfile.BadZipFile("Bad magic number"), "a file is damaged"),
    (tarfile.ReadError("bad checksum"), "a file is damaged"),
    (struct.error("unpack requires 4 bytes"), "a file is damaged"),
    (zlib.error("Error -3"), "a file is damaged"),
    (lzma.LZMAError("Corrupt input data"), "a file is damaged"),
    (EOFError("Compressed file ended"), "a file is damaged"),
    (TiffFileError("not a TIFF file"), "a file is damaged"),
    (safetensors.SafetensorError("header too large"), "a file is damaged"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "save the file as UTF-8"),
    (nested(), "nested too deeply"),
]
OWN = [
    TypeError("x"),
    KeyError("x"),
    AssertionError(),
    AttributeError("x"),
    IndexError("x"),
    ZeroDivisionError(),
]
OWN += [
    RuntimeError("shape '[2]' is invalid"),
    ImportError("x", name="omma.core.nothing"),
    RecursionError("x"),
]


@pytest.mark.parametrize(("error", "text"), EXPECTED, ids=lambda x: type(x).__name__)
def test_expected_errors_are_a_line_with_what_to_do(error: Exception, text: str) -> None:
    line = explain.explain(error)
    assert line is not None
    assert text in line
    assert "\n" not in line


@pytest.mark.parametrize("error", OWN, ids=lambda error: type(error).__name__)
def test_own_mistakes_stay_what_they_are(error: Exception) -> None:
    assert explain.explain(error) is None


COMMANDS = {  # of files that are there, so that they are not refused at once
    "pretrain": (["pretrain", "x"], "session"),
    "finetune": (["finetune", "x", "x", "--adapt=full"], "session"),
    "predict": (["predict", "x", "x", "--out", "z.csv"], "weights"),
    "evaluate": (["evaluate", "x", "x"], "weights"),
    "embed": (["embed", "x", "x", "--out", "z.parquet"], "one_of"),
    "export": (["export", "x", "--format", "onnx", "--out", "z.onnx"], "weights"),
    "report": (["report", "x", "x"], "RunFolder"),
    "doctor": (["doctor"], "machine"),
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_has_the_boundary(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the command line, and as ValueError or OSError for those who call the function."""
    monkeypatch.chdir(tmp_path)
    Path("x").touch()
    words, step = COMMANDS[verb]
    module = getattr(verbs, verb)
    for error, text in EXPECTED:

        class Raises:
            def __call__(self, *_: object, error: Exception = error, **__: object) -> None:
                raise error

            __getattr__ = __call__

        monkeypatch.setattr(module, step, Raises())
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        said = capsys.readouterr().err
        assert (stop.value.code, said.count("\n"), text in said) == (2, 1, True), said
        arguments = [word for word in words[1:] if not word.startswith("--")]
        with pytest.raises((ValueError, OSError)):
            getattr(module, verb)(*arguments)


@pytest.mark.parametrize(
    ("error", "status", "lines", "last"),
    [
        (KeyboardInterrupt(), 130, 1, "interrupted"),
        (errors.AlreadyReported("told by another process"), 2, 0, ""),
        (KeyError("x"), 1, 4, "a mistake in omma: please report"),
    ],
)
def test_the_command_line_ends(error, status, lines, last, monkeypatch, capsys) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(doctor, "doctor", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor"])
    said = capsys.readouterr().err
    assert stop.value.code == status
    assert said.count("\n") >= lines
    assert last in said


def test_what_is_no_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("views", "Config", "doc", "small.x"):
        with pytest.raises(SystemExit) as stop:
            cli.main(["pretrain", "x", "--recipe", name])
        assert stop.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_the_disk_is_named_whatever_the_library_raises(tmp_path: Path) -> None:
    full = [OSError(errno.ENOSPC, "full"), RuntimeError("No space left on device"), EXPECTED[10][0]]
    full.append(safetensors.SafetensorError("I/O error: No space left on device (os error 28)"))
    for error in full:
        with (
            pytest.raises(OSError, match=r"model\.safetensors") as raised,
            files.atomic_write(tmp_path / "model.safetensors"),
        ):
            raise error
        assert str(tmp_path) in str(explain.explain(raised.value))
    with pytest.raises(ValueError, match=r"^an own one$"), files.atomic_write(tmp_path / "x"):
        raise ValueError("an own one")


def test_where_is_said_once() -> None:
    with (
        pytest.raises(ValueError, match=r"^photos\.zip: a file is damaged .* \(bad\): make"),
        explain.translated("photos.zip"),
    ):
        raise zipfile.BadZipFile("bad")
    with pytest.raises(KeyError), explain.translated("photos.zip"):
        raise KeyError("own")


def test_names_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from omma.cli.shared import Output

    name = "a\x1b]0;owned\x07\x9b31m\u202egnp.exe\udcff [/x] :smile:"
    shown = "a\\x1b]0;owned\\x07\\x9b31m\\u202egnp.exe\\udcff [/x] :smile:"
    assert errors.line(ValueError(name)) == shown
    assert errors.printable("two\nlines\tof naïve 图片") == "two\nlines\tof naïve 图片"
    console = Output()
    from rich.table import Table

    table = Table(box=None, show_header=False)
    table.add_row(name)
    for each in (name, table):
        console.print(each)
        assert capsys.readouterr().out.strip() == shown


def test_exhausted_machines_are_not_about_the_image() -> None:
    assert errors.exhausted(MemoryError())
    assert errors.exhausted(OSError(errno.EMFILE, ""))
    assert not errors.exhausted(OSError(errno.EIO, ""))
    assert not errors.exhausted(ValueError())
    assert Inaccessible.is_reason(str(Inaccessible("permission denied")))
    assert not Inaccessible.is_reason(str(BadImage("truncated")))


PRINTING = "from omma.cli.shared import out; [out.print('line') for _ in range(9)]"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
def test_an_output_on_a_full_disk_is_one_line() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "omma", "--help"], stdout=full, stderr=subprocess.PIPE, env=environment
        )
    assert done.returncode == 2
    assert done.stderr.startswith(b"omma: no space left")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("words", [["-m", "omma", "--help"], ["-c", PRINTING]])
def test_a_reader_that_leaves_is_no_error(words: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = [sys.executable, *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=120)
    assert said == b""
    assert process.returncode == 0


def test_what_is_too_large_is_named(tmp_path: Path) -> None:
    for error in (OSError(errno.EFBIG, "large"), safetensors.SafetensorError("File too large (os error 27)")):
        with pytest.raises(OSError, match=r"model\.st") as raised, files.atomic_write(tmp_path / "model.st"):
            raise error
        assert "ulimit -f" in str(explain.explain(raised.value))


def test_libraries_errors_get_the_name_of_what_was_read() -> None:
    for error in (json.JSONDecodeError("bad", "", 0), pa.ArrowInvalid("bad"), zipfile.BadZipFile("bad")):
        with pytest.raises(ValueError, match=r"^run: a file is damaged"), explain.translated("run"):
            raise error


def test_want_of_memory_is_seen_below_a_failed_import() -> None:
    failed = OSError("cannot find libx")
    failed.__context__ = OSError("libx.so: failed to map segment from shared object")
    assert explain.explain(failed) == explain.MEMORY
    text = "DefaultCPUAllocator: can't allocate memory"
    assert errors.exhausted(RuntimeError(text))
    assert not errors.exhausted(ValueError(text))


def test_a_checkpoint_is_not_damaged_for_want_of_memory(tmp_path: Path, monkeypatch) -> None:
    from omma.train import checkpoint

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("can't allocate memory")

    torch.save({}, tmp_path / "step-000000001.pt")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ValueError, match="the machine is exhausted"):
        checkpoint.newest(tmp_path)


@pytest.mark.parametrize(
    ("clone", "synced", "pip", "expected"),
    [
        (True, True, False, ("uv sync --extra timm --inexact", "uv pip install -U zarr")),
        (True, False, True, ("pip install -e '{}[timm]'", "pip install -U zarr")),
        (True, False, False, ("uv pip install -e '{}[timm]'", "uv pip install -U zarr")),
        (False, False, True, ("pip install 'omma[timm]'", "pip install -U zarr")),
        (False, False, False, ("uv pip install 'omma[timm]'", "uv pip install -U zarr")),
    ],
    ids=["uv", "editable", "editable-without-pip", "package", "package-without-pip"],
)
def test_remedies_name_the_way_that_works_here(tmp_path, monkeypatch, clone, synced, pip, expected) -> None:
    project = tmp_path / "a clone"
    (project / "src" / "omma").mkdir(parents=True)
    if clone:
        (project / "pyproject.toml").touch()
    monkeypatch.setattr(errors, "_SOURCE", project)
    monkeypatch.setattr(sys, "prefix", str(project / ".venv" if synced else tmp_path / "elsewhere"))
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: object() if pip else None)
    monkeypatch.delenv("UV_PROJECT_ENVIRONMENT", raising=False)
    commands = errors.install_command("timm"), errors.install_command(package="zarr")
    assert commands == (expected[0].format(project), expected[1])
    assert expected[0].format(project) in str(refusal("no_such_module", "timm"))
    if synced:
        newest = errors.install_command("timm", "timm")
        assert newest == "uv sync --extra timm --inexact --upgrade-package timm"
        monkeypatch.setenv("UV_PROJECT_ENVIRONMENT", "other")
        assert errors.install_command("timm") != commands[0]


def refusal(module: str, extra: str) -> BaseException:
    with pytest.raises(ValueError, match=f"{module} is not installed: ") as caught:
        errors.need(module, extra)
    return caught.value


def test_every_extra_that_is_named_exists() -> None:
    """A remedy for an extra that the package does not have would install nothing."""
    source = Path(errors.__file__).parents[1]
    text = "\n".join(path.read_text() for path in sorted(source.rglob("*.py")))
    named = set(re.findall(r"""\binstall_command\(["'](\w+)["']""", text))
    named |= set(re.findall(r"""\bneed\([\w."{}]+, ["'](\w+)["']\)""", text))
    project = tomllib.loads((source.parents[1] / "pyproject.toml").read_text())["project"]
    assert {"timm", "hf", "search", "torchcodec", "tensorboard"} <= named
    assert named <= set(project["optional-dependencies"])
