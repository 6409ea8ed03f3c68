"""A run folder that omma 0.1 wrote loads and resumes.

run_of_0_1.json describes one: configuration, metrics, and the names, shapes and types of what its checkpoint
run_of_0_1.json describes one: configuration, metrics, and names, shapes and types of what its checkpoint
holds; the values are made here by a formula. The losses of the steps that follow, and two features, are what
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import omma
from omma.data.sources.collection import ArrayImages
from omma.pretraining.folder import RunFolder

FORMAT = json.loads(Path(__file__).with_name("run_of_0_1.json").read_text())
REQUEST = {
    "method": "dino", "model": "vit-n/8", "image_size": 16, "steps": 6, "batch_size": 8, "device": "cpu",
    "precision": "fp32", "workers": 0, "seed": 5,
    "options": {
        "prototypes": 16, "head_hidden": 16, "head_bottleneck": 8, "centring": "mean", "crop_size": 16,
    },
    "model_options": {"depth": 1, "dim": 16, "heads": 2, "hidden": 16},
}  # fmt: skip


def images():
    at = np.arange(40 * 16 * 16 * 3, dtype=np.int64)
    pixels = (at * at * 7919 // 97 % 256).astype(np.uint8)
    return ArrayImages(pixels.reshape(40, 16, 16, 3), source="pictures")


def tensor(name, description):
    """A tensor of the type and shape described, its values a sine whose phase is given by the name."""
    dtype, *shape = description.split()
    shape = [int(n) for n in shape]
    count = int(np.prod(shape)) if shape else 1
    values = torch.sin(torch.arange(count, dtype=torch.float64) * 0.37 + sum(name.encode()) % 89) * 0.1
    values = values.abs() if name.endswith("exp_avg_sq") else values
    return values.reshape(shape).to(getattr(torch, dtype))


def rebuilt(node, name=""):
    if isinstance(node, str):
        return tensor(name, node)
    if "plain" in node:
        return node["plain"]
    if "list" in node:
        return [rebuilt(each, f"{name}.{i}") for i, each in enumerate(node["list"])]
    if "value" in node:
        return torch.tensor(node["value"], dtype=getattr(torch, node["dtype"]))
    return {int(k[1:]) if k.startswith("#") else k: rebuilt(each, f"{name}.{k}") for k, each in node.items()}


@pytest.fixture
def old_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(FORMAT["config"]))
    lines = [json.dumps(line) + "\n" for line in FORMAT["metrics"]]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    torch.save(rebuilt(FORMAT["checkpoint"]), tmp_path / "checkpoints" / FORMAT["name"])
    return RunFolder(tmp_path)


def test_it_resumes_and_its_model_loads_and_is_described_as_before(old_run):
    result = omma.pretrain(images(), out=old_run.path, **REQUEST)
    assert (result.steps, old_run.finished) == (6, True)
    losses = {line["step"]: line["loss"] for line in old_run.metrics() if line["event"] == "step"}
    for step, golden in FORMAT["golden"].items():
        assert losses[int(step)] == pytest.approx(golden, rel=1e-5)
    vectors = omma.load(old_run.path).embed(images())
    assert vectors[:2].flatten()[:6] == pytest.approx(FORMAT["embedding"], abs=1e-5)
    now = json.loads((old_run.path / "model.json").read_text())
    for description in (now, FORMAT["model_json"]):
        description.pop("provenance")  # times and the versions of libraries
    now.pop("digests")  # it has none
    assert now == FORMAT["model_json"]
