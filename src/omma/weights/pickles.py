"""Read what torch.save and TorchScript wrote, running nothing that stands in the file.

Everything goes through torch's restricted unpickler, which builds tensors and plain containers only.
Official checkpoints also carry their authors' settings (argparse, yacs, omegaconf, numpy scalars, ...): those
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

AGAIN = "download it again"

_SETTINGS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib\.(_local\.)?\w*Path|datetime\.\w+|typing\.\w+"
    r"|collections\.defaultdict|builtins\.(object|bool|int|float|str|bytes|list|tuple|dict|frozenset|slice|range)"
    r"|numpy\.(dtype|ndarray|bool_?|u?int\d+|float\d+|dtypes\.\w+|_?core\.multiarray\.(scalar|_reconstruct))"
    r"|(yacs|omegaconf|easydict|addict|mmcv|mmengine|lightning|lightning_fabric|pytorch_lightning)\.[\w.]+"
    r"|torch\.torch_version\.TorchVersion"
    r"|__torch__\.[\w.]+|torch\.jit\._pickle\.\w+"  # TorchScript's modules and lists
)
# OpenAI published DALL-E's tokenizer as whole modules, which are torch's and its own
_WHOLE = re.compile(r"dall_e\.(encoder|decoder|utils)\.\w+|torch\.nn\.modules\.[\w.]+")
_DICTIONARIES = ("CfgNode", "EasyDict", "AttributeDict", "ConfigDict", "Dict", "defaultdict")
_PYTHON_2 = {"long": "int", "unicode": "str", "xrange": "range"}  # torch.save writes that Python's names
_PLAIN = (
    "torch.",
    "collections.",
    "_codecs.",
    *(f"builtins.{name}" for name in ("set", "bytearray", "complex")),
)


class Standin:
    """In place of a foreign class or function: takes any arguments, keeps the attributes, does nothing."""

    attributes: Any = None

    def __new__(cls, *_: Any) -> "Standin":
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


class _Dictionary:
    """In place of a foreign subclass of dict: torch fills dict and OrderedDict only."""

    def __new__(cls, *_: Any) -> OrderedDict:
        return OrderedDict()


def unpickled(file: Path, *, stored: bool = False) -> Any:
    """The content of a torch.save file, zip or older; settings come back as Standin or OrderedDict.

    stored: the file is an uncompressed zip, so that its tensors can stay on disk until they are used.
    Raises ValueError in one line, which names what the file would run.
    """
    with open(file, "rb") as opened:
        # torch.load believes the suffix .safetensors, if given a path
        return _load(file, opened, mmap=stored and file.suffix != ".safetensors")


def without_code(file: Path) -> Any:
    """The module of a TorchScript archive as Standins, whose attributes are its tensors and modules.

    torch.load refuses archives with code, so it gets the archive without: data.pkl and the tensors.
    """
    plain = io.BytesIO()
    with refusing(file), zipfile.ZipFile(file) as source, zipfile.ZipFile(plain, "w") as target:
        for name in source.namelist():
            if not name.split("/", 1)[-1].startswith(("code/", "constants")):
                target.writestr(name, source.read(name))
    return _load(file, plain)


def _load(file: Path, opened: IO[bytes], mmap: bool = False) -> Any:
    names = _imports(opened)
    known = _SETTINGS
    if any(name.startswith("dall_e.encoder.") for name in names):
        known = re.compile(f"{_SETTINGS.pattern}|{_WHOLE.pattern}")
    standins: list[Any] = [
        (_Dictionary if name.rsplit(".", 1)[-1] in _DICTIONARIES else Standin, name)
        for name in names
        if known.fullmatch(name)
    ]
    opened.seek(0)
    with refusing(file, names), torch.serialization.safe_globals(standins), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they warn of is refused below, or harmless
        return torch.load(file if mmap else opened, map_location="cpu", weights_only=True, mmap=mmap)


def _imports(opened: IO[bytes]) -> list[str]:
    """Names that the pickles in a file would import; it is torch that refuses them, not this list."""
    found: dict[str, None] = {}
    with suppress(Exception):  # damaged: torch.load will say so
        for pickle in _pickles(opened):
            strings = ["", ""]
            for code, value, _ in pickletools.genops(pickle):
                if code.name in ("GLOBAL", "INST"):
                    module, name = str(value).split(" ", 1)
                elif code.name == "STACK_GLOBAL":
                    module, name = strings
                else:
                    strings = [strings[1], value] if isinstance(value, str) else strings
                    continue
                if module == "__builtin__":
                    module, name = "builtins", _PYTHON_2.get(name, name)
                found[f"{module}.{name}"] = None
    return list(found)


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
def refusing(file: Path, names: list[str] | None = None) -> Iterator[None]:
    """Turn whatever a library says about `file` into one line; a damaged file can fail in any way at all.

    names: what the file would import, in case that the library does not say which of them it refused.
    """
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())
        refused = re.search(r"GLOBAL ([\w.]+)", said)
        strange = [n for n in names or () if not _SETTINGS.fullmatch(n) and not n.startswith(_PLAIN)]
        if refused or strange:
            raise ValueError(
                f"{file} would run code: {refused[1] if refused else strange[0]}; refused. If you trust it, "
                f"load it where it was made and save only its state_dict(), best as .safetensors"
            ) from error
        said = said.partition("WeightsUnpickler error: ")[2] or said or type(error).__name__
        raise ValueError(f"{file} is damaged or truncated ({said[:150]}); {AGAIN}") from error
