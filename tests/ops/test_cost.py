"""Operations are counted as by hand, whatever route they take."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from omma import backbones
from omma.ops import attention, linear
from omma.ops.cost import Flops, _flops

B, PATCH, SIDE, DIM, HIDDEN, DEPTH = 2, 4, 16, 32, 48, 2


def vit_by_hand() -> int:
    """Forward and backward pass of a small ViT, operations."""
    patches = (SIDE // PATCH) ** 2
    t = patches + 1
    embed = B * patches * 3 * PATCH**2 * DIM
    layers = B * t * (3 * DIM * DIM + DIM * DIM + 2 * DIM * HIDDEN)
    scores = B * t * t * DIM
    forward = embed + DEPTH * (layers + 2 * scores)
    backward = embed + DEPTH * 2 * (layers + 2 * scores)  # images have no gradient
    return 2 * (forward + backward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vit_is_counted_as_by_hand(dtype):
    """In bf16 on a CPU linear layers are oneDNN's and attention is written out; in fp32 they are torch's."""
    encoder = backbones.build(
        name="vit/4", image_size=SIDE, depth=DEPTH, dim=DIM, heads=2, hidden=HIDDEN
    ).to(dtype)  # fmt: skip
    images = torch.randn(B, 3, SIDE, SIDE)
    linear._onednn_has_bf16()  # asks once by a product
    with Flops() as counted:
        features = encoder(images)
        (features.pooled.float().sum() + features.patches.float().sum()).backward()
    assert counted.total == vit_by_hand()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 2])  # of 32 numbers, which omma's own kernel takes, and of 16
def test_packed_sequences_count_as_much_as_one_by_one(dtype, heads):
    encoder = backbones.build(
        name="vit/4", image_size=SIDE, depth=DEPTH, dim=DIM, heads=heads, hidden=HIDDEN
    ).to(dtype)  # fmt: skip
    linear._onednn_has_bf16()
    crops = [torch.randn(B, 3, SIDE, SIDE).to(dtype), torch.randn(3, 3, 8, 8).to(dtype)]
    totals = []
    for many in (encoder.encode_many, lambda given: [encoder.encode(*one) for one in given]):
        with Flops() as counted:
            seen = many([(encoder.tokenize(x), encoder.grid(*x.shape[-2:])) for x in crops])
            sum(f.pooled.float().sum() + f.patches.float().sum() for f in seen).backward()
        totals.append(counted.total)
    assert totals[0] == totals[1]


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradients_it_is_the_forward_pass(dtype, without):
    """In inference mode operators arrive whole, `matmul` say, and are taken apart to be counted."""
    encoder = backbones.build(
        name="vit/4", image_size=SIDE, depth=DEPTH, dim=DIM, heads=2, hidden=HIDDEN
    ).to(dtype)  # fmt: skip
    linear._onednn_has_bf16()
    with without(), Flops() as counted:
        encoder(torch.randn(B, 3, SIDE, SIDE).to(dtype))
        torch.ones(3, 5) @ torch.ones(5, 7)
    embed = 2 * B * (SIDE // PATCH) ** 2 * 3 * PATCH**2 * DIM
    forward = (vit_by_hand() - 2 * embed) // 3 + embed
    assert counted.total == forward + 2 * 3 * 5 * 7


def test_one_dnn_linear_layers_are_counted():
    if not linear._onednn_has_bf16():
        pytest.skip("this processor has no such kernel")
    layer, x = linear.Linear(8, 16).bfloat16(), torch.randn(4, 8).bfloat16()
    with Flops() as counted, torch.no_grad():
        layer(x)
    with FlopCounterMode(display=False) as theirs, torch.no_grad():
        layer(x)
    assert counted.total == 2 * 4 * 8 * 16
    assert theirs.get_total_flops() == 0  # what ours is there for


def test_the_rest_is_counted_as_torch_does():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    x = torch.randn(2, 3, 8, 8)
    with FlopCounterMode(display=False) as theirs:
        network(x).square().sum().backward()
    with Flops() as ours:
        network(x).square().sum().backward()
    assert ours.total == theirs.get_total_flops() > 0


def test_scores_that_are_computed_anew_are_no_progress():
    """The fused kernel's backward pass is five products in torch's count, and four of the formula's."""
    qkv = torch.randn(2, 9, 3 * 16, requires_grad=True)
    with Flops() as counted:
        attention.attend(qkv, 2).sum().backward()
    assert counted.total == 2 * 6 * 2 * 9 * 9 * 16


def test_what_only_other_devices_run_is_counted_by_the_same_formula():
    """Operators of Apple's GPUs, by their arguments: there is no kernel to run here."""
    x, weight, grad = torch.empty(4, 8), torch.empty(16, 8), torch.empty(4, 16)
    back = torch.ops.aten.linear_backward.default
    one = 2 * 4 * 8 * 16
    assert _flops(torch.ops.aten.linear.default, (x, weight), {}, None) == one
    assert _flops(back, (x, grad, weight, (True, True, True)), {}, None) == 2 * one
    assert _flops(back, (x, grad, weight, (False, True, True)), {}, None) == one
    heads = torch.empty(2, 3, 5, 7)
    attend = torch.ops.aten._scaled_dot_product_attention_math_for_mps.default
    assert _flops(attend, (heads, heads, heads), {}, None) == 2 * 2 * 2 * 3 * 5 * 5 * 7
