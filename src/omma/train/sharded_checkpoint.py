"""Checkpoints of sharded networks: a folder that any number of processes can read.

torch.distributed.checkpoint writes each process' shards into a file of its own. Each reader, whether its
network is sharded or whole, reads what it needs from all files. Parameters and moments are stored under the
parameters' names.
"""

import json
import os
import pickle
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from omma.core import dist, files
from omma.core.dtensor import shard_like, to_local
from omma.core.errors import line
from omma.train.lars import Lars
from omma.train.muon import Muon

FACTS, CHECKSUMS = "facts.json", "checksums.json"
BLOCK = 1 << 22  # bytes read at a time for a checksum
ADAM = ("exp_avg", "exp_avg_sq")  # its moments, each as large as its parameter; `step` is a number


def save(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer, facts: Mapping[str, Any]) -> None:
    """Write the folder under a temporary name and rename it when all processes are done; all must call.

    Raises OSError if a process cannot write.
    """
    partial = path.with_name(f".{path.name}.partial")
    with dist.propagate_errors():
        if dist.rank() == 0:
            partial.mkdir(parents=True)
            with files.atomic_write(partial / FACTS, durable=True) as file:
                file.write_text(json.dumps(dict(facts)), encoding="utf-8")
    moments = {
        name: dict(optimizer.state[p]) for name, p in method.named_parameters() if p in optimizer.state
    }
    try:
        dcp.save({"method": method.state_dict(), "optimizer": moments}, checkpoint_id=str(partial))
    except CheckpointException as error:
        raise OSError(f"{path}: cannot be written ({_first(error)})") from error
    with dist.propagate_errors():
        names = sorted(file.name for file in partial.iterdir())
        share = _checksums(partial, names[dist.rank() :: dist.world_size()])
    sums = {name: value for each in dist.gather_objects(share) for name, value in each.items()}
    with dist.propagate_errors():
        if dist.rank() == 0:
            with files.atomic_write(partial / CHECKSUMS, durable=True) as file:
                file.write_text(json.dumps(sums), encoding="utf-8")
            os.replace(partial, path)
            files.flush_folder(path.parent)


def facts(path: Path, rank: int, processes: int) -> dict[str, Any]:
    """The numbers and notes stored beside the state; each of the processes checks a share of the files.

    Raises ValueError, OSError or pickle.UnpicklingError if the folder is damaged.
    """
    sums: dict[str, Any] = {}  # none, if omma 0.1 wrote it
    if (path / CHECKSUMS).exists():
        sums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
    for name, size in _sizes(_Reader(str(path)).read_metadata()).items():
        if (path / name).stat().st_size < size:
            raise ValueError(f"{name} is truncated")
    for name, value in _checksums(path, sorted(sums)[rank::processes]).items():
        if value != sums[name]:
            raise ValueError(f"the checksum of {name} differs")
    return json.loads((path / FACTS).read_text(encoding="utf-8"))


def _checksums(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """CRC-32 of files."""
    sums = dict.fromkeys(names, 0)
    for name in names:
        with open(folder / name, "rb") as file:
            while block := file.read(BLOCK):
                sums[name] = zlib.crc32(block, sums[name])
    return sums


def load(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Fill network and optimizer; all processes must call. Raises ValueError if it cannot be read."""
    reader = _Reader(str(path))
    state: dict[str, Any] = {"method": method.state_dict()}
    if optimizer is not None:
        state["optimizer"] = _blank(reader.read_metadata(), method, optimizer)
    try:
        with warnings.catch_warnings():  # about a single reading process, which is intended
            warnings.simplefilter("ignore")
            dcp.load(state, storage_reader=reader)
    except CheckpointException as error:
        # some tensors may be overwritten by now, so an older checkpoint cannot be tried instead
        raise ValueError(
            f"{path}: damaged ({_first(error)}); remove it to resume from the previous one"
        ) from error


def moments_of(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> tuple[str, ...]:
    """Names of what the optimizer keeps for a parameter, beside the number of steps."""
    return optimizer.moments(p) if isinstance(optimizer, (Lars, Muon)) else ADAM


def _blank(stored: Metadata, method: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state, of zeros, for the parameters that have one in the checkpoint."""
    optimizer.state.clear()
    for name, p in method.named_parameters():
        if f"optimizer.{name}.step" in stored.state_dict_metadata:
            optimizer.state[p] = _blank_state(optimizer, p)
    return {name: optimizer.state[p] for name, p in method.named_parameters() if p in optimizer.state}


def _blank_state(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> dict[str, Tensor]:
    blank = {moment: torch.zeros_like(p, requires_grad=False) for moment in moments_of(optimizer, p)}
    return {"step": torch.zeros((), device=p.device), **blank}


@torch.no_grad()
def scatter(
    state: Mapping[str, Tensor],
    moments: Mapping[str, Any],
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Fill a sharded network and its optimizer from the state dicts of unsharded ones."""
    for name, tensor in method.state_dict().items():
        _fill(tensor, state[name])
    optimizer.state.clear()
    for group in optimizer.param_groups:
        number, rows = group["original"]
        for row, p in zip(rows, group["params"], strict=True):
            entry = moments["state"].get(moments["param_groups"][number]["params"][row])
            if entry is not None:
                blank = optimizer.state[p] = _blank_state(optimizer, p)
                for name in blank:
                    _fill(blank[name], entry[name])


def _fill(tensor: Tensor, whole: Tensor) -> None:
    to_local(tensor).copy_(shard_like(whole, tensor))


def _first(error: CheckpointException) -> str:
    """The error of the first process that failed."""
    return line(next(iter(error.failures.values()))[0])


def _sizes(metadata: Metadata) -> dict[str, int]:
    """The least size of each file, in bytes."""
    sizes: dict[str, int] = {}
    for entry in (metadata.storage_data or {}).values():
        sizes[entry.relative_path] = max(sizes.get(entry.relative_path, 0), entry.offset + entry.length)
    return sizes


class _Metadata(pickle.Unpickler):
    """Reads the classes of a checkpoint's metadata and no others, so files cannot run code."""

    ALLOWED = (
        *(("torch.distributed.checkpoint.metadata", name) for name in (
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
            "TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
        )),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("pathlib", "PosixPath"),  # the path it was written to
        ("pathlib._local", "PosixPath"),  # the same from Python 3.13 on
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        *(("torch", name) for name in (
            "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
        )),
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"metadata names {module}.{name}, which is not allowed")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _Metadata(file).load()
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
