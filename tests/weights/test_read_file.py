"""Reading published weights: every format, every container, and nothing in a file ever runs."""

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

from omma.weights.read_file import read

LEGACY = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "blocks.0.weight": torch.randn(3, 4, generator=generator),
        "norm.bias": torch.randn(4, generator=generator).half(),
        "bn.num_batches_tracked": torch.tensor(7),
    }


def save(value, file, legacy=False):
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file


def same(read_tensors, wanted):
    assert list(read_tensors) == list(wanted)
    for name, x in wanted.items():
        assert read_tensors[name].dtype == x.dtype
        assert torch.equal(read_tensors[name], x)
        assert not read_tensors[name].requires_grad


def sorted_by_name(tensors):
    return dict(sorted(tensors.items()))


def refused(file, *words, **options):
    """The one line with which the file is refused."""
    with pytest.raises(ValueError) as caught:
        read(file, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert str(file) in line
    assert len(line) < 200 + 2 * len(str(file)) + 80
    for word in words:
        assert word in line, line
    return line


# Formats


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.pth.tar", "w"])
def test_safetensors_by_content(tmp_path, name):
    safetensors.torch.save_file(state(), tmp_path / name, metadata={"format": "pt", "by": "me"})
    content = read(tmp_path / name)
    same(sorted_by_name(content.tensors), sorted_by_name(state()))
    assert (content.container, content.others, content.metadata["by"]) == ("", (), "me")


@pytest.mark.parametrize("length", [0x7B20, 0x3C20, 0x80 + 0x200])
def test_safetensors_whose_length_looks_like_text(tmp_path, length):
    """The first byte or two are the header's length: 0x7b20 reads ' {', 0x3c20 ' <', 0x280 as a pickle."""
    file = tmp_path / "w.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(struct.pack("<Q", length) + header.ljust(length) + struct.pack("<f", 2.5))
    same(read(file).tensors, {"a": torch.tensor([2.5])})


@LEGACY
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.pth.tar"])
def test_torch_by_content(tmp_path, name, legacy):
    same(read(save(state(), tmp_path / name, legacy)).tensors, state())


def test_tensors_of_a_zip_stay_on_disk_until_used_and_can_be_written(tmp_path):
    file = save(state(), tmp_path / "w.pth")
    read(file).tensors["norm.bias"].zero_()
    same(read(file).tensors, state())


def test_recompressed_zip(tmp_path):
    save(state(), tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    same(read(tmp_path / "b.pth").tensors, state())


def test_parameters_and_shared_storage(tmp_path):
    layer = nn.Linear(4, 4)
    file = save(
        {"weight": layer.weight, "transposed": layer.weight.t(), "row": layer.weight[1]}, tmp_path / "w"
    )
    weight = layer.weight.detach()
    same(read(file).tensors, {"weight": weight, "transposed": weight.t(), "row": weight[1]})


def test_npz(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    half = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    np.savez(
        tmp_path / "w.npz", **{"a/kernel": array, "half": half.view(torch.int16).numpy().view("V2"), "s": "x"}
    )
    same(read(tmp_path / "w.npz").tensors, {"a/kernel": torch.from_numpy(array), "half": half})


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.randn(3))
        self.sizes = [1, 2]
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x):
        return self.norm(x)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4).half()])

    def forward(self, x):
        return self.inner(x)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*torch.jit.*")
def test_torchscript_without_its_code(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = Outer()
    torch.jit.script(model).save(tmp_path / "clip.pt")
    monkeypatch.setattr(torch.jit, "load", None)
    content = read(tmp_path / "clip.pt").tensors
    wanted = {name: x.detach() for name, x in model.state_dict().items()}
    same(sorted_by_name(content), sorted_by_name(wanted))


# Shards and folders


def sharded(folder, suffix="safetensors"):
    parts = [{"a.weight": torch.randn(2, 2)}, {"b.weight": torch.randn(3), "c.bias": torch.randn(1)}]
    places = {}
    for i, part in enumerate(parts):
        name = f"model-{i}.{suffix}"
        (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(part, folder / name)
        places |= dict.fromkeys(part, name)
    stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    index = folder / f"{stem}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index, parts[0] | parts[1]


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(tmp_path, suffix):
    index, wanted = sharded(tmp_path, suffix)
    same(read(index).tensors, wanted)
    same(read(tmp_path).tensors, wanted)


def test_shards_refused(tmp_path):
    index, _ = sharded(tmp_path)
    words = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": words["weight_map"] | {"d": "model-0.safetensors"}}))
    with pytest.raises(ValueError, match=r"model-0\.safetensors lacks d, which"):
        read(index)
    index.write_text(json.dumps(words))
    (tmp_path / "model-1.safetensors").unlink()
    refused(index, "model-1.safetensors, which is not beside it", "one folder")
    for elsewhere in ("../w.safetensors", "/etc/passwd", index.name):
        index.write_text(json.dumps({"weight_map": {"a": elsewhere}}))
        with pytest.raises(ValueError, match=r"not beside it|no weights file"):
            read(index)
    for text in ("{", "{}", '{"weight_map": 3}', '{"weight_map": [1]}', '{"model_type": "vit"}'):
        index.write_text(text)
        refused(index, "no index of weights")


def test_folder(tmp_path):
    refused(tmp_path, "no file of weights")
    save(state(0), tmp_path / "b.pth")
    (tmp_path / "config.json").write_text("{}")
    same(read(tmp_path).tensors, state(0))
    save(state(1), tmp_path / "a.pth")
    refused(tmp_path, "a.pth, b.pth", "give the file itself")
    save(state(2), tmp_path / "pytorch_model.bin")
    same(read(tmp_path).tensors, state(2))
    safetensors.torch.save_file(state(3), tmp_path / "model.safetensors")
    assert torch.equal(read(tmp_path).tensors["norm.bias"], state(3)["norm.bias"])


# Containers


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["student", "teacher", "optimizer"], "teacher"),
        (["model", "model_ema", "epoch"], "model_ema"),
        (["state_dict", "state_dict_ema"], "state_dict_ema"),
        (["state_dict", "arch"], "state_dict"),
        (["module"], "module"),
        (["encoder", "predictor", "target_encoder", "opt"], "target_encoder"),
        (["student", "optimizer"], "student"),
        (["my_net", "optimizer"], "my_net"),
    ],
)
@LEGACY
def test_container(tmp_path, names, chosen, legacy):
    adam = {
        "state": {0: {"exp_avg": torch.ones(3, 4), "step": 3}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    }
    other = {"optimizer": adam, "opt": adam, "epoch": 3, "arch": "vit_small"}
    value = {name: other.get(name, state(i)) for i, name in enumerate(names)}
    content = read(save(value, tmp_path / "w.pth", legacy))
    assert content.container == chosen
    assert content.others == tuple(n for n in names if n != chosen)
    same(content.tensors, value[chosen])


def test_empty_average_is_passed_over(tmp_path):
    assert read(save({"model": state(), "model_ema": None, "ema": {}}, tmp_path / "w")).container == "model"


def test_same_table_twice(tmp_path):
    table = state()
    same(read(save({"state_dict": table, "model": table}, tmp_path / "w")).tensors, table)


def test_top_level_beside_other_things(tmp_path):
    content = read(save(state() | {"epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}}, tmp_path / "w"))
    same(content.tensors, state())
    assert (content.container, content.others) == ("", ("epoch", "optimizer"))


def test_part(tmp_path):
    file = save({"teacher": state(0), "student": state(1), "epoch": 3}, tmp_path / "w")
    content = read(file, entry="student")
    same(content.tensors, state(1))
    assert (content.container, content.others) == ("student", ("teacher", "epoch"))
    refused(file, "no entry 'ema'", "teacher, student", entry="ema")


@pytest.mark.parametrize("container", ["", "state_dict"])
def test_part_that_is_a_prefix_of_names(tmp_path, container):
    flat = {
        f"{who}.{name}": x for i, who in enumerate(("student", "teacher")) for name, x in state(i).items()
    }
    file = save({container: flat, "epoch": 1} if container else flat, tmp_path / "w")
    same(read(file).tensors, flat)
    content = read(file, entry="student")
    same(content.tensors, state(0))
    assert content.container == (f"{container}.student" if container else "student")
    assert content.others == (("epoch",) if container else ("teacher",))
    if container:
        same(read(file, entry="state_dict.teacher").tensors, state(1))


def test_settings_of_an_average_are_no_network(tmp_path):
    averaging = {"decay": torch.tensor(0.99), "num_updates": torch.tensor(3)}
    content = read(save({"ema": averaging, "state_dict": state()}, tmp_path / "w"))
    assert content.container == "state_dict"
    same(content.tensors, state())


def test_parts_within_a_wrapper_are_named(tmp_path):
    flat = {f"module.{who}.{name}": x for who in ("base", "momentum") for name, x in state().items()}
    file = save({"state_dict": flat}, tmp_path / "w")
    refused(file, "no entry 'teacher'; it has state_dict, module.base, module.momentum", entry="teacher")
    same(read(file, entry="module.momentum").tensors, state())


def test_few_bytes_that_say_to_be_many_are_left_out(tmp_path):
    huge = torch.zeros(1).expand(200_000, 200_000)
    content = read(save(state() | {"huge": huge}, tmp_path / "w"))
    same(content.tensors, state())


def test_ambiguous_or_empty(tmp_path):
    refused(save({"one": state(), "two": state()}, tmp_path / "a"), "unclear (one, two)")
    refused(save({"optimizer": {"state": {0: torch.ones(2)}}}, tmp_path / "o"), "unclear (optimizer)")
    refused(save({"epoch": 3, "args": "x"}, tmp_path / "b"), "holds no tensors (only epoch, args)")
    refused(save({}, tmp_path / "c"), "holds no tensors")
    refused(save([torch.ones(2)], tmp_path / "d"), "state_dict()")
    refused(save(torch.ones(2), tmp_path / "e"), "state_dict()")


def test_tables_in_circles_end(tmp_path):
    circle = state()
    circle["again"] = circle
    same(read(save({"model": circle}, tmp_path / "w")).tensors, state())


# Foreign settings


class Fake:
    """Modules that exist while the file is written, and are gone, or would blow up, when it is read."""

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


def test_nothing_stays_allowed_afterwards(tmp_path):
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
    refused(tmp_path / "w.safetensors", "damaged: a header of", "download it again")


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
def test_other_things(tmp_path, content, words):
    (tmp_path / "w.pth").write_bytes(content)
    refused(tmp_path / "w.pth", *words)


def test_zip_of_other_things(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("a/cat.jpg", b"x")
    refused(tmp_path / "w.zip", "zip archive of other things (cat.jpg)", "unpack")


def test_missing(tmp_path):
    refused(tmp_path / "none.pth", "does not exist")
