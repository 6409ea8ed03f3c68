"""Reading published weights: every format, shards, folders, and the entries of checkpoints."""

import json
import struct
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from weights_files import LEGACY, refused, same, save, sorted_by_name, state

from omma.weights.read_file import read

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


def test_entry(tmp_path):
    file = save({"teacher": state(0), "student": state(1), "epoch": 3}, tmp_path / "w")
    content = read(file, entry="student")
    same(content.tensors, state(1))
    assert (content.container, content.others) == ("student", ("teacher", "epoch"))
    refused(file, "no entry 'ema'", "teacher, student", entry="ema")


@pytest.mark.parametrize("container", ["", "state_dict"])
def test_entry_that_is_a_prefix_of_names(tmp_path, container):
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


def test_settings_of_an_average_are_not_taken_for_a_network(tmp_path):
    averaging = {"decay": torch.tensor(0.99), "num_updates": torch.tensor(3)}
    content = read(save({"ema": averaging, "state_dict": state()}, tmp_path / "w"))
    assert content.container == "state_dict"
    same(content.tensors, state())


def test_entries_within_a_wrapper_are_listed(tmp_path):
    flat = {f"module.{who}.{name}": x for who in ("base", "momentum") for name, x in state().items()}
    file = save({"state_dict": flat}, tmp_path / "w")
    refused(file, "no entry 'teacher'; it has state_dict, module.base, module.momentum", entry="teacher")
    same(read(file, entry="module.momentum").tensors, state())


def test_expanded_tensors_larger_than_their_storage_are_left_out(tmp_path):
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


def test_cyclic_tables_are_read(tmp_path):
    circle = state()
    circle["again"] = circle
    same(read(save({"model": circle}, tmp_path / "w")).tensors, state())
