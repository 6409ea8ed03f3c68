"""Graphs of any batch and image size: plain forms of the attention of Swin and CaiT, and what ONNX holds."""

import json
import time

import pytest
import torch
from export_networks import network, noise, preprocess_of

from omma.weights.export import compare, traced
from omma.weights.export.plain import plain


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        # stages with one window, several, and windows that need filling up
        ("swin-t", {"depths": (2, 2), "heads": (3, 6), "image_size": 56}, [(56, 56), (37, 90), (8, 300)]),
        ("swin-t", {"depths": (1, 2, 2), "heads": (3, 6, 3), "window": 4}, [(32, 32), (64, 100)]),
        ("cait-xxs24", {}, [(32, 32), (40, 70)]),
    ],
    ids=str,
)
def test_plain_attention_is_the_same(name, options, sizes):
    encoder = network(name, **options)
    other = plain(encoder)
    for size in sizes:
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            ours, theirs = encoder(x), other(x)
        torch.testing.assert_close(theirs.patches, ours.patches, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(theirs.pooled, ours.pooled, rtol=1e-4, atol=2e-5)


def test_onnx_tells_names_sizes_and_preprocessing(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    encoder = network("beit-ti/8", depth=1, channels=2)
    preprocess = preprocess_of(encoder)
    sizes = traced.write_onnx(encoder, preprocess, tmp_path / "x.onnx")
    assert sizes == "any"
    graph = onnx.load(tmp_path / "x.onnx")
    (given,) = graph.graph.input
    dims = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert (given.name, dims) == ("images", ["batch", 2, "height", "width"])
    assert [o.name for o in graph.graph.output] == ["pooled", "patches"]
    description = json.loads({p.key: p.value for p in graph.metadata_props}["omma"])
    assert (description["mean"], description["pool"]) == (list(preprocess.mean), encoder.pool)
    reopened = traced.reopen_onnx(encoder, preprocess, tmp_path / "x.onnx", sizes)
    assert compare(encoder, reopened, noise(encoder, sizes)).within(1e-4)


def test_any_size_with_dinos_interpolation(tmp_path):
    """At its own size positions are not interpolated, which a graph for all sizes has to find out."""
    encoder = network("vit-ti/8", depth=1, interpolation="offset")
    preprocess = preprocess_of(encoder)
    sizes = traced.write_torch(encoder, preprocess, tmp_path / "x.pt2")
    assert sizes == "any"
    reopened = traced.reopen_torch(encoder, preprocess, tmp_path / "x.pt2", sizes)
    batches = [*noise(encoder, sizes), torch.randn(1, 3, encoder.image_size, 48)]
    assert compare(encoder, reopened, batches).within(1e-5)


def test_a_network_of_tables_keeps_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(traced, "ATTEMPTS", traced.ATTEMPTS[-2:])  # others end as the first of these does
    encoder = network("vit-ti/8", depth=1, mixer="bigbird")
    preprocess = preprocess_of(encoder)
    sizes = traced.write_torch(encoder, preprocess, tmp_path / "x.pt2")
    assert sizes == "fixed"
    reopened = traced.reopen_torch(encoder, preprocess, tmp_path / "x.pt2", sizes)
    assert compare(encoder, reopened, noise(encoder)).within(1e-5)
    assert "32x32 px only" in reopened.notes[0]
    with pytest.raises(ValueError, match="cannot be run at 40x40 px"):
        compare(encoder, reopened, [torch.randn(1, 3, 40, 40)])


def attempts(monkeypatch):
    """The dynamic shapes of all graphs that are tried from now on."""
    tried, export = [], torch.export.export

    def counted(*arguments, **options):
        tried.append(options["dynamic_shapes"][0])
        return export(*arguments, **options)

    monkeypatch.setattr(torch.export, "export", counted)
    return tried


def test_a_strided_network_is_traced_once_with_multiples_of_its_stride(tmp_path, monkeypatch):
    pytest.importorskip("timm", reason="timm is not installed")
    encoder, tried = network("timm:test_efficientnet", image_size=64), attempts(monkeypatch)
    sizes = traced.write_torch(encoder, preprocess_of(encoder), tmp_path / "x.pt2")
    assert sizes == "multiples"
    assert len(tried) == 1
    reopened = traced.reopen_torch(encoder, preprocess_of(encoder), tmp_path / "x.pt2", sizes)
    assert compare(encoder, reopened, noise(encoder, sizes)).within(1e-4)


@pytest.mark.slow  # the one above is its quick form
@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet50", "convnext_tiny"])
def test_deep_strided_networks_are_traced_in_bounded_time(name, tmp_path):
    pytest.importorskip("timm", reason="timm is not installed")
    encoder = network(f"timm:{name}", image_size=224)
    started = time.process_time()
    assert traced.write_torch(encoder, preprocess_of(encoder), tmp_path / "x.pt2") == "multiples"
    assert time.process_time() - started < traced.PATIENCE


def test_a_trace_that_takes_too_long_keeps_its_size(tmp_path, monkeypatch):
    encoder = network("vit-ti/8", depth=1)
    traced.write_torch(encoder, preprocess_of(encoder), tmp_path / "x.pt2")  # an import must not be cut short
    monkeypatch.setattr(traced, "PATIENCE", 0.1)
    tried = attempts(monkeypatch)
    assert traced.write_torch(encoder, preprocess_of(encoder), tmp_path / "x.pt2") == "fixed"
    assert len(tried) == len(traced.ATTEMPTS)


@pytest.mark.slow  # the layers' names decide
def test_tensorflows_padding_keeps_the_size(tmp_path, monkeypatch):
    """Simplifying the sizes of this network has taken more than twelve minutes."""
    pytest.importorskip("timm", reason="timm is not installed")
    encoder, tried = network("timm:tf_efficientnet_lite0", image_size=64), attempts(monkeypatch)
    assert traced.write_torch(encoder, preprocess_of(encoder), tmp_path / "x.pt2") == "fixed"
    assert len(tried) == 1


def test_layers_that_pad_by_the_images_size_are_not_traced_for_others():
    pytest.importorskip("timm", reason="timm is not installed")
    from timm.layers import Conv2dSame

    encoder = network("timm:test_efficientnet", image_size=64)
    assert len(traced._attempts(encoder)) > 1
    encoder.same = Conv2dSame(3, 3, 3)
    assert [sizes for sizes, _ in traced._attempts(encoder)] == ["fixed"]
