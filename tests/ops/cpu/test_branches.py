"""A block's branches, each as one kernel, equal fp64 within bf16's rounding."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from omma import backbones
from omma.backbones.layers.block import NOWHERE, Attention, Block, Packed, Where
from omma.backbones.layers.mlp import Mlp
from omma.ops.cpu import branches, library
from omma.ops.packing import Shapes

LIBRARY, WHY = library.load()
pytestmark = [pytest.mark.skipif(LIBRARY is None, reason=WHY), pytest.mark.usefixtures("kernels")]
ROUNDING = 0.004  # of bf16, relative; twice what one rounding leaves
DIM, HEADS = 96, 3


def error(found: Tensor, exact: Tensor) -> float:
    """Relative, of the whole tensor."""
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm().clamp(min=1e-30))


def made(hidden: int = 160, scale: float | None = None, bias: bool = True, dim: int = DIM) -> Block:
    torch.manual_seed(0)
    block = Block(dim, Attention(dim, dim // 32, bias), Mlp(dim, hidden), layer_scale=scale)
    for p in block.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return block.bfloat16()


def by_hand(block: Block, x: Tensor, where: Where | Packed = NOWHERE) -> Tensor:
    """The same in fp64, by torch."""
    return copy.deepcopy(block).double()(x.detach().double(), where)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the branches that were computed as one kernel."""
    seen: list[str] = []

    def noted(name: str) -> Callable[..., Tensor]:
        real = getattr(branches, name)

        def called(*args: object) -> Tensor:
            seen.append(name)
            return real(*args)

        return called

    for name in ("mix", "mlp"):
        monkeypatch.setattr(branches, name, noted(name))
    return seen


@pytest.mark.parametrize(("b", "n"), [(8, 1), (9, 17), (8, 65), (70, 5), (8, 200)])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_block_and_its_gradients(b: int, n: int, scale: float | None, calls: list[str]) -> None:
    block = made(scale=scale)
    x, grad = torch.randn(b, n, DIM).bfloat16().requires_grad_(), torch.randn(b, n, DIM).bfloat16()
    found = block(x)
    assert calls == ["mix", "mlp"]
    exact = copy.deepcopy(block).double()
    wide = x.detach().double().requires_grad_()
    wanted = exact(wide)
    assert calls == ["mix", "mlp"]
    assert error(found, wanted) < 2 * ROUNDING
    ours = torch.autograd.grad(found, (x, *block.parameters()), grad)
    theirs = torch.autograd.grad(wanted, (wide, *exact.parameters()), grad.double())
    errors = {
        name: error(one, other)
        for name, one, other in zip(("x", *dict(block.named_parameters())), ours, theirs, strict=True)
    }
    queries_of_one = n == 1 and errors.pop(
        "norm1.weight"
    )  # a single token's weight is 1: no slope, only rounding
    assert max(errors.values()) < 4 * ROUNDING, (errors, queries_of_one)
    with torch.no_grad():
        assert torch.equal(block(x), found)


@pytest.mark.parametrize("hidden", [32, 96, 416])
def test_widths_of_the_perceptron(hidden: int, calls: list[str]) -> None:
    block = made(hidden)
    x = torch.randn(8, 21, DIM).bfloat16()
    found, exact = block(x), copy.deepcopy(block).double()
    assert "mlp" in calls
    found.square().sum().backward()
    exact(x.double()).square().sum().backward()
    for one, other in zip(block.mlp.parameters(), exact.mlp.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert error(one.grad, other.grad) < 4 * ROUNDING


def test_packed_lengths_are_as_each_apart(calls: list[str]) -> None:
    block = made()
    shapes: Shapes = ((4, 17), (9, 5), (1, 40))
    parts = [torch.randn(b, n, DIM).bfloat16() for b, n in shapes]
    packed = torch.cat([part.flatten(0, 1) for part in parts])[None]
    found = block(packed, Packed(shapes, (NOWHERE,) * 3))
    assert calls == ["mix", "mlp"]
    wanted = torch.cat([by_hand(block, part).flatten(0, 1) for part in parts])[None]
    assert error(found, wanted) < 2 * ROUNDING


def test_nothing_is_added_where_samples_are_dropped() -> None:
    """Branches without their sum, as stochastic depth calls them."""
    block = made(scale=0.5)
    x = torch.randn(8, 9, DIM).bfloat16().requires_grad_()
    attn, mlp = block.attn, block.mlp
    assert isinstance(attn, Attention)
    exact = copy.deepcopy(block).double()
    wide = x.detach().double().requires_grad_()
    grad = torch.randn(8, 9, DIM).bfloat16()
    for found, wanted in (
        (
            branches.mix(x, block.norm1, attn.qkv, attn.proj, HEADS, ((8, 9),), block.ls1.gamma, False),
            exact.ls1(exact.attn(exact.norm1(wide))),
        ),
        (
            branches.mlp(x, block.norm2, mlp.fc1, mlp.fc2, block.ls2.gamma, False),
            exact.ls2(exact.mlp(exact.norm2(wide))),
        ),
    ):
        assert error(found, wanted) < 2 * ROUNDING
        (ours,) = torch.autograd.grad(found, x, grad)
        (theirs,) = torch.autograd.grad(wanted, wide, grad.double())
        assert error(ours, theirs) < 4 * ROUNDING


@pytest.mark.parametrize("bias", [True, False])
def test_layers_without_bias(bias: bool, calls: list[str]) -> None:
    block = made(bias=bias)
    x = torch.randn(8, 9, DIM).bfloat16()
    assert error(block(x), by_hand(block, x)) < 2 * ROUNDING
    assert calls[0] == "mix"
    block(x).sum().backward()
    assert block.attn.qkv.weight.grad is not None
    assert (block.attn.qkv.bias is None) != bias


def test_frozen_weights_have_no_gradients() -> None:
    block = made()
    whole = copy.deepcopy(block)
    for p in block.mlp.parameters():
        p.requires_grad_(False)
    x = torch.randn(8, 9, DIM).bfloat16()
    block(x).sum().backward()
    whole(x).sum().backward()
    assert all(p.grad is None for p in block.mlp.parameters())
    for one, other in zip(block.attn.parameters(), whole.attn.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_bit_for_bit_on_any_number_of_threads(threads: int) -> None:
    """Parts are shared as threads are free, and what is summed over them is summed in their order."""
    block = made()
    x = torch.randn(40, 17, DIM).bfloat16()

    def gradients() -> list[Tensor]:
        block.zero_grad()
        block(x).square().sum().backward()
        return [p.grad for p in block.parameters() if p.grad is not None]

    wanted, before = gradients(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert all(torch.equal(one, other) for one, other in zip(gradients(), wanted, strict=True))
    finally:
        torch.set_num_threads(before)


class Twice(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_replaced_layers_and_listeners_are_called(calls: list[str]) -> None:
    block, x, heard = made(), torch.randn(8, 9, DIM).bfloat16(), []
    handle = block.attn.proj.register_forward_hook(lambda module, given, out: heard.append(out))
    block(x)
    assert len(heard) == 1
    assert calls == ["mlp"]
    handle.remove()
    block(x)
    assert calls == ["mlp", "mix", "mlp"]
    before = block(x)
    fc2 = block.mlp.fc2
    block.mlp.fc2 = Twice(fc2.in_features, fc2.out_features).bfloat16()
    block.mlp.fc2.load_state_dict(fc2.state_dict())
    assert error(block(x), by_hand(block, x)) < 2 * ROUNDING
    assert not torch.allclose(block(x), before, atol=0.1)


def test_a_block_is_what_its_docstring_says() -> None:
    block, x = made(scale=0.5).float(), torch.randn(8, 40, DIM)
    y = x + block.ls1(block.attn(block.norm1(x)))
    assert torch.equal(block(x), y + block.ls2(block.mlp(block.norm2(y))))


class Factor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


def test_a_replaced_layer_scale_is_called(calls: list[str]) -> None:
    block, x = made(scale=0.5), torch.randn(8, 9, DIM).bfloat16()
    block.ls1 = block.ls2 = Factor()
    assert error(block(x), by_hand(block, x)) < 2 * ROUNDING
    assert not calls


class Doubled(Attention):
    def forward(self, *inputs: object) -> Tensor:
        return 2 * super().forward(*inputs)  # pyright: ignore


class DoubledMlp(Mlp):
    def forward(self, *inputs: object) -> Tensor:
        return 2 * super().forward(*inputs)  # pyright: ignore


def test_a_subclass_is_called_and_not_its_parents_kernel(calls: list[str]) -> None:
    block, x = made(), torch.randn(8, 9, DIM).bfloat16()
    block.attn.__class__, block.mlp.__class__ = Doubled, DoubledMlp
    assert error(block(x), by_hand(block, x)) < 2 * ROUNDING
    assert not calls


@pytest.mark.parametrize("shape", [(7, 9), (1, 900)])
def test_few_or_long_sequences_share_threads_otherwise(shape: tuple[int, int], calls: list[str]) -> None:
    block = made()
    x = torch.randn(*shape, DIM).bfloat16()
    assert error(block(x), by_hand(block, x)) < 2 * ROUNDING
    assert calls == ["mlp"]


def test_weights_that_do_not_lie_in_rows(calls: list[str]) -> None:
    block = made()
    block.mlp.fc1.weight.data = block.mlp.fc1.weight.data.t().contiguous().t()
    x = torch.randn(8, 9, DIM).bfloat16()
    assert error(block(x), by_hand(block, x)) < 2 * ROUNDING
    assert calls == ["mix"]


def test_weights_that_were_cast_for_the_step(calls: list[str]) -> None:
    """They stand in the place of the block's own, which are in fp32 (train/precision.py)."""
    block = made().float()
    x = torch.randn(8, 9, DIM).bfloat16()
    lent = {name: p.bfloat16() for name, p in block.named_parameters()}
    found = functional_call(block, lent, (x,))
    assert calls == ["mix", "mlp"]
    assert error(found, by_hand(block, x)) < 2 * ROUNDING


def test_what_is_no_number_stays_in_its_sample() -> None:
    block, x = made(), torch.randn(9, 17, DIM).bfloat16()
    x[4, 3, 7] = float("nan")
    assert block(x).isnan().flatten(1).any(1).tolist() == [i == 4 for i in range(9)]


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("vit-n/8", {"mix", "mlp"}),
        ("dinov2-s/14", {"mix", "mlp"}),
        ("vitc-15mf", {"mix", "mlp"}),
        ("beit-b/16", {"mlp"}),
        ("swin-t", {"mlp"}),
        ("cait-xxs24", {"mlp"}),
        ("eva02-ti/14", set()),
    ],
)
def test_backbones_that_have_them(name: str, kernels: set[str], calls: list[str]) -> None:
    """And come as close to fp32 as without."""
    torch.manual_seed(0)
    options = {"depth": 2} if not name.startswith("swin") and not name.startswith("vitc") else {}
    encoder = backbones.build(name=name, image_size=56, **options).eval()
    images = torch.randn(8, 3, 56, 56)
    with torch.no_grad():
        exact = encoder(images).pooled
        assert not calls
        found = copy.deepcopy(encoder).bfloat16()(images.bfloat16()).pooled
    assert set(calls) == kernels
    assert torch.cosine_similarity(found.float(), exact, dim=-1).min() > 0.999
