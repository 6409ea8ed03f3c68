"""Compiled blocks: losses and gradients of those that are not, few graphs, names as they were."""

import copy

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from omma import backbones
from omma.core.protocols import Batch, Clock, Context, Key
from omma.methods import dino, simclr
from omma.train import compile_blocks
from omma.train.precision import Cast

MODELS = {
    "vit-n/8": {"depth": 2},
    "swin-t": {"dim": 24, "depths": (2,), "heads": (1,), "window": 4},
    "cait-xxs24": {"depth": 1, "patch": 8},
}


@pytest.fixture
def traced(monkeypatch):
    """Blocks become graphs, which torch's own kernels run: no code is generated. Counts them."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compile_blocks, "BACKEND", counter)
    torch.compiler.reset()
    compile_blocks._compiled_in_training.cache_clear()
    yield counter
    torch.compiler.reset()
    compile_blocks._compiled_in_training.cache_clear()


def method(name, drop_path=0.3, **options):
    torch.manual_seed(0)
    encoder = backbones.build(name=name, image_size=32, channels=3, drop_path=drop_path, **MODELS[name])
    return simclr.Method(encoder, simclr.Config(hidden=16, out=8), Context(image_size=32)).train()


def batch(*sizes, b=8):
    g = torch.Generator().manual_seed(1)
    views = tuple(torch.randn(b, 2, 3, size, size, generator=g) for size in sizes)
    return Batch(views, Key(0, np.zeros(b, np.int64), np.arange(b)))


def learned(network, dtype=torch.float32, views=(32,), draw=2):
    """Loss and all gradients, with new draws of stochastic depth."""
    network.zero_grad()
    torch.manual_seed(draw)
    output = Cast(network, dtype)(batch(*views), Clock(0, 2, 0.0))
    output.loss.backward()
    grads = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    return output.loss.detach(), grads


def flat(grads):
    return torch.cat([g.flatten() for g in grads.values()])


@pytest.mark.parametrize("name", MODELS)
def test_every_family_computes_the_same(traced, name):
    """With stochastic depth, and with activations recomputed by the same graphs."""
    plain = method(name)
    plain.encoder.recompute = True
    loss, grads = learned(plain)
    compile_blocks.start(plain)
    other, others = learned(plain)
    assert traced.frame_count > 0
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(others, grads, rtol=1e-4, atol=2e-5)  # a batch norm undoes the last shift


def test_in_bf16_gradients_are_close_to_those_in_fp32(traced):
    plain, draw = method("vit-n/8"), 8  # others leave nearly equal features, whose loss magnifies rounding
    exact, lowered = (learned(plain, dtype, draw=draw)[1] for dtype in (torch.float32, torch.bfloat16))
    compile_blocks.start(plain)
    others = learned(plain, torch.bfloat16, draw=draw)[1]
    assert traced.frame_count > 0

    def furthest(grads):
        return 1 - torch.cosine_similarity(flat(grads), flat(exact), dim=0)

    assert furthest(others) < 0.002
    assert furthest(lowered) < 0.002  # where omma's kernels are there they round less often


@pytest.mark.slow
def test_generated_code_computes_the_same():
    """Inductor's, which needs a C++ compiler; with activations recomputed by the same code."""
    plain = method("vit-n/8", drop_path=0.0)
    plain.encoder.recompute = True
    loss, grads = learned(plain)
    compile_blocks.start(plain)
    other, others = learned(plain)
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(others, grads, rtol=1e-3, atol=1e-5)


def distilled(name):
    config = dino.Config(prototypes=16, head_hidden=16, head_bottleneck=8, local_crops=2)
    return dino.Method(method(name).encoder, config, Context(image_size=32)).train()


@pytest.mark.parametrize(("name", "graphs"), [("vit-n/8", 2 + 1), ("cait-xxs24", 2 * 2 + 2)])
def test_alike_blocks_share_a_graph(traced, name, graphs):
    """Student: one for each kind of block, and size of crop if not packed; teacher: one size.

    Packed crops of two sizes have each its own samples dropped.
    """
    both = distilled(name)
    loss, grads = learned(both, views=(32, 32, 16))
    compile_blocks.start(both)
    for _ in range(2):
        other, others = learned(both, views=(32, 32, 16))
        torch.testing.assert_close(other, loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(others, grads, rtol=1e-4, atol=1e-6)
    assert traced.frame_count == graphs


def test_what_graphs_are_taken_to_need():
    assert compile_blocks.seconds(distilled("vit-n/8"), sizes=2) == 3 * compile_blocks.SECONDS
    apart = distilled("cait-xxs24")
    assert compile_blocks.seconds(apart, sizes=2) == 2 * compile_blocks.seconds(apart, sizes=1)


def test_nothing_else_changes(traced):
    plain = method("vit-n/8")
    names, images = list(plain.state_dict()), batch(32).views[0][:, 0]
    plain.eval()
    with torch.no_grad():
        features = plain.encoder(images).pooled
    compile_blocks.start(plain)
    assert list(plain.state_dict()) == names
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in method("vit-n/8").named_modules()]
    with torch.no_grad():
        assert torch.equal(plain.encoder(images).pooled, features)
    assert traced.frame_count == 0  # in evaluation
    other = copy.deepcopy(plain).train()
    torch.nn.init.zeros_(plain.encoder.blocks[0].attn.qkv.weight)
    loss, _ = learned(other)
    compile_blocks.stop(other)
    assert not any("forward" in vars(m) for m in other.modules())
    torch.testing.assert_close(learned(other)[0], loss, rtol=1e-5, atol=0)  # it had its own weights
