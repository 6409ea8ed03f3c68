"""CaiT against timm, against its formulas written plainly, and against its paper's table."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from omma import backbones
from omma.backbones.layers.talking_heads import TalkingHeads

SMALL = {"name": "cait-xxs24", "depth": 3, "dim": 48, "heads": 4, "patch": 8, "layer_scale": 0.5}


def shaken(model, by=0.1):
    """Every parameter moved, so that none is where it does not matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator))
    return model.eval()


@pytest.fixture
def small():
    torch.manual_seed(0)
    return shaken(backbones.build(image_size=32, **SMALL))


def timms(ours, size):
    """timm's Cait of the same shape."""
    timm = pytest.importorskip("timm.models.cait", reason="timm (dev group) is not installed")
    return timm.Cait(
        img_size=size,
        patch_size=ours.patch,
        in_chans=ours.channels,
        num_classes=0,
        embed_dim=ours.dim,
        depth=len(ours.blocks),
        num_heads=ours.blocks[0].attn.proj_l.in_features,
        depth_token_only=len(ours.blocks_token_only),
    ).eval()


# ---------------------------------------------------------------- timm
@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize(
    "options",
    [
        {"name": "cait-xxs24"},
        {"name": "cait-xs24", "depth": 2},
        {"name": "cait-s24", "depth": 4, "class_layers": 3},
        {"name": "cait-m36", "depth": 1, "channels": 5},
        SMALL,
    ],
    ids=lambda o: o["name"] + ("" if "depth" not in o else f"-{o['depth']}"),
)
def test_strict_and_equal(options, size):
    torch.manual_seed(0)
    ours = shaken(backbones.build(image_size=size, **options), by=0.02)
    with torch.no_grad():
        for block in [*ours.blocks, *ours.blocks_token_only]:  # branches that a start of 1e-5 would hide
            block.gamma_1.fill_(0.7)
            block.gamma_2.fill_(0.5)
    theirs = timms(ours, size)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, ours.channels, size, size)
    with torch.no_grad():
        wanted = theirs.forward_features(x)
        found = ours(x)
    assert (found.pooled - wanted[:, 0]).abs().max() < 1e-4
    assert (found.patches - wanted[:, 1:]).abs().max() < 1e-4
    ours.load_state_dict(theirs.state_dict(), strict=True)


def test_other_sizes_have_interpolated_positions(small):
    theirs = timms(small, (48, 40))
    picture = small.pos_embed.detach().view(1, 4, 4, -1).permute(0, 3, 1, 2)
    picture = F.interpolate(picture, size=(6, 5), mode="bicubic", antialias=True)
    state = {**small.state_dict(), "pos_embed": picture.flatten(2).transpose(1, 2)}
    theirs.load_state_dict(state, strict=True)
    x = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        torch.testing.assert_close(small(x).pooled, theirs(x), rtol=1e-4, atol=2e-5)
        assert small(x).grid == (6, 5)


def test_gradients_as_timms(small):
    theirs = timms(small, 32)
    theirs.load_state_dict(small.state_dict())
    x = torch.randn(2, 3, 32, 32)
    found = small(x)
    torch.cat([found.pooled[:, None], found.patches], 1).sin().sum().backward()
    theirs.forward_features(x).sin().sum().backward()
    other = dict(theirs.named_parameters())
    for name, p in small.named_parameters():
        torch.testing.assert_close(p.grad, other[name].grad, rtol=1e-3, atol=1e-4, msg=name)


# ---------------------------------------------------------------- the formulas
def talk(x, before, attn, gamma):
    """LayerScale of talking-heads attention of normalised tokens, head by head."""
    b, n, d = x.shape
    h = attn.proj_l.in_features
    q, k, v = attn.qkv(before(x)).view(b, n, 3, h, d // h).unbind(2)
    scores = torch.einsum("bnhe,bmhe->bhnm", q, k) / (d // h) ** 0.5
    mixed = torch.einsum("gh,bhnm->bgnm", attn.proj_l.weight, scores) + attn.proj_l.bias[:, None, None]
    weights = mixed.softmax(-1)
    final = torch.einsum("gh,bhnm->bgnm", attn.proj_w.weight, weights) + attn.proj_w.bias[:, None, None]
    return gamma * attn.proj(torch.einsum("bhnm,bmhe->bnhe", final, v).reshape(b, n, d)), weights


def one_layer(n, heads, dtype):
    torch.manual_seed(0)
    d = 8 * heads
    attn = shaken(TalkingHeads(d, heads), by=0.3).to(dtype)
    before = shaken(torch.nn.LayerNorm(d), by=0.3).to(dtype)
    gamma = torch.randn(d, dtype=dtype, requires_grad=True)
    x = torch.randn(3, n, d, dtype=dtype, requires_grad=True)
    return x, before, attn, gamma


def gradients(out, inputs):
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return torch.autograd.grad((out.double() * weight).sum(), inputs)


@pytest.mark.parametrize("heads", [1, 4, 6, 16])
@pytest.mark.parametrize("n", [1, 9, 16, 49])
def test_own_derivative(n, heads):
    x, before, attn, gamma = one_layer(n, heads, torch.float64)
    inputs = [x, gamma, *before.parameters(), *attn.parameters()]
    wanted, _ = talk(x, before, attn, gamma)
    found = attn(before(x), gamma)
    torch.testing.assert_close(found, wanted)
    for a, b in zip(gradients(found, inputs), gradients(wanted, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(attn(before(x), gamma), wanted)


@pytest.mark.parametrize("heads", [2, 4, 6, 16])
@pytest.mark.parametrize("n", [9, 16, 49, 64])
def test_derivative_in_bf16(n, heads):
    """The maps are mixed in pieces there; no gradient is much further from fp64's than plain ones."""
    x, before, attn, gamma = one_layer(n, heads, torch.bfloat16)
    inputs = [x, gamma, *before.parameters(), *attn.parameters()]
    found = gradients(attn(before(x), gamma), inputs)
    plain = gradients(talk(x, before, attn, gamma)[0], inputs)
    exact_x, exact_gamma = (t.detach().double().requires_grad_() for t in (x, gamma))
    before, attn = before.double(), attn.double()
    wanted, _ = talk(exact_x, before, attn, exact_gamma)
    exact = gradients(wanted, [exact_x, exact_gamma, *before.parameters(), *attn.parameters()])
    for a, b, c in zip(found, plain, exact, strict=True):
        assert (a - c).norm() < 2 * (b - c).norm() + 0.01 * c.norm()


def test_attention_is_the_formulas(small):
    x = torch.randn(2, 3, 32, 40)
    maps = small.attention(x, layers=[1, 0, -1, -2, 2])
    tokens = small.tokenize(x) + F.interpolate(
        small.pos_embed.view(1, 4, 4, -1).permute(0, 3, 1, 2), size=(4, 5), mode="bicubic", antialias=True
    ).flatten(2).transpose(1, 2)
    trunk, last = [], []
    for block in small.blocks:
        out, weights = talk(tokens, block.norm1, block.attn, block.gamma_1)
        tokens = tokens + out
        tokens = tokens + block.gamma_2 * block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(tokens))))
        trunk.append(weights)
    token = small.cls_token.expand(2, -1, -1)
    for block in small.blocks_token_only:
        u, a = block.norm1(torch.cat([token, tokens], 1)), block.attn
        q, k, v = (p(t).unflatten(-1, (4, 12)) for p, t in ((a.q, u[:, :1]), (a.k, u), (a.v, u)))
        weights = (torch.einsum("bnhe,bmhe->bhnm", q, k) / 12**0.5).softmax(-1)
        token = token + block.gamma_1 * a.proj(torch.einsum("bhnm,bmhe->bnhe", weights, v).flatten(2))
        token = token + block.gamma_2 * block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(token))))
        last.append(weights)
    for found, wanted in zip(maps, [trunk[1], trunk[0], last[1], last[0], trunk[2]], strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:3]))
    assert maps[0].shape == (2, 4, 20, 20)
    assert maps[2].shape == (2, 4, 1, 21)
    torch.testing.assert_close(small.pooled_attention(x), maps[2][:, :, 0, 1:])
    features = small(x)
    torch.testing.assert_close(features.pooled, small.norm(token)[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.patches, small.norm(tokens), rtol=1e-4, atol=1e-5)


def test_a_layer_that_does_not_exist(small):
    for layer in (5, -6):
        with pytest.raises(ValueError, match="from 0 to 4"):
            small.attention(torch.randn(1, 3, 32, 32), layers=[layer])


# ---------------------------------------------------------------- tokens and sizes
def test_kept_tokens_have_their_own_positions(small):
    x = torch.randn(2, 3, 32, 40)
    keep = torch.tensor([[3, 17, 8], [0, 19, 5]])
    found = small.encode(small.tokenize(x, keep), (4, 5), keep)
    tokens = small._embed(small.tokenize(x), (4, 5), None)
    tokens = torch.stack([row[index] for row, index in zip(tokens, keep, strict=True)])
    wanted = small.norm(small.blocks(tokens))
    torch.testing.assert_close(found.patches, wanted, rtol=1e-4, atol=1e-5)
    whole = torch.arange(20).expand(2, -1)
    again = small.encode(small.tokenize(x, whole), (4, 5), whole)
    torch.testing.assert_close(again.pooled, small(x).pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(37, 50), (8, 8), (33, 25)])
def test_odd_sizes_are_padded_with_zeros(small, height, width):
    x = torch.randn(2, 3, height, width)
    rows, columns = -(-height // 8), -(-width // 8)
    large = torch.zeros(2, 3, 8 * rows, 8 * columns)
    large[:, :, :height, :width] = x
    assert small(x).grid == (rows, columns)
    torch.testing.assert_close(small(x).pooled, small(large).pooled)


# ---------------------------------------------------------------- training, options, sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_reaches_every_parameter(small, dtype):
    small.train().to(dtype)
    features = small(torch.randn(2, 3, 32, 32, dtype=dtype))
    (features.pooled.square().sum() + features.patches.sin().sum()).backward()
    for name, p in small.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.any() or name.endswith("proj_l.bias"), name  # a constant before a softmax does nothing


def test_stochastic_depth_acts_in_training_only(small):
    deep = backbones.build(image_size=32, **SMALL, drop_path=0.5)
    deep.load_state_dict(small.state_dict())
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(deep.eval()(x).pooled, small(x).pooled)
    assert not torch.equal(deep.train()(x).pooled, small.train()(x).pooled)
    assert {block.drop_path for block in deep.blocks} == {0.5}
    assert {block.drop_path for block in deep.blocks_token_only} == {0.0}


def test_spec_rebuilds_it(small):
    twin = backbones.build(**small.spec()).eval()
    twin.load_state_dict(small.state_dict(), strict=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(twin(x).pooled, small(x).pooled)
    assert small.spec()["depth"] == 3


def test_bf16_is_close(small):
    x = torch.randn(2, 3, 32, 32)
    exact = small(x).pooled
    rough = small.bfloat16()(x.bfloat16()).pooled.float()
    assert torch.cosine_similarity(exact, rough).min() > 0.998


@pytest.mark.parametrize(
    ("name", "size", "millions", "billions"),
    [
        ("cait-xxs24", 224, 12.0, 2.5),
        ("cait-xxs36", 224, 17.3, 3.8),
        ("cait-xs24", 224, 26.6, 5.4),
        ("cait-s24", 224, 46.9, 9.4),
        ("cait-s36", 224, 68.2, 13.9),
        ("cait-m36", 224, 270.9, 53.7),
        ("cait-xs24", 384, None, 19.3),
        pytest.param("cait-s24", 384, None, 32.2, marks=pytest.mark.slow),
        pytest.param("cait-s36", 384, None, 48.0, marks=pytest.mark.slow),
        pytest.param("cait-m36", 384, None, 173.3, marks=pytest.mark.slow),
        ("cait-m48", 448, 356.0, 329.6),
    ],
)
def test_sizes_of_the_paper(name, size, millions, billions):
    """Parameters with 1,000 classes, at 224 px; multiply-adds at `size`, by no more than 1.2 % off."""
    with torch.device("meta"), torch.no_grad():
        at_224 = backbones.build(name=name, image_size=224)
        head = torch.nn.Linear(at_224.dim, 1000)
        network = backbones.build(name=name, image_size=size)
        with FlopCounterMode(display=False) as counter:
            head(network(torch.empty(1, 3, size, size)).pooled)
    found = sum(p.numel() for module in (at_224, head) for p in module.parameters())
    assert millions is None or found / 1e6 == pytest.approx(millions, abs=0.05)
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, rel=0.012)


def test_names_and_options():
    with pytest.raises(ValueError, match="cait-xxs24"):
        backbones.build(name="cait-xl24", image_size=32)
    with pytest.raises(ValueError, match="no multiple"):
        backbones.build(name="cait-xxs24", image_size=32, dim=50)
    with pytest.raises(ValueError, match="class_layers"):
        backbones.build(name="cait-xxs24", image_size=32, class_layers=0)
