"""Our kernels equal fp64 within bf16's rounding; where they cannot be used torch's are, with a reason."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omma.ops import attention, packing
from omma.ops.cpu import library
from omma.ops.gelu import gelu
from omma.ops.linear import linear
from omma.ops.norm import norm, norm_for_linear

LIBRARY, WHY = library.load()
ROUNDING = 0.004  # of bf16, relative; twice what one rounding leaves


def there(test: Callable[..., None]) -> Callable[..., None]:
    """Where there are kernels, in each of their forms."""
    return pytest.mark.usefixtures("kernels")(pytest.mark.skipif(LIBRARY is None, reason=WHY)(test))


def error(found: Tensor, exact: Tensor) -> float:
    """Relative, of the whole tensor."""
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm().clamp(min=1e-30))


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


@there
def test_gelu_and_its_slope_of_every_number() -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = x[x.isfinite()]
    x.requires_grad_()
    exact = x.detach().double().requires_grad_()
    found, wanted = gelu(x), F.gelu(exact)
    torch.testing.assert_close(found.double(), wanted, atol=6e-6, rtol=ROUNDING)
    (slope,) = torch.autograd.grad(found, x, torch.ones_like(found), retain_graph=True)
    (wanted,) = torch.autograd.grad(wanted, exact, torch.ones_like(wanted))
    torch.testing.assert_close(slope.double(), wanted, atol=3e-5, rtol=ROUNDING)
    (halved,) = torch.autograd.grad(found, x, torch.full_like(found, -0.5))  # times the incoming gradient
    torch.testing.assert_close(halved.double(), -0.5 * wanted, atol=3e-5, rtol=ROUNDING)


@there
def test_what_is_no_number_stays_so() -> None:
    x = torch.tensor([float("nan"), float("inf"), 1.0]).bfloat16()
    assert gelu(x).isnan().tolist() == [True, False, False]
    rows = torch.ones(3, 32).bfloat16()
    rows[1, 5] = float("nan")
    assert norm(rows, nn.LayerNorm(32).bfloat16()).isnan().any(1).tolist() == [False, True, False]
    qkv = drawn(2, 5, 96)
    qkv[1, 2, 40] = float("nan")
    assert attention.attend(qkv, 1).isnan().flatten(1).any(1).tolist() == [False, True]


@there
@pytest.mark.parametrize("shape", [(1, 8), (7, 200), (2, 65, 192), (0, 16)])
def test_layer_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.LayerNorm(shape[-1], eps=1e-6).bfloat16()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    exact = nn.LayerNorm(shape[-1], eps=1e-6).double()
    exact.load_state_dict(layer.state_dict())
    x, grad = (3 * drawn(*shape) + 1).requires_grad_(), drawn(*shape)
    wide = x.detach().double().requires_grad_()
    found, wanted = norm(x, layer), exact(wide)
    assert error(found, wanted) < ROUNDING
    ours = torch.autograd.grad(found, (x, layer.weight, layer.bias), grad)
    theirs = torch.autograd.grad(wanted, (wide, exact.weight, exact.bias), grad.double())
    assert all(error(one, other) < ROUNDING for one, other in zip(ours, theirs, strict=True))


@there
@pytest.mark.parametrize(("n", "o", "i"), [(1, 3, 5), (433, 17, 40), (600, 96, 32), (515, 32, 96), (0, 4, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_weights(n: int, o: int, i: int, bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, grad = drawn(n, i), drawn(o, i).requires_grad_(), drawn(o, n).t()  # not contiguous
    shift = drawn(o).requires_grad_() if bias else None
    linear(x, weight, shift).backward(grad)
    assert weight.grad is not None
    assert error(weight.grad, grad.double().T @ x.double()) < ROUNDING
    if shift is not None:
        assert shift.grad is not None
        assert error(shift.grad, grad.double().sum(0)) < ROUNDING


@there
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("n", "o", "i"), [(1, 3, 5), (1000, 48, 80), (70, 200, 33), (0, 4, 4)])
def test_any_number_of_threads(threads: int, n: int, o: int, i: int) -> None:
    torch.manual_seed(0)
    grad, x = drawn(n, o), drawn(n, i)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, sums = torch.ops.omma.weight_gradient(grad, x, True)
    finally:
        torch.set_num_threads(before)
    assert error(found, grad.double().T @ x.double()) < ROUNDING
    assert error(sums, grad.double().sum(0)) < ROUNDING


@there
@pytest.mark.parametrize(
    ("b", "n", "heads", "e"),
    [(2, 1, 1, 32), (3, 17, 3, 64), (2, 65, 3, 64), (2, 16, 2, 96), (1, 197, 2, 64), (1, 300, 1, 32)],
)
def test_attention(b: int, n: int, heads: int, e: int) -> None:
    torch.manual_seed(0)
    qkv, grad = (2 * drawn(b, n, 3 * heads * e)).requires_grad_(), drawn(b, n, heads * e)
    wide = qkv.detach().double().requires_grad_()
    wanted = attention.merge(F.scaled_dot_product_attention(*attention.split(wide, heads)))
    found = attention.attend(qkv, heads)
    assert found.grad_fn is not None
    assert "Attend" in found.grad_fn.name()
    assert error(found, wanted) < ROUNDING
    (ours,), (theirs,) = (
        torch.autograd.grad(found, qkv, grad),
        torch.autograd.grad(wanted, wide, grad.double()),
    )
    assert error(ours, theirs) < 2 * ROUNDING  # through weights and their slopes, each rounded
    with torch.no_grad():
        assert torch.equal(attention.attend(qkv, heads), found)


@there
def test_attention_of_packed_sequences_where_they_lie() -> None:
    torch.manual_seed(0)
    shapes = [(2, 65), (5, 17), (1, 1)]
    parts = [drawn(b, n, 3 * 3 * 64).requires_grad_() for b, n in shapes]
    packed = packing.pack([part.detach() for part in parts]).requires_grad_()
    found = attention.attend_packed(packed, 3, shapes, [None] * 3, [None] * 3)
    assert found.grad_fn is not None
    assert "Attend" in found.grad_fn.name()  # and no copies follow it
    one_by_one = packing.pack([attention.attend(part, 3) for part in parts])
    assert torch.equal(found, one_by_one)
    grad = drawn(*found.shape)
    found.backward(grad)
    one_by_one.backward(grad)
    wanted = [part.grad for part in parts if part.grad is not None]
    assert packed.grad is not None
    assert torch.equal(packed.grad, packing.pack(wanted))
    with torch.no_grad():
        assert torch.equal(attention.attend_packed(packed, 3, shapes, [None] * 3, [None] * 3), found)


@there
def test_attention_of_large_scores() -> None:
    """Exponentials of numbers that fp32 cannot hold."""
    qkv = (100 * drawn(1, 20, 96)).requires_grad_()
    found = attention.attend(qkv, 1)
    wanted = F.scaled_dot_product_attention(*attention.split(qkv.detach().double(), 1))
    assert error(found, attention.merge(wanted)) < ROUNDING
    found.sum().backward()
    assert qkv.grad is not None
    assert qkv.grad.isfinite().all()


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """Kernels are looked for once more, in an empty cache."""
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path))
    monkeypatch.delenv("OMMA_KERNELS", raising=False)
    monkeypatch.setattr(library, "_cpu_flags", lambda: list(library.NEEDED))
    library.load.cache_clear()
    yield monkeypatch
    library.load.cache_clear()


def test_why_there_are_none(anew: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def why() -> str:
        library.load.cache_clear()
        compiled, reason = library.load()
        assert compiled is None
        return reason

    anew.setenv("CXX", "false")
    assert "false could not compile omma's own" in why()
    anew.setenv("CXX", str(tmp_path / "nothing"))
    assert "cannot be built" in why()
    anew.delenv("CXX")
    anew.setattr("shutil.which", lambda name: None)
    assert "apt install g++" in why()
    anew.setattr(library, "_cpu_flags", lambda: ["avx512f"])
    assert "avx512_bf16" in why()
    for word in ("off", "sometimes"):
        anew.setenv("OMMA_KERNELS", word)
        assert f"OMMA_KERNELS={word}" in why()
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.skipif(LIBRARY is None, reason=WHY)
def test_the_matrix_unit_is_not_used_unasked(anew: pytest.MonkeyPatch) -> None:
    """As on processors without one, and where the system does not grant it."""
    commands: list[list[str]] = []

    def compiled(command: list[str], **options: Any) -> None:
        commands.append(command)
        raise OSError("no more is needed")

    anew.setattr(library.subprocess, "run", compiled)
    anew.setattr(library, "_cpu_flags", lambda: [*library.NEEDED, *library.MATRIX_UNIT])
    for granted, wanted in [(True, "on"), (False, "on"), (True, "avx512")]:
        anew.setattr(library, "_amx_granted", lambda granted=granted: granted)
        anew.setenv("OMMA_KERNELS", wanted)
        library.load.cache_clear()
        library.load()
    # each is tried twice: in the cache, then in a folder of its own
    assert ["-mno-amx-bf16" in command for command in commands[::2]] == [False, True, True]


def test_torchs_are_used_then(anew: pytest.MonkeyPatch) -> None:
    anew.setenv("OMMA_KERNELS", "off")
    library.load.cache_clear()
    torch.manual_seed(0)
    qkv, layer, weight = drawn(2, 9, 96).requires_grad_(), nn.LayerNorm(96).bfloat16(), drawn(96, 96)
    x = linear(norm_for_linear(qkv, layer), weight)
    found = gelu(attention.attend(x, 1))
    names, nodes = set(), [found.grad_fn]
    while nodes:
        if (node := nodes.pop()) is not None:
            names.add(node.name())
            nodes += [following for following, _ in node.next_functions]
    assert "GeluBackward0" in names
    assert not names & {"GeluBackward", "NormBackward", "AttendBackward"}
