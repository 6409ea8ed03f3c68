"""What benchmarks/hostile_weights.py loads first: handmade files that carry code, lie, or are bombs."""

import collections
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from weights_honest import ESCAPES, Files, as_json, npz_file, samples, torch_file, zip_file


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


def with_call(code: bytes) -> bytes:
    """A pickle of an empty dictionary that runs `code` before."""
    return b"\x80\x02}" + code + b"."


# ---------------------------------------------------------------- files
def _st(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A .safetensors file with this header."""
    text = header if isinstance(header, bytes) else as_json(header)
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
        "npz-of-objects": npz_file({"a": np.array([evil], dtype=object)}),
        "npz-with-pickle": zip_file({"a.npy": pickle.dumps(evil)}),
        "npz-beside-data.pkl": zip_file({"a.npy": _npy(evil), "x/data.pkl": pickle.dumps(evil, 2)}),
        "zip-in-zip": zip_file({"x/data.pkl": whole}),
        "zip-of-a-checkpoint": zip_file({"w.pth": torch_file(evil)}),
        "two-data.pkl": zip_file({"x/data.pkl": pickle.dumps(evil, 2), "y/data.pkl": pickle.dumps({}, 2)}),
        "zip-slip": zip_file({"../../evil.py": b"x", "x/../../data.pkl": pickle.dumps(evil, 2)}),
        "zip-link": _linked("/etc/passwd"),
        "zip-escapes": zip_file({ESCAPES: b"x"}),
        "npz-shape": zip_file({"a.npy": _npy_header("(1000000000000,)")}),
        "npz-negative": zip_file({"a.npy": _npy_header("(-1,)")}),
        "npz-header": zip_file({"a.npy": _npy_header("(" * 5000)}),
        "tar-slip": _tarred("../../evil.pth"),
        "tar-link": _tarred("w.pth", "/etc/passwd"),
        "bytearray": torch_file({**state, "x": _Calls(bytearray, 3 << 30)}),
        "tensor-of-nothing": torch_file({**state, "x": _Calls(torch.FloatTensor, 1 << 30)}),
        "expanded": torch_file({**state, "x": torch.ones(1).expand(1 << 20, 1 << 20)}),
        "shadowed": torch_file({"w": _shadowing(detach=3, untyped_storage=4)}),
        "shadowed-by-class": torch_file({"w": _shadowing(detach=collections.OrderedDict)}),
        "shadowed-dictionary": torch_file(
            _Calls(collections.OrderedDict, state=dict.fromkeys(("items", "get"), 3))
        ),
        "cyclic": torch_file(_cyclic(state)),
        "names-of-tensors": torch_file({f"{ESCAPES}{k}": x for k, x in enumerate(state.values())}),
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
        "same-name": _st(b'{"w":%b,"w":%b}' % ((as_json(first["w"]),) * 2), bytes(16)),
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
        made[f"index-{name}"] = {"model.safetensors.index.json": as_json(index), "evil.bin": torch_file(evil)}
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
            "config.json": as_json({**hf, **change}),
            "evil.py": f"open({str(marker)!r}, 'w')".encode(),
            "evil.bin": torch_file(evil),
        }
    return {name: value if isinstance(value, dict) else {"w.pth": value} for name, value in made.items()}


def _large(run: Files) -> dict[str, bytes | Files]:
    """Bombs, and files of very many parts."""
    many = _st({f"t{k}": _f32(0, at=(0, 0)) for k in range(1_200_000)})
    return {
        "zip-bomb": zip_file({"x/data.pkl": bytes(1 << 30)}, zipfile.ZIP_DEFLATED),
        "zip-bomb-torchscript": zip_file(
            {"x/data.pkl": b"\x80\x02}.", "x/constants.pkl": b"", "x/data/0": bytes(1 << 30)},
            zipfile.ZIP_DEFLATED,
        ),
        "npz-bomb": npz_file({"a": np.zeros(1 << 29, np.float32)}, compressed=True),
        "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "many-operations": b"\x80\x02" + b"N0" * 10_000_000 + b"N.",
        "many-lists": b"\x80\x02(" + b"]" * 20_000_000 + b"l.",
        "name-long": torch_file({"x" * 10_000_000: torch.ones(2, 2)}),
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
