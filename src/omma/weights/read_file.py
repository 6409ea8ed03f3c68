"""Read the tensors of any published weights file; its format is recognised by its first bytes."""

import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omma.weights.pickles import AGAIN, Standin, classes, load_pickle, load_torchscript, one_line_errors
from omma.weights.safetensors_file import open_tensors

# A checkpoint's entries in order of preference: papers evaluate the averaged network.
ENTRIES = (
    *("teacher", "target_encoder", "model_ema", "state_dict_ema", "ema_state_dict", "ema"),
    *("model", "state_dict", "model_state_dict", "module", "base_encoder", "student"),
    *("encoder", "backbone", "network", "net", "params", "weights"),
)
# A folder's weights files in order of preference.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".npz")
_WITHIN = re.compile(r"(?<![^.])_(modules|parameters|buffers)\.")
_LARGE, _MOST_RATIO = 1 << 28, 20  # bytes to unpack that need no look; times a file's size beyond


@dataclass(frozen=True)
class WeightsFile:
    """The content of a weights file.

    tensors: the weights by name, on the CPU, in the file's dtype; they may be memory-mapped.
    container: the entry that holds them ("teacher", "model", "state_dict.student", ...; "" is the top level).
    metadata: that of a .safetensors file. others: names of the other top-level entries.
    """

    tensors: dict[str, Tensor]
    container: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()


def read(path: str | Path, entry: str | None = None) -> WeightsFile:
    """Read a safetensors, torch, TorchScript or .npz file, or a folder with one (or with its shards).

    entry: the checkpoint entry, or prefix of names, to take ("student"); by default the first of ENTRIES.
    Raises a one-line ValueError (file, reason, remedy), also for a file that would run code.
    """
    file = Path(path)
    try:
        if file.is_dir():
            file = _file_in_folder(file)
        data, metadata = _read_content(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror or error}); check the path") from error
    if isinstance(data, Standin):  # a pickled module: its attributes have torch's internal names
        data = {_WITHIN.sub("", name): x for name, x in _flat(data).items()}
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds no dictionary of tensors; save its state_dict()")
    top = {str(name): value for name, value in dict.items(data)}
    container, tensors = _choose_entry(file, top, entry)
    own = container.split(".")[0]
    first = (name.split(".")[0] for name, x in top.items() if container or not isinstance(x, Tensor))
    return WeightsFile(tensors, container, metadata, tuple(n for n in dict.fromkeys(first) if n != own))


def _choose_entry(file: Path, top: dict[str, Any], entry: str | None) -> tuple[str, dict[str, Tensor]]:
    """The name of the chosen entry, and its tensors."""
    tables = {name: flat for name, x in top.items() if isinstance(x, dict) and (flat := _flat(x))}
    loose = _flat({name: x for name, x in top.items() if isinstance(x, Tensor)})
    # a network has matrices; an average's settings (decay, updates) have none
    preferred = next((n for n in ENTRIES if any(x.ndim > 1 for x in tables.get(n, {}).values())), None)
    if not tables and not loose:
        raise ValueError(f"{file} holds no tensors (only {_list(top) or 'nothing'}); give a file of weights")
    if entry is not None:
        if entry in tables:
            return entry, tables[entry]
        within = tables.get(preferred or "", {})
        for outer, table in (("", _flat(top)), ("", loose), (f"{preferred}.", within)):
            matches = {n.removeprefix(f"{entry}."): x for n, x in table.items() if n.startswith(f"{entry}.")}
            if matches:
                return outer + entry, matches
        raise ValueError(f"{file} has no entry {entry!r}; it has {_list(_entry_names(top, within))}")
    if preferred is not None:
        return preferred, tables[preferred]
    if loose:
        return "", loose
    # an optimizer's tensors are nested deeper than a network's
    networks = [name for name in tables if any(isinstance(x, Tensor) for x in dict.values(top[name]))]
    if len(networks) == 1:
        return networks[0], tables[networks[0]]
    raise ValueError(
        f"{file}: which of its entries is the model is unclear ({_list(networks or tables)}); name one: "
        f"{file}:{(networks or list(tables))[0]}"
    )


def _entry_names(top: dict[str, Any], network: dict[str, Tensor]) -> list[str]:
    """What `entry` may be: entries of the file, and the first prefixes that differ within its network."""
    prefixes: list[str] = []
    for depth in (1, 2, 3):
        prefixes = [".".join(name.split(".")[:depth]) for name in network]
        if len(set(prefixes)) > 1:
            break
    return [name.split(".")[0] for name in _flat(top)] + prefixes


def _flat(value: Any) -> dict[str, Tensor]:
    """All tensors at any depth, under dotted names; each dictionary is visited once, so that cycles end."""
    tensors: dict[str, Tensor] = {}
    visited: set[int] = set()
    stack: list[tuple[str, Any]] = [("", value)]
    while stack:
        name, value = stack.pop()
        if isinstance(value, Tensor):
            plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
            # an expanded tensor could claim far more bytes than the file has; and of the class, since a file
            # can give a tensor attributes that hide its methods
            if plain and value.nbytes <= Tensor.untyped_storage(value).nbytes():
                tensors[name] = Tensor.detach(value)
            continue
        inner = value.attributes if isinstance(value, Standin) else value
        if isinstance(inner, dict) and id(inner) not in visited:
            visited.add(id(inner))
            items = list(dict.items(inner))  # not inner.items, which a file can overwrite by an attribute
            stack.extend((f"{name}.{key}" if name else str(key), x) for key, x in reversed(items))
    return tensors


def _file_in_folder(folder: Path) -> Path:
    """The weights file of a folder, or its index of shards."""
    files = {f.name: f for f in sorted(folder.iterdir()) if f.is_file()}
    indices = [f for name, f in files.items() if name.endswith(".index.json")]
    candidates = (
        [files[name] for name in WEIGHTS if name in files][:1]
        or indices
        or [f for f in files.values() if f.suffix in _SUFFIXES]
    )
    if len(candidates) != 1:
        several = f"holds several files of weights ({_list(f.name for f in candidates)})"
        problem = several if candidates else "holds no file of weights"
        raise ValueError(f"{folder} {problem}; give the file itself")
    return candidates[0]


def _read_content(file: Path, shard: bool = False) -> tuple[Any, dict[str, str]]:
    """The file's content, and its metadata."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; check the path")
    with open(file, "rb") as opened:
        head = opened.read(256)
    if not head:
        raise ValueError(f"{file} is empty; {AGAIN}")
    if text := b"\0" not in head[:8]:  # a .safetensors file begins with a length that has zero bytes
        start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        if start.startswith(b"version https://git-lfs"):
            raise ValueError(
                f"{file} is a git-lfs pointer, not the weights; run `git lfs pull` at its source"
            )
        if start.startswith(b"<"):
            raise ValueError(f"{file} is a web page (login or error?), not the weights; log in and {AGAIN}")
        if start.startswith(b"{") and not shard:
            return _read_shards(file), {}
    if head[8:9] == b"{" and not text:
        return _read_safetensors(file)
    if head.startswith(b"\x80"):
        return _stored_only(file, load_pickle(file), file.stat().st_size), {}
    if head.startswith(b"PK"):
        return _read_zip(file), {}
    raise ValueError(
        f"{file} is no weights file (it begins with {head[:8]!r}); give .safetensors, .pth or .npz"
    )


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with one_line_errors(file), open_tensors(file) as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, dict(opened.metadata() or {})


def _read_zip(file: Path) -> Any:
    """torch.save's zip, TorchScript's, or numpy's."""
    with one_line_errors(file), zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        entries = {entry.filename.split("/", 1)[-1]: entry for entry in archive.infolist()}
    if unpacked > max(_LARGE, _MOST_RATIO * (size := file.stat().st_size)):
        raise ValueError(f"{file} unpacks to {unpacked:,} bytes, {unpacked // size} times its size: refused")
    if entries and all(name.endswith(".npy") for name in entries):
        return _read_npz(file)
    if "data.pkl" not in entries:
        raise ValueError(f"{file} is a zip archive of other things ({_list(entries)}); unpack it")
    if "constants.pkl" in entries:
        return _completed(file, _stored_only(file, _flat(load_torchscript(file)), unpacked))
    stored = all(e.compress_type == zipfile.ZIP_STORED for e in entries.values())
    return _stored_only(file, load_pickle(file, stored=stored), unpacked)


def _completed(file: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A TorchScript archive of CLIP has `input_resolution`, as OpenAI's, by which its QuickGELU is known.

    Some of OpenAI's lack it. An archive whose modules include PyTorch's GELU is another's.
    """
    first, positions = tensors.get("visual.conv1.weight"), tensors.get("visual.positional_embedding")
    named = any(name.endswith("input_resolution") for name in tensors)
    if first is None or positions is None or named or "GELU" in classes(file):
        return tensors
    side = first.shape[-1] * round(max(len(positions) - 1, 0) ** 0.5)
    return {**tensors, "input_resolution": torch.tensor(side)}


def _stored_only(file: Path, content: Any, size: int) -> Any:
    """The content; ValueError if its tensors have more bytes than the file: a pickle can make empty ones."""
    storages = [Tensor.untyped_storage(x) for x in _flat(content).values()]
    claimed = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if claimed > size:
        raise ValueError(f"{file} is damaged: tensors of {claimed:,} bytes in a file of {size:,}; {AGAIN}")
    return content


def _read_npz(file: Path) -> dict[str, Tensor]:
    """The numeric arrays of an .npz file; Google publishes bfloat16 as two-byte voids."""
    tensors: dict[str, Tensor] = {}
    with one_line_errors(file), np.load(file, allow_pickle=False) as arrays:
        for name, array in arrays.items():
            if array.dtype == np.dtype("V2"):
                tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            elif array.dtype.kind in "biuf":
                tensors[name] = torch.from_numpy(array)
    return tensors


def read_index(index: Path) -> dict[str, str]:
    """The file (shard) of each tensor, from an index of shards."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shard_of = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is JSON, but no index of weights; give the weights file itself") from error
    for shard in shard_of.values():
        if Path(shard).name != shard:
            raise ValueError(f"{index} names {shard}, which is not beside it; refused")
    return shard_of


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all shards that an index names."""
    shard_of = read_index(index)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shard_of.values())):
        file = index.parent / shard
        if not file.is_file():
            raise ValueError(
                f"{index} names {shard}, which is not beside it; download all shards into one folder"
            )
        content = _flat(_read_content(file, shard=True)[0])
        names = [name for name, its_shard in shard_of.items() if its_shard == shard]
        if missing := [name for name in names if name not in content]:
            raise ValueError(f"{file} lacks {_list(missing)}, which {index.name} lists; {AGAIN}")
        tensors |= {name: content[name] for name in names}
    return tensors


def _list(names: Any) -> str:
    """Up to five distinct names, for messages."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
