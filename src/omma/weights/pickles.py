"""Read files of torch.save and TorchScript without running any code in them.

Files are read by torch's restricted unpickler, which builds tensors and plain containers only. Official
checkpoints also contain their authors' settings (argparse, yacs, omegaconf, numpy scalars, ...): these
names are bound to empty stand-ins, so that no foreign package is imported or called. Others are refused.
"""

import io
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from omma.core.errors import exhausted

AGAIN = "download it again"
SAVE_AGAIN = "save only its state_dict() where it was made"
MOST_OPERATIONS = (
    3_000_000  # of a file's pickles; those of the largest published checkpoints have some 100,000
)

_SETTINGS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib\.(_local\.)?\w*Path|datetime\.\w+|typing\.\w+"
    r"|collections\.defaultdict|builtins\.(object|bool|int|float|str|bytes|list|tuple|dict|frozenset|slice|range)"
    r"|numpy\.(dtype|ndarray|bool_?|u?int\d+|float\d+|dtypes\.\w+|_?core\.multiarray\.(scalar|_reconstruct))"
    r"|(yacs|omegaconf|easydict|addict|mmcv|mmengine|lightning|lightning_fabric|pytorch_lightning)\.[\w.]+"
    r"|torch\.torch_version\.TorchVersion"
    r"|__torch__\.[\w.]+|torch\.jit\._pickle\.\w+"  # TorchScript's modules and lists
)
# OpenAI published DALL-E's tokenizer as pickled modules of torch and of its own package
_DALLE_MODULES = re.compile(r"dall_e\.(encoder|decoder|utils)\.\w+|torch\.nn\.modules\.[\w.]+")
_DICTIONARIES = ("CfgNode", "EasyDict", "AttributeDict", "ConfigDict", "Dict", "defaultdict")
_PYTHON_2 = {"long": "int", "unicode": "str", "xrange": "range"}  # torch.save writes the names of Python 2
_ALLOWED_BY_TORCH = (
    "torch.",
    "collections.",
    "_codecs.",
    *(f"builtins.{name}" for name in ("set", "complex")),
)


class Standin:
    """Replaces a foreign class or function: takes any arguments, stores the attributes, does nothing."""

    attributes: Any = None

    def __new__(cls, *_: Any) -> "Standin":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class _Dictionary:
    """Replaces a foreign subclass of dict; torch fills only dict and OrderedDict."""

    def __new__(cls, *_: Any) -> OrderedDict:
        return OrderedDict()


def load_pickle(file: Path, *, stored: bool = False) -> Any:
    """The content of a torch.save file (zip or the older format); settings become Standin or OrderedDict.

    stored: the file is an uncompressed zip, so its tensors can be memory-mapped.
    Raises a one-line ValueError that names what the file would run.
    """
    with open(file, "rb") as opened:
        # given a path, torch.load trusts the suffix .safetensors
        return _load(file, opened, mmap=stored and file.suffix != ".safetensors")


def load_torchscript(file: Path) -> Any:
    """The module of a TorchScript archive, as Standins whose attributes are its tensors and submodules.

    torch.load refuses archives that contain code, so it is given a copy without: data.pkl and the tensors.
    """
    plain = io.BytesIO()
    with one_line_errors(file), zipfile.ZipFile(file) as source, zipfile.ZipFile(plain, "w") as target:
        for name in source.namelist():
            if not name.split("/", 1)[-1].startswith(("code/", "constants")):
                target.writestr(name, source.read(name))
    return _load(file, plain)


def classes(file: Path) -> list[str]:
    """Last names of the classes that a file's pickles name, of a TorchScript archive: its modules'."""
    with open(file, "rb") as opened:
        return [name.rpartition(".")[2] for name in _imported_names(file, opened)]


def _load(file: Path, opened: IO[bytes], mmap: bool = False) -> Any:
    names = _imported_names(file, opened)
    if "builtins.bytearray" in names:  # torch calls it with any size
        raise ValueError(
            f"{file} would call builtins.bytearray, which no weights need: refused; {SAVE_AGAIN}"
        )
    allowed = _SETTINGS
    if any(name.startswith("dall_e.encoder.") for name in names):
        allowed = re.compile(f"{_SETTINGS.pattern}|{_DALLE_MODULES.pattern}")
    standins: list[Any] = [
        (_Dictionary if name.rsplit(".", 1)[-1] in _DICTIONARIES else Standin, name)
        for name in names
        if allowed.fullmatch(name)
    ]
    opened.seek(0)
    with one_line_errors(file, names), torch.serialization.safe_globals(standins), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warnings are about what is refused below, or harmless
        return torch.load(file if mmap else opened, map_location="cpu", weights_only=True, mmap=mmap)


def _imported_names(file: Path, opened: IO[bytes]) -> list[str]:
    """Names that the pickles in a file would import; for messages, since torch itself refuses them.

    Raises ValueError for pickles of more operations than are read in a few seconds.
    """
    names: dict[str, None] = {}
    left = MOST_OPERATIONS
    with suppress(Exception):  # torch.load will report the damage
        for pickle in _pickles(opened):
            strings = ["", ""]
            for code, value, _ in pickletools.genops(pickle):
                if (left := left - 1) < 0:
                    break
                if code.name in ("GLOBAL", "INST"):
                    module, name = str(value).split(" ", 1)
                elif code.name == "STACK_GLOBAL":
                    module, name = strings
                else:
                    strings = [strings[1], value] if isinstance(value, str) else strings
                    continue
                if module == "__builtin__":
                    module, name = "builtins", _PYTHON_2.get(name, name)
                names[f"{module}.{name}"] = None
    if left < 0:
        raise ValueError(
            f"{file}: its pickle has over {MOST_OPERATIONS:,} operations, more than weights need: refused; "
            f"{SAVE_AGAIN}"
        )
    return list(names)


def _pickles(opened: IO[bytes]) -> Iterator[IO[bytes]]:
    """A stream at the start of each pickle: a zip's data.pkl, or the five in a row of the older format."""
    opened.seek(0)
    zipped = opened.read(2) == b"PK"
    opened.seek(0)
    if not zipped:
        yield from (opened,) * 5
        return
    with zipfile.ZipFile(opened) as archive:
        for name in archive.namelist():
            if name.split("/", 1)[-1] == "data.pkl":
                yield io.BytesIO(archive.read(name))


@contextmanager
def one_line_errors(file: Path, names: list[str] | None = None) -> Iterator[None]:
    """Turn any error from reading `file` into a one-line ValueError; a damaged file can fail in many ways.

    names: what the file would import, in case the library does not say which name it refused.
    """
    try:
        yield
    except Exception as error:
        if exhausted(error):
            raise
        message = " ".join(str(error).split())
        match = re.search(r"GLOBAL ([\w.]+)", message)
        unknown = [
            n for n in names or () if not _SETTINGS.fullmatch(n) and not n.startswith(_ALLOWED_BY_TORCH)
        ]
        if match or unknown:
            raise ValueError(
                f"{file} would run code: {match[1] if match else unknown[0]}; refused. If you trust it, "
                f"load it where it was made and save only its state_dict(), preferably as .safetensors"
            ) from error
        message = message.partition("WeightsUnpickler error: ")[2] or message or type(error).__name__
        raise ValueError(f"{file} is damaged or truncated ({message[:150]}); {AGAIN}") from error
