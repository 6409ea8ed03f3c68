"""Read the tensors of any published weights file; what it is, its first bytes say, never its name."""

import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from omma.weights.pickles import AGAIN, Standin, refusing, unpickled, without_code

# Which of a file's parts is meant, best first: the averaged network is the one that the papers evaluate.
PARTS = (
    *("teacher", "target_encoder", "model_ema", "state_dict_ema", "ema_state_dict", "ema"),
    *("model", "state_dict", "model_state_dict", "module", "base_encoder", "student"),
    *("encoder", "backbone", "network", "net", "params", "weights"),
)
# Which of a folder's files is meant, best first.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz")
_WITHIN = re.compile(r"(?<![^.])_(modules|parameters|buffers)\.")
_MOST_HEADER = 100_000_000  # bytes; safetensors' own limit


@dataclass(frozen=True)
class Read:
    """What a file held.

    tensors: the weights by name, on the CPU, in the file's dtype; they may be views of the file on disk.
    container: the entry they were under ("teacher", "model", "state_dict.student", ...; "" is the top level).
    metadata: that of a .safetensors file. others: names of the other top-level entries, left alone.
    """

    tensors: dict[str, Tensor]
    container: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()


def read(path: str | Path, part: str | None = None) -> Read:
    """The weights in a safetensors, torch, TorchScript or .npz file, or in a folder with one (or its shards).

    part: the entry to take ("student", also where it is but a prefix of names); default: the first of PARTS.
    Raises ValueError in one line (file, reason, remedy), also where the file would run code.
    """
    file = Path(path)
    try:
        if file.is_dir():
            file = _of_folder(file)
        data, metadata = _content(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror or error}); check the path") from error
    if isinstance(data, Standin):  # a whole module, as its attributes are called within torch
        data = {_WITHIN.sub("", name): x for name, x in _flat(data).items()}
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds no table of tensors; save its state_dict()")
    top = {str(name): value for name, value in dict.items(data)}
    container, tensors = _chosen(file, top, part)
    own = container.split(".")[0]
    first = (name.split(".")[0] for name, x in top.items() if container or not isinstance(x, Tensor))
    return Read(tensors, container, metadata, tuple(n for n in dict.fromkeys(first) if n != own))


def _chosen(file: Path, top: dict[str, Any], part: str | None) -> tuple[str, dict[str, Tensor]]:
    """The name of the wanted entry, and the tensors in it."""
    tables = {name: held for name, x in top.items() if isinstance(x, dict) and (held := _flat(x))}
    loose = _flat({name: x for name, x in top.items() if isinstance(x, Tensor)})
    # a network has matrices: an average's own settings (decay, updates) are no network
    known = next((n for n in PARTS if any(x.ndim > 1 for x in tables.get(n, {}).values())), None)
    if not tables and not loose:
        raise ValueError(
            f"{file} holds no tensors (only {_listed(top) or 'nothing'}); give a file of weights"
        )
    if part is not None:
        if part in tables:
            return part, tables[part]
        places = (("", _flat(top)), ("", loose), (f"{known}.", tables[known] if known else {}))
        for outside, table in places:
            if found := {n.removeprefix(f"{part}."): x for n, x in table.items() if n.startswith(f"{part}.")}:
                return outside + part, found
        raise ValueError(
            f"{file} has no part {part!r}; it has {_listed(_beginnings(top, tables.get(known or '', {})))}"
        )
    if known is not None:
        return known, tables[known]
    if loose:
        return "", loose
    plain = [name for name in tables if any(isinstance(x, Tensor) for x in dict.values(top[name]))]
    if len(plain) == 1:  # an optimizer's tensors lie deeper
        return plain[0], tables[plain[0]]
    raise ValueError(
        f"{file}: which of its parts is the model is unclear ({_listed(plain or tables)}); name one, as in "
        f"{file}:{(plain or list(tables))[0]}"
    )


def _beginnings(top: dict[str, Any], known: dict[str, Tensor]) -> list[str]:
    """What a part may be called: entries of the file, and of its network what its names begin with."""
    within: list[str] = []
    for depth in (1, 2, 3):  # wrappers that all have in common tell nothing
        within = [".".join(name.split(".")[:depth]) for name in known]
        if len(set(within)) > 1:
            break
    return [name.split(".")[0] for name in _flat(top)] + within


def _flat(value: Any) -> dict[str, Tensor]:
    """All tensors at any depth under dotted names; each table is entered once, so that circles end."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    ahead: list[tuple[str, Any]] = [("", value)]
    while ahead:
        name, value = ahead.pop()
        if isinstance(value, Tensor):
            plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
            if plain and value.nbytes <= value.untyped_storage().nbytes():  # else few bytes say to be many
                found[name] = value.detach()
            continue
        inner = value.attributes if isinstance(value, Standin) else value
        if isinstance(inner, dict) and id(inner) not in seen:
            seen.add(id(inner))
            items = list(
                dict.items(inner)
            )  # not inner.items: a file can hang such an attribute on its tables
            ahead.extend((f"{name}.{key}" if name else str(key), x) for key, x in reversed(items))
    return found


def _of_folder(folder: Path) -> Path:
    files = {f.name: f for f in sorted(folder.iterdir()) if f.is_file()}
    indices = [f for name, f in files.items() if name.endswith(".index.json")]
    found = (
        [files[name] for name in WEIGHTS if name in files][:1]
        or indices
        or [f for f in files.values() if f.suffix in _SUFFIXES]
    )
    if len(found) != 1:
        held = f"holds several files of weights ({_listed(f.name for f in found)})"
        raise ValueError(f"{folder} {held if found else 'holds no file of weights'}; give the file itself")
    return found[0]


def _content(file: Path, shard: bool = False) -> tuple[Any, dict[str, str]]:
    """What the file holds, and its metadata."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; check the path")
    with open(file, "rb") as opened:
        head = opened.read(256)
    if not head:
        raise ValueError(f"{file} is empty; {AGAIN}")
    if text := b"\0" not in head[:8]:  # the length that opens a .safetensors has zeros
        start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        if start.startswith(b"version https://git-lfs"):
            raise ValueError(
                f"{file} is a git-lfs pointer, not the weights; run `git lfs pull` at its source"
            )
        if start.startswith(b"<"):
            raise ValueError(f"{file} is a web page (login or error?), not the weights; log in and {AGAIN}")
        if start.startswith(b"{") and not shard:
            return _sharded(file), {}
    if head[8:9] == b"{" and not text:
        return _safetensors(file, int.from_bytes(head[:8], "little"))
    if head.startswith(b"\x80"):
        return unpickled(file), {}
    if head.startswith(b"PK"):
        return _zipped(file), {}
    raise ValueError(
        f"{file} is no weights file (it begins with {head[:8]!r}); give .safetensors, .pth or .npz"
    )


def _safetensors(file: Path, header: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    size = file.stat().st_size
    if header > _MOST_HEADER or header + 8 > size:
        raise ValueError(f"{file} is damaged: a header of {header:,} bytes in a file of {size:,}; {AGAIN}")
    with refusing(file), safetensors.safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, dict(opened.metadata() or {})


def _zipped(file: Path) -> Any:
    """torch.save's zip, TorchScript's, or numpy's."""
    with refusing(file), zipfile.ZipFile(file) as archive:
        entries = {entry.filename.split("/", 1)[-1]: entry for entry in archive.infolist()}
    if entries and all(name.endswith(".npy") for name in entries):
        return _arrays(file)
    if "data.pkl" not in entries:
        raise ValueError(f"{file} is a zip archive of other things ({_listed(entries)}); unpack it")
    if "constants.pkl" in entries:
        return _flat(without_code(file))
    return unpickled(file, stored=all(e.compress_type == zipfile.ZIP_STORED for e in entries.values()))


def _arrays(file: Path) -> dict[str, Tensor]:
    """The numeric arrays of an .npz file, as Google publishes; two-byte voids are bfloat16 there."""
    found: dict[str, Tensor] = {}
    with refusing(file), np.load(file, allow_pickle=False) as arrays:
        for name, array in arrays.items():
            if array.dtype == np.dtype("V2"):
                found[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            elif array.dtype.kind in "biuf":
                found[name] = torch.from_numpy(array)
    return found


def places(index: Path) -> dict[str, str]:
    """Which file of its folder holds each tensor, as an index of shards says."""
    try:
        found = {str(name): str(shard) for name, shard in json.loads(index.read_text())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is JSON, but no index of weights; give the weights themselves") from error
    for shard in found.values():
        if Path(shard).name != shard:
            raise ValueError(f"{index} names {shard}, which is not beside it; refused")
    return found


def _sharded(index: Path) -> dict[str, Tensor]:
    """The tensors that an index spreads over several files beside it."""
    where = places(index)
    found: dict[str, Tensor] = {}
    for shard in sorted(set(where.values())):
        file = index.parent / shard
        if not file.is_file():
            raise ValueError(
                f"{index} names {shard}, which is not beside it; download all parts into one folder"
            )
        held = _flat(_content(file, shard=True)[0])
        wanted = [name for name, place in where.items() if place == shard]
        if lacking := [name for name in wanted if name not in held]:
            raise ValueError(f"{file} lacks {_listed(lacking)}, which {index.name} promises; {AGAIN}")
        found |= {name: held[name] for name in wanted}
    return found


def _listed(names: Any) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
