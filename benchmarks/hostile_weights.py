"""Damaged and hostile files of weights through `omma.load`: each gives a model or one line, and runs no code.

    python benchmarks/hostile_weights.py [--count 1500] [--seed 0] [--out hostile_weights.jsonl]

Handmade attacks (code in every place of a pickle, bombs, lying headers, archives that point elsewhere) and
seeded mutants of every form that omma reads: files of torch.save (both formats), TorchScript, .npz,
.safetensors, shards, run folders, folders of transformers and timm. Mutants have code or foreign names put
into their pickles, fields of their JSON or header changed, or their bytes. All code that they carry writes a
marker file. Each is loaded, and embeds one image, in another process. Failures are: another exception than
ValueError or OSError, a message that is not one printable line, a process that ends, over 10 s of processor
time, over 1 GiB of memory beyond what the process had, a marker file. A line for each is appended to --out;
the same command goes on after the last one. Prints the counts. For Linux.
"""

import argparse
import collections
import copy
import io
import itertools
import json
import multiprocessing
import os
import pickle
import pickletools
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from omma import backbones, weights
from omma.core.errors import message
from omma.core.protocols import Preprocess
from omma.weights.export.hf_forms import hf_network

SECONDS, BYTES = 10.0, 1 << 30
WAIT = 60.0  # seconds of wall time after which a process hangs
MOST_MESSAGE = 1000  # characters
HEADROOM = 5 << 30  # address space of a process beyond its own
PREPROCESS = Preprocess(
    size=32, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)
Files = dict[str, bytes]  # the files of a folder; the first one, or the folder itself, is the model
ESCAPES = "\x1b[31mred\x07\nnext\u202e"


# ---------------------------------------------------------------- honest files


def _torch(value: Any, legacy: bool = False) -> bytes:
    torch.save(value, file := io.BytesIO(), _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def _npz(tensors: Mapping[str, Any], compressed: bool = False) -> bytes:
    (np.savez_compressed if compressed else np.savez)(file := io.BytesIO(), **tensors)
    return file.getvalue()


def _zipped(entries: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def samples() -> dict[str, Files]:
    """Honest files of each form, small, of one block."""
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-ti/16", image_size=32, depth=1)
    state = {name: x.detach().contiguous().clone() for name, x in encoder.state_dict().items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = weights.save(
            Path(scratch), encoder, PREPROCESS, {"method": "dino", "loaded": ["fine"]}
        ).parent
        run = {name: (folder / name).read_bytes() for name in ("model.json", "model.safetensors")}
    tensors = safetensors.torch.save(state, {"format": "pt"})
    checkpoint = {"model": state, "args": argparse.Namespace(lr=0.1, out="x"), "epoch": 3}
    checkpoint |= {"optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]}}
    network = hf_network(encoder)
    config = {**network.config, "model_type": "vit", "architectures": ["ViTModel"]}
    processor = {"crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "image_mean": [0.5] * 3}
    processor |= {"image_std": [0.5] * 3, "size": {"shortest_edge": 36}}
    size = {"img_size": 32, "depth": 1}
    timm = {"architecture": "vit_tiny_patch16_224", "model_args": size, "num_classes": 0}
    timm |= {"pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}}
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    shards = {f: safetensors.torch.save({n: state[n] for n in own}) for f, own in parts.items()}
    index = {"metadata": {}, "weight_map": {n: f for f, own in parts.items() for n in own}}
    return {
        "torch": {"w.pth": _torch(checkpoint)},
        "torch-legacy": {"w.pth": _torch(checkpoint, legacy=True)},
        "torch-compressed": {"w.bin": _deflated(_torch(state))},
        "torchscript": {"w.pt": _scripted(state)},
        "npz": {"w.npz": _npz({n: x.numpy() for n, x in state.items()})},
        "safetensors": {"w.safetensors": tensors},
        "shards": {"model.safetensors.index.json": _json(index), **shards},
        "run": {"": b"", **run},
        "hf": {
            "": b"",
            "config.json": _json(config),
            "preprocessor_config.json": _json(processor),
            "model.safetensors": safetensors.torch.save(
                {n: x.contiguous() for n, x in network.state.items()}
            ),
        },
        "timm": {"": b"", "config.json": _json(timm), "model.safetensors": tensors},
    }


def _deflated(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return _zipped({n: archive.read(n) for n in archive.namelist()}, zipfile.ZIP_DEFLATED)


def _scripted(state: Mapping[str, Tensor]) -> bytes:
    """As TorchScript saves a module: its code beside its attributes."""
    data = _torch(dict(state))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {n: archive.read(n) for n in archive.namelist()}
    code = {"archive/constants.pkl": pickle.dumps((), 2), "archive/code/x.py": b"import os"}
    return _zipped({**entries, **code})


# ---------------------------------------------------------------- code in pickles
def calls(marker: Path) -> list[bytes]:
    """Operations of pickle that write the marker in an unrestricted reader; each call leaves nothing."""
    command, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    return [
        b"cos\nsystem\n" + text(command) + b"\x85R0",
        b"cposix\nsystem\n" + text(command) + b"\x85R0",
        b"c__builtin__\neval\n" + text(code) + b"\x85R0",
        b"cbuiltins\nexec\n" + text(code) + b"\x85R0",
        b"(" + text(command) + b"ios\nsystem\n0",  # INST
        b"(cos\nsystem\n" + text(command) + b"o0",  # OBJ
        text("os") + text("system") + b"\x93" + text(command) + b"\x85R0",  # STACK_GLOBAL
        b"csubprocess\nPopen\n" + text("touch") + text(str(marker)) + b"\x86\x85\x81" + b"0",  # NEWOBJ
        b"cpathlib\nPath.touch\ncpathlib\nPath\n" + text(str(marker)) + b"\x85R\x85R0",
        b"ctorch.serialization\nload\n" + text(str(marker)) + b"\x85R0",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nc__builtin__\nint\n"
        + text(command)
        + b"\x85}tR0",
        b"ccollections\nOrderedDict\n)R}" + text("__class__") + b"cos\nsystem\nsb0",  # BUILD
        b"ccollections\nOrderedDict\n)R}" + text("__reduce__") + b"cos\nsystem\nsb0",
        b"cargparse\nNamespace\n)R}" + text("__setstate__") + b"cos\nsystem\nsb" + text(command) + b"b0",
        b"cfunctools\npartial\ncos\nsystem\n" + text(command) + b"\x86R)R0",
        b"cbuiltins\ngetattr\nctorch\nhub\n" + text("load") + b"\x86R0",
        b"ctorch._dynamo\neval_frame\n)R0",
        b"crunpy\nrun_path\n" + text(str(marker)) + b"\x85R0",
        b"cnumpy.lib.npyio\nload\n" + text(str(marker)) + b"N\x89\x87R0",
        b"ctorch.storage\n_load_from_bytes\nC"
        + bytes([len(inner := pickle.dumps(_Runs(command), 2))])
        + inner
        + b"\x85R0",
    ]


class _Runs:
    """Pickled, a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


class _Calls:
    """Pickled, a call of any function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> Any:
        plain = self.function, self.arguments
        return plain if self.state is None else (*plain, self.state)


def _opcodes(data: bytes) -> list[tuple[int, Any]]:
    """Positions and operations of the pickle that `data` begins with."""
    return [(at or 0, code) for code, _, at in pickletools.genops(data)]


def with_call(code: bytes) -> bytes:
    """A pickle of an empty dictionary that runs `code` before."""
    return _insert(b"\x80\x02}.", code, 0.5)


def _insert(data: bytes, code: bytes, where: float) -> bytes:
    """Put operations that leave the stack as it is between two of a pickle's."""
    places = [at for at, op in _opcodes(data) if op.name not in ("PROTO", "FRAME")]
    at = places[int(where * len(places))]
    return data[:at] + code + data[at:]


def in_pickle(data: bytes, change: Callable[[bytes], bytes], which: float) -> bytes:
    """The file with one of its pickles changed: a zip's data.pkl, or one of the older format's five."""
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        name = next(n for n in entries if n.endswith("data.pkl"))
        return _zipped({**entries, name: change(entries[name])})
    stream, ends = io.BytesIO(data), [0]
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    k = int(which * 5)
    return data[: ends[k]] + change(data[ends[k] : ends[k + 1]]) + data[ends[k + 1] :]


# ---------------------------------------------------------------- attacks
def _st(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file with this header."""
    text = header if isinstance(header, bytes) else _json(header)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _f32(*shape: int, at: tuple[int, int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": list(at)}


def attacks(marker: Path, large: bool = True) -> dict[str, Files]:
    """Handmade files, by name. large: those too that take seconds to make."""
    honest = samples()
    whole, legacy = honest["torch"]["w.pth"], honest["torch-legacy"]["w.pth"]
    run, state = honest["run"], {"w": torch.ones(2, 2)}
    evil = _Runs(f"touch {marker}")
    first = {"w": _f32(2, 2, at=(0, 16))}
    made: dict[str, bytes | Files] = _large(run) if large else {}
    made |= {
        "pickle": pickle.dumps(evil, 4),
        "pickle-protocol-0": pickle.dumps(evil, 0),
        "npy-of-objects": _npy(evil),
        "npz-of-objects": _npz({"a": np.array([evil], dtype=object)}),
        "npz-with-pickle": _zipped({"a.npy": pickle.dumps(evil)}),
        "npz-beside-data.pkl": _zipped({"a.npy": _npy(evil), "x/data.pkl": pickle.dumps(evil, 2)}),
        "zip-in-zip": _zipped({"x/data.pkl": whole}),
        "zip-of-a-checkpoint": _zipped({"w.pth": _torch(evil)}),
        "two-data.pkl": _zipped({"x/data.pkl": pickle.dumps(evil, 2), "y/data.pkl": pickle.dumps({}, 2)}),
        "zip-slip": _zipped({"../../evil.py": b"x", "x/../../data.pkl": pickle.dumps(evil, 2)}),
        "zip-link": _linked("/etc/passwd"),
        "zip-escapes": _zipped({ESCAPES: b"x"}),
        "npz-shape": _zipped({"a.npy": _npy_header("(1000000000000,)")}),
        "npz-negative": _zipped({"a.npy": _npy_header("(-1,)")}),
        "npz-header": _zipped({"a.npy": _npy_header("(" * 5000)}),
        "tar-slip": _tarred("../../evil.pth"),
        "tar-link": _tarred("w.pth", "/etc/passwd"),
        "bytearray": _torch({**state, "x": _Calls(bytearray, 3 << 30)}),
        "tensor-of-nothing": _torch({**state, "x": _Calls(torch.FloatTensor, 1 << 30)}),
        "expanded": _torch({**state, "x": torch.ones(1).expand(1 << 20, 1 << 20)}),
        "shadowed": _torch({"w": _shadowing(detach=3, untyped_storage=4)}),
        "shadowed-by-class": _torch({"w": _shadowing(detach=collections.OrderedDict)}),
        "shadowed-dictionary": _torch(
            _Calls(collections.OrderedDict, state=dict.fromkeys(("items", "get"), 3))
        ),
        "cyclic": _torch(_cyclic(state)),
        "names-of-tensors": _torch({f"{ESCAPES}{k}": x for k, x in enumerate(state.values())}),
        "legacy-cut": legacy[: len(legacy) // 2],
        "header-huge": _st(first, bytes(16), length=1 << 62),
        "header-negative": _st(first, bytes(16), length=(1 << 64) - 8),
        "header-zero": _st(b"", bytes(16)),
        "overlap": _st({**first, "v": _f32(2, 2, at=(0, 16))}, bytes(16)),
        "overlap-partly": _st({**first, "v": _f32(2, 2, at=(8, 24))}, bytes(24)),
        "hole": _st({"w": _f32(2, 2, at=(8, 24))}, bytes(24)),
        "backwards": _st({"w": _f32(2, 2, at=(16, 0))}, bytes(16)),
        "offset-negative": _st({"w": _f32(2, 2, at=(-16, 0))}, bytes(16)),
        "offset-huge": _st({"w": _f32(2, 2, at=(0, 1 << 63))}, bytes(16)),
        "shape-overflow": _st({"w": _f32(1 << 32, 1 << 32, 4, at=(0, 16))}, bytes(16)),
        "shape-negative": _st({"w": _f32(-2, -2, at=(0, 16))}, bytes(16)),
        "same-name": _st(b'{"w":%b,"w":%b}' % ((_json(first["w"]),) * 2), bytes(16)),
        "dtype-unknown": _st({"w": {**first["w"], "dtype": ESCAPES}}, bytes(16)),
        "tensor-escapes": _st({ESCAPES: first["w"]}, bytes(16)),
        "metadata-types": _st({"__metadata__": {"digest": [1]}, **first}, bytes(16)),
        "run-lying-header": {**run, "model.safetensors": _st(first, bytes(16), length=1 << 40)},
        "run-escapes": {**run, "model.safetensors": _st({ESCAPES: first["w"]}, bytes(16))},
        "run-model.json-deep": {**run, "model.json": b"[" * 100_000},
        "run-extras-pickled": {**run, "extras.safetensors": pickle.dumps(evil, 2)},
    }
    made |= {f"pickle-call-{k}": with_call(code) for k, code in enumerate(calls(marker))}
    for name, index in {
        "elsewhere": {"weight_map": {"w": "../../../../etc/passwd"}},
        "pickled": {"weight_map": {"w": "evil.bin"}},
        "itself": {"weight_map": {"w": "model.safetensors.index.json"}},
        "escapes": {"weight_map": {"w": ESCAPES}},
        "numbers": {"weight_map": {"w": 3}},
        "list": {"weight_map": [1, 2]},
    }.items():
        made[f"index-{name}"] = {"model.safetensors.index.json": _json(index), "evil.bin": _torch(evil)}
    hf = json.loads(honest["hf"]["config.json"])
    for name, change in {
        "remote-code": {"auto_map": {"AutoModel": "evil.Model"}, "trust_remote_code": True},
        "architecture": {"architecture": ESCAPES},
        "checkpoint": {
            "architecture": "vit_tiny_patch16_224",
            "model_args": {"checkpoint_path": "evil.bin"},
        },
        "url": {
            "architecture": "vit_tiny_patch16_224",
            "pretrained_cfg": {"url": "http://127.0.0.1:9/x.pth"},
        },
        "heads": {"num_attention_heads": 10**9},
        "size": {"image_size": 10**9},
        "escapes": {"hidden_act": ESCAPES},
    }.items():
        made[f"hf-{name}"] = {
            **honest["hf"],
            "config.json": _json({**hf, **change}),
            "evil.py": f"open({str(marker)!r}, 'w')".encode(),
            "evil.bin": _torch(evil),
        }
    return {name: value if isinstance(value, dict) else {"w.pth": value} for name, value in made.items()}


def _large(run: Files) -> dict[str, bytes | Files]:
    """Bombs, and files of very many parts."""
    many = _st({f"t{k}": _f32(0, at=(0, 0)) for k in range(1_200_000)})
    return {
        "zip-bomb": _zipped({"x/data.pkl": bytes(1 << 30)}, zipfile.ZIP_DEFLATED),
        "zip-bomb-torchscript": _zipped(
            {"x/data.pkl": b"\x80\x02}.", "x/constants.pkl": b"", "x/data/0": bytes(1 << 30)},
            zipfile.ZIP_DEFLATED,
        ),
        "npz-bomb": _npz({"a": np.zeros(1 << 29, np.float32)}, compressed=True),
        "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "many-operations": b"\x80\x02" + b"N0" * 10_000_000 + b"N.",
        "many-lists": b"\x80\x02(" + b"]" * 20_000_000 + b"l.",
        "name-long": _torch({"x" * 10_000_000: torch.ones(2, 2)}),
        "header-100-MB": _st(b'{"a":' + b" " * 100_000_000),
        "header-many-tensors": many,
        "run-many-tensors": {**run, "model.safetensors": many},
    }


def _npy(value: Any) -> bytes:
    np.save(file := io.BytesIO(), np.array([value], dtype=object), allow_pickle=True)
    return file.getvalue()


def _npy_header(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)


def _linked(target: str) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        link = zipfile.ZipInfo("x/data.pkl")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, target)
    return file.getvalue()


def _tarred(name: str, link: str = "") -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
        archive.addfile(entry, io.BytesIO(b""))
    return file.getvalue()


def _shadowing(**attributes: Any) -> _Calls:
    """A tensor with attributes that hide its methods."""
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.ones(4).untyped_storage(), dtype=torch.float32, _internal=True
    )
    arguments = (storage, 0, (2, 2), (2, 1), False, collections.OrderedDict())
    rebuild = torch._utils._rebuild_tensor_v2  # pyright: ignore[reportAttributeAccessIssue]
    again = torch._tensor._rebuild_from_type_v2  # pyright: ignore[reportAttributeAccessIssue]
    return _Calls(again, rebuild, torch.Tensor, arguments, attributes)


def _cyclic(state: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"model": dict(state)}
    made["model"]["again"] = made
    return made


# ---------------------------------------------------------------- mutants
VALUES = (None, True, -1, 0, 1, 2**31, 10**18, 1e308, 1.5, "", ESCAPES, "x" * 5000, [], [[]], {}, {"a": [1]})
NAMES = (
    *("os system", "builtins eval", "builtins getattr", "torch load", "torch.storage _load_from_bytes"),
    *("collections OrderedDict", "torch._utils _rebuild_parameter", "torch FloatStorage", "torch Tensor"),
    *("torch.nn.parameter Parameter", "argparse Namespace", "numpy ndarray", "builtins bytearray"),
    *("torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_qtensor", "builtins set", "x y"),
    *("torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_wrapper_subclass"),
    *("torch._tensor _rebuild_from_type_v2", "torch.serialization _get_layout", "_codecs encode"),
)


def mutant(honest: Mapping[str, Files], codes: list[bytes], seed: int, number: int) -> tuple[str, Files]:
    """The form that mutant `number` was made of, with the kind of change, and its files."""
    rng = np.random.default_rng([seed, number])
    form = sorted(honest)[number % len(honest)]
    files = dict(honest[form])
    name = str(rng.choice([n for n in files if n]))
    pickled = name.endswith((".pth", ".bin", ".pt"))
    kinds = ["bytes", "bytes", "code", "code", "global", "opcode"] if pickled else ["bytes", "field", "field"]
    kind = str(rng.choice([k for k in kinds if k != "field" or not name.endswith(".npz")]))
    data = files[name]
    if kind == "bytes":
        files[name] = _damaged(data, rng)
    elif kind == "field":
        files[name] = _field_changed(data, name.endswith(".json"), rng)
    else:
        change = {"code": _with_code, "global": _with_global, "opcode": _with_opcode}[kind]
        files[name] = in_pickle(data, lambda own: change(own, codes, rng), float(rng.random()))
    return f"{form}, {kind}", files


def _damaged(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    head = max(64, min(len(data) // 2, 6000))  # headers and pickles lie at the start, directories at the end
    for _ in range(int(rng.integers(1, 4))):
        near = [
            int(rng.integers(head)),
            len(changed) - 1 - int(rng.integers(head)),
            int(rng.integers(len(data))),
        ]
        at = int(np.clip(near[int(rng.choice(3, p=[0.6, 0.3, 0.1]))], 0, len(changed) - 1))
        action = int(rng.integers(6))
        if action == 0:
            changed[at] ^= 1 << int(rng.integers(8))
        elif action == 1:
            form = ("<H", "<I", "<Q")[rng.integers(3)]
            most = (1 << 8 * struct.calcsize(form)) - 1
            value = int(rng.choice([0, 1, 255, 65_535, 2**31 - 1, 2**31, 2**62]))
            changed[at : at + struct.calcsize(form)] = struct.pack(form, min(value, most))
        elif action == 2:
            del changed[at : at + int(rng.integers(1, 400))]
        elif action == 3:
            changed[at:at] = changed[at : at + int(rng.integers(1, 64))] * int(rng.integers(1, 100))
        elif action == 4:
            changed[at : at + 8] = rng.bytes(8)
        elif len(changed) > 200:
            del changed[max(at, 100) :]
        if not changed:
            changed = bytearray(b"x")
    return bytes(changed)


def _field_changed(data: bytes, is_json: bool, rng: np.random.Generator) -> bytes:
    """A field of the JSON, or of the .safetensors header, removed, renamed or replaced."""
    length = 0 if is_json else struct.unpack("<Q", data[:8])[0]
    content = json.loads(data if is_json else data[8 : 8 + length])
    for _ in range(int(rng.integers(1, 3))):
        at: Any = content
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = keys[rng.integers(len(keys))]
            if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.8:
                at = at[key]
                continue
            break
        action = rng.random()
        if action < 0.2:
            del at[key]
        elif action < 0.3 and isinstance(at, dict):
            at[ESCAPES] = at.pop(key)
        else:
            at[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
        if not content:
            break
    text = json.dumps(content).encode()
    return text if is_json else struct.pack("<Q", len(text)) + text + data[8 + length :]


def _with_code(data: bytes, codes: list[bytes], rng: np.random.Generator) -> bytes:
    return _insert(data, codes[rng.integers(len(codes))], float(rng.random()))


def _with_global(data: bytes, codes: list[bytes], rng: np.random.Generator) -> bytes:
    """Another function or class for one of those that the pickle names."""
    spans = [at for at, op in _opcodes(data) if op.name == "GLOBAL"]
    name = str(NAMES[rng.integers(len(NAMES))]).replace(" ", "\n").encode()
    if not spans:
        return _insert(data, b"c" + name + b"\n)R0", float(rng.random()))
    at = spans[rng.integers(len(spans))]
    end = data.index(b"\n", data.index(b"\n", at) + 1)
    return data[: at + 1] + name + data[end:]


def _with_opcode(data: bytes, codes: list[bytes], rng: np.random.Generator) -> bytes:
    """Operations of a pickle swapped, repeated, removed, or replaced by any other."""
    places = [at for at, _ in _opcodes(data)] + [len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    for _ in range(int(rng.integers(1, 4))):
        i, j = (int(k) for k in rng.integers(len(pieces), size=2))
        action = int(rng.integers(4))
        if action == 0:
            pieces[i], pieces[j] = pieces[j], pieces[i]
        elif action == 1:
            pieces.insert(j, pieces[i] * int(rng.integers(1, 50)))
        elif action == 2 and len(pieces) > 2:
            del pieces[i]
        else:
            pieces[i] = pickletools.opcodes[rng.integers(len(pickletools.opcodes))].code.encode("latin-1")
    return b"".join(pieces)


# ---------------------------------------------------------------- loading
def attempt(path: Path) -> str:
    """The outcome of loading a model and of embedding an image: "loaded", "refused", or what must not be."""
    try:
        model = weights.load(path)
        model.embed([torch.zeros(3, 8, 8, dtype=torch.uint8)])
        lines = list(model.provenance.get("loaded", ()))
    except (ValueError, OSError) as error:
        lines = [str(error)]
        result = "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {message(error)[:300]}"
    else:
        result = "loaded"
    for text in lines:
        if text != message(ValueError(text)) or len(text) > MOST_MESSAGE:
            return f"no printable line: {text[:300]!r} ({len(text)} characters)"
    return result


def write(folder: Path, files: Files) -> Path:
    """Write the files; returns the path of the model."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        if name:
            (folder / name).write_bytes(data)
    return folder if "" in files else folder / next(iter(files))


def _status(field: str) -> int:
    """Bytes of VmHWM (the largest resident memory since `_reset`) or of VmSize."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) << 10


def work(pipe: Connection, folder: str) -> None:
    """Load what lies at the paths that come through the pipe; answer with outcome, seconds and bytes."""
    os.chdir(folder)
    attempt(Path(pipe.recv()))  # imports what is imported once
    pipe.send(None)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + HEADROOM,) * 2)
    while path := pipe.recv():
        Path("/proc/self/clear_refs").write_text("5")
        before, start = _status("VmHWM"), time.process_time()
        result = attempt(Path(path))
        pipe.send((result, time.process_time() - start, _status("VmHWM") - before))


class Loader:
    """A process that loads models, started again when one ends or hangs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, None
        self.honest = write(folder / "honest", samples()["timm"])

    def __call__(self, path: Path) -> dict[str, Any]:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=work, args=(other, str(self.folder)), daemon=True)
            self.process.start()
            other.close()
            self.pipe.send(str(self.honest))
            self.pipe.recv()
        try:
            self.pipe.send(str(path))
            if self.pipe.poll(WAIT):
                result, seconds, used = self.pipe.recv()
                return {"result": result, "seconds": round(seconds, 2), "mib": used >> 20}
            result = "hangs"
        except (EOFError, OSError):
            result = "the process ended"
        self.process.kill()
        self.process.join()
        self.process = None
        return {"result": result, "seconds": WAIT, "mib": 0}

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.pipe.send(None)
            self.process.join()


def failed(row: dict[str, Any]) -> bool:
    """Whether a file did what none may."""
    right = row["result"] in ("loaded", "refused") and not row["ran"]
    return not right or row["seconds"] > SECONDS or row["mib"] > BYTES >> 20


def is_live(marker: Path) -> bool:
    """Whether the code in these files writes the marker in a reader without restrictions."""
    code = with_call(calls(marker)[0])
    subprocess.run([sys.executable, "-c", f"import pickle; pickle.loads({code!r})"], check=True)
    written = marker.exists()
    marker.unlink(missing_ok=True)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("hostile_weights.jsonl"))
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    rows = [row for row in rows if row["seed"] == args.seed]
    done = {(row["kind"], row["number"]) for row in rows}
    with tempfile.TemporaryDirectory() as scratch, args.out.open("a") as out:
        marker, folder = Path(scratch) / "marker", Path(scratch) / "work"
        folder.mkdir()
        assert is_live(marker), "the code in these files is meant to work"
        loader, honest, codes = Loader(folder), samples(), calls(marker)

        def record(kind: str, number: int, name: str, files: Files) -> None:
            row = {"seed": args.seed, "kind": kind, "number": number, "name": name}
            row |= loader(write(folder / "case", files))
            row["ran"] = marker.exists()
            marker.unlink(missing_ok=True)
            rows.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
            if failed(row):
                print(row, file=sys.stderr, flush=True)

        for number, (name, files) in enumerate(honest.items()):
            if ("honest", number) not in done:
                record("honest", number, name, files)
        if any(row["result"] != "loaded" for row in rows if row["kind"] == "honest"):
            loader.close()
            sys.exit("an honest file is not loaded")
        for number, (name, files) in enumerate(attacks(marker).items()):
            if ("attack", number) not in done:
                record("attack", number, name, files)
        for number in range(args.count):
            if ("mutant", number) not in done:
                record("mutant", number, *mutant(honest, codes, args.seed, number))
        loader.close()
    for kind in ("attack", "mutant"):
        own = [row for row in rows if row["kind"] == kind]
        outcomes = dict(collections.Counter(row["result"] for row in own if not failed(row)))
        print(f"{len(own):,} {kind}s, seed {args.seed}: {outcomes}; {sum(map(failed, own))} failures")
    slow, large = (max(rows, key=lambda row, by=by: row[by]) for by in ("seconds", "mib"))
    print(f"slowest {slow['name']}: {slow['seconds']} s; largest {large['name']}: {large['mib']} MiB")
    print(f"files whose code ran: {sum(row['ran'] for row in rows)}")


if __name__ == "__main__":
    main()
