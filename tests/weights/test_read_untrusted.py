"""Reading published weights: foreign settings, hostile and damaged files; no code in a file ever runs."""

import argparse
import collections
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from weights_files import LEGACY, refused, same, save, state

from omma.weights.read_file import read

# Foreign settings


class Fake:
    """Creates modules that exist while a file is written and cannot be imported when it is read."""

    def __init__(self, monkeypatch):
        self.monkeypatch, self.names = monkeypatch, []

    def __call__(self, module, name, *bases, **methods):
        made = type(name, bases, methods | {"__module__": module, "__qualname__": name})
        for parent in (module.split(".")[0], module):
            if parent not in sys.modules or parent not in self.names:
                self.monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
                self.names.append(parent)
        setattr(sys.modules[module], name, made)
        return made

    def gone(self):
        for name in self.names:
            self.monkeypatch.setitem(sys.modules, name, None)  # importing it now fails


@pytest.fixture
def fake(monkeypatch):
    return Fake(monkeypatch)


@LEGACY
def test_foreign_settings_are_read_without_their_packages(tmp_path, fake, legacy):
    node = fake("yacs.config", "CfgNode", dict)
    easy = fake("easydict", "EasyDict", dict)
    attribute = fake("lightning_fabric.utilities.data", "AttributeDict", dict)
    config = node(MODEL=node(TYPE="swin", DEPTHS=[2, 2, 6, 2]), LR=np.float64(0.5))
    config.__dict__["__immutable__"] = True
    settings = easy(a=1, b=easy(c=2))
    settings.__dict__.update(settings)  # as easydict does
    value = {
        "model": state(),
        "config": config,
        "easy": settings,
        "hyper_parameters": attribute(lr=0.1),
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("/tmp/x"), betas=(0.9, 0.95), dist=None),
        "simple": types.SimpleNamespace(x=1),
        "best": np.float32(0.5),
        "dtype": np.dtype("float64"),
        "array": np.arange(3),
        "counter": collections.Counter("abc"),
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(dict, {"a": {"b": 1}}),
        "torch": torch.__version__,
        "rest": [torch.Size([2]), torch.float16, torch.device("cpu"), {1, 2}, b"bytes", 1 << 70, 2.5, "ü"],
    }
    file = save(value, tmp_path / "w.pth", legacy)
    fake.gone()
    content = read(file)
    same(content.tensors, state())
    assert content.others == tuple(value)[1:]


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_under_its_old_and_new_name(tmp_path, module):
    save({"model": state(), "best": np.float64(3)}, tmp_path / "a")
    renamed = tmp_path / "b"
    with zipfile.ZipFile(tmp_path / "a") as old, zipfile.ZipFile(renamed, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, re.sub(rb"numpy\._?core\.multiarray", module.encode(), data))
    same(read(renamed).tensors, state())


def test_omegaconf(tmp_path, monkeypatch):
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"a": {"b": [1, 2, "x"]}, "c": 0.5, "d": None})
    save({"state_dict": state(), "cfg": config}, tmp_path / "w.ckpt")
    for name in [n for n in sys.modules if n.split(".")[0] == "omegaconf"]:
        monkeypatch.setitem(sys.modules, name, None)
    same(read(tmp_path / "w.ckpt").tensors, state())


# Hostile


class Hostile:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle2", "pickle", "inside", "torchscript", "index"])
def test_hostile_pickle_is_refused_and_nothing_runs(tmp_path, how):
    trace, file = tmp_path / "trace", tmp_path / "w.pth"
    evil = Hostile(trace)
    if how in ("zip", "legacy"):
        save(evil, file, how == "legacy")
    elif how == "inside":
        save({"model": state(), "args": evil}, file)
    elif how == "torchscript":
        save({"model": state(), "args": evil}, file)
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(f"{file.stem}/constants.pkl", pickle.dumps(evil, 2))
    elif how == "index":
        save(evil, file)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file.name}}))
    else:
        file.write_bytes(pickle.dumps(evil, 2 if how == "pickle2" else 4))
    torch.load(file, weights_only=False) if how == "zip" else None
    assert trace.exists() == (how == "zip"), "the pickle is a live one"
    trace.unlink(missing_ok=True)
    for path in (file, tmp_path) if how == "index" else (file,):
        with pytest.raises(ValueError) as caught:
            read(path)
        line = str(caught.value)
        assert "\n" not in line
        assert line.startswith(f"{file} would run code: posix.system; refused.")
        assert "state_dict()" in line
    assert not trace.exists()


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (eval, ("1",), "eval"),
        (getattr, (1, "real"), "getattr"),
        (shutil.rmtree, ("/nowhere",), "shutil.rmtree"),
        (torch.load, (io.BytesIO,), "torch.serialization.load"),
        (np.load, ("x",), "numpy.load"),
        (pickle.loads, (b"",), "pickle.loads"),
    ],
)
@LEGACY
def test_what_it_would_run_is_named(tmp_path, function, arguments, words, legacy):
    class Runs:
        def __reduce__(self):
            return function, arguments

    refused(save({"model": state(), "x": Runs()}, tmp_path / "w", legacy), "would run code", words)


@LEGACY
def test_whole_module_is_refused(tmp_path, legacy):
    refused(save(nn.Linear(2, 2), tmp_path / "w", legacy), "would run code: torch.nn.modules.linear.Linear")


def test_state_of_an_allowed_name_cannot_shadow_a_method(tmp_path):
    class Shadowing:
        def __reduce__(self):
            names = dict.fromkeys(("items", "keys", "values", "get", "__iter__"), 3)
            return collections.OrderedDict, (), names, None, iter(state().items())

    for value in ({"model": Shadowing()}, Shadowing()):
        same(read(save(value, tmp_path / "w")).tensors, state())


def test_npz_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([Hostile(tmp_path / "trace")], dtype=object))
    refused(tmp_path / "w.npz", "allow_pickle")
    assert not (tmp_path / "trace").exists()


# Damaged


def test_reading_leaves_no_name_allowed(tmp_path):
    before = torch.serialization.get_safe_globals()
    read(save({"model": state(), "args": argparse.Namespace(a=1)}, tmp_path / "w"))
    assert torch.serialization.get_safe_globals() == before


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "npz"])
def test_truncated(tmp_path, form, share):
    file, cut = tmp_path / "whole", tmp_path / "cut"
    value = {"w": torch.randn(64, 64)}
    if form == "safetensors":
        safetensors.torch.save_file(value, file)
    elif form == "npz":
        np.savez(tmp_path / "whole.npz", w=value["w"].numpy())
        (tmp_path / "whole.npz").rename(file)
    else:
        save(value, file, form == "legacy")
    data = file.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    refused(cut, "damaged", "download it again")


@LEGACY
def test_any_flipped_byte_is_read_or_refused_in_one_line(tmp_path, legacy):
    file = save({"model": {"w": torch.randn(2, 2)}, "args": argparse.Namespace(a=1)}, tmp_path / "w", legacy)
    data = file.read_bytes()
    for place in range(0, min(len(data), 700), 3):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0x15]) + data[place + 1 :])
        try:
            read(file)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("header", [10_000, 99_999_999, 1 << 40, 1 << 62])
def test_safetensors_header_longer_than_the_file(tmp_path, header):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", header) + b'{"a":' + b" " * 100)
    refused(tmp_path / "w.safetensors", "damaged", "a header of", "download it again")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b"<!DOCTYPE html><html><body>Log in", ["web page", "log in"]),
        (b"\xef\xbb\xbf\n <HTML>", ["web page"]),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            ["git-lfs pointer", "git lfs pull"],
        ),
        (b"Access denied: log in first", ["no weights file"]),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 50, ["no weights file"]),
        (b'{"model_type": "vit"}', ["JSON"]),
        (b"PK\x03\x04" + b"\0" * 60, ["damaged"]),
        (b"\x80\x02}q\x00.", ["damaged"]),
        (b"\x80", ["damaged"]),
        (b"x", ["no weights file"]),
    ],
)
def test_other_content(tmp_path, content, words):
    (tmp_path / "w.pth").write_bytes(content)
    refused(tmp_path / "w.pth", *words)


def test_zip_of_other_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("a/cat.jpg", b"x")
    refused(tmp_path / "w.zip", "zip archive of other things (cat.jpg)", "unpack")


def test_missing(tmp_path):
    refused(tmp_path / "none.pth", "does not exist")
