"""What benchmarks/hostile_weights.py damages: honest files of weights of every form that omma reads."""

import argparse
import io
import json
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from omma import backbones, weights
from omma.core.protocols import Preprocess
from omma.weights.export.hf_forms import hf_network

PREPROCESS = Preprocess(
    size=32, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)
Files = dict[str, bytes]  # the files of a folder; the first one, or the folder itself, is the model
ESCAPES = "\x1b[31mred\x07\nnext\u202e"


def torch_file(value: Any, legacy: bool = False) -> bytes:
    torch.save(value, file := io.BytesIO(), _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def npz_file(tensors: Mapping[str, Any], compressed: bool = False) -> bytes:
    (np.savez_compressed if compressed else np.savez)(file := io.BytesIO(), **tensors)
    return file.getvalue()


def zip_file(entries: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file.getvalue()


def as_json(value: Any) -> bytes:
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
        "torch": {"w.pth": torch_file(checkpoint)},
        "torch-legacy": {"w.pth": torch_file(checkpoint, legacy=True)},
        "torch-compressed": {"w.bin": _deflated(torch_file(state))},
        "torchscript": {"w.pt": _scripted(state)},
        "npz": {"w.npz": npz_file({n: x.numpy() for n, x in state.items()})},
        "safetensors": {"w.safetensors": tensors},
        "shards": {"model.safetensors.index.json": as_json(index), **shards},
        "run": {"": b"", **run},
        "hf": {
            "": b"",
            "config.json": as_json(config),
            "preprocessor_config.json": as_json(processor),
            "model.safetensors": safetensors.torch.save(
                {n: x.contiguous() for n, x in network.state.items()}
            ),
        },
        "timm": {"": b"", "config.json": as_json(timm), "model.safetensors": tensors},
    }


def _deflated(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return zip_file({n: archive.read(n) for n in archive.namelist()}, zipfile.ZIP_DEFLATED)


def _scripted(state: Mapping[str, Tensor]) -> bytes:
    """As TorchScript saves a module: its code beside its attributes."""
    data = torch_file(dict(state))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {n: archive.read(n) for n in archive.namelist()}
    code = {"archive/constants.pkl": pickle.dumps((), 2), "archive/code/x.py": b"import os"}
    return zip_file({**entries, **code})
