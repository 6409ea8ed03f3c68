"""What benchmarks/hostile_weights.py loads next: seeded changes of honest files of weights."""

import copy
import io
import itertools
import json
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from weights_honest import ESCAPES, Files, zip_file

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


# ---------------------------------------------------------------- inside pickles
def _opcodes(data: bytes) -> list[tuple[int, Any]]:
    """Positions and operations of the pickle that `data` begins with."""
    return [(at or 0, code) for code, _, at in pickletools.genops(data)]


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
        return zip_file({**entries, name: change(entries[name])})
    stream, ends = io.BytesIO(data), [0]
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    k = int(which * 5)
    return data[: ends[k]] + change(data[ends[k] : ends[k + 1]]) + data[ends[k + 1] :]
