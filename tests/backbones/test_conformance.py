"""What every backbone promises, checked on one small model of each family and option."""

import math

import pytest
import torch

from omma import backbones
from omma.core.protocols import NoAttention

CASES = {  # of three layers: a first, a last and one between
    "vit": {"name": "vit-ti/8", "depth": 3},
    "vit, mean": {"name": "vit-ti/8", "depth": 3, "pool": "mean"},
    "vit, sincos": {"name": "vit-ti/8", "depth": 3, "positions": "sincos"},
    "vit, registers": {"name": "vit-ti/8", "depth": 3, "registers": 2},
    "vit, layer scale": {"name": "vit-ti/8", "depth": 3, "layer_scale": 1e-2},
    "vit, patch 2": {"name": "vit-ti/2", "depth": 3},
    "vit, rope": {"name": "vit-ti/8", "depth": 3, "positions": "rope"},
    "vit, no positions": {"name": "vit-ti/8", "depth": 3, "positions": "none"},
    "vit, linear": {"name": "vit-ti/8", "depth": 3, "mixer": "linear"},
    "vit, bigbird": {"name": "vit-ti/2", "depth": 3, "mixer": "bigbird", "positions": "rope"},
    "vit, fourier": {"name": "vit-ti/8", "depth": 3, "mixer": "fourier"},
    "vit, clip's": {"name": "vit-ti/8", "depth": 3, "norm_pre": True, "mlp": "quickgelu", "eps": 1e-5},
    "deit": {"name": "deit-ti/8", "depth": 3},
    "dinov2": {"name": "dinov2-s/8", "depth": 3, "registers": 4, "prefix_positions": False, "mlp": "swiglu"},
    "beit": {"name": "beit-ti/8", "depth": 3},
    "beit, shared": {"name": "beit-ti/8", "depth": 3, "bias": "shared", "pool": "mean_fc_norm"},
    "eva02": {"name": "eva02-ti/8", "depth": 3},
    "eva02, large form": {
        "name": "eva02-ti/8",
        "depth": 3,
        "mlp": "split_swiglu",
        "sub_norm": True,
        "fused": False,
    },
    "dinov3": {"name": "dinov3-s/8", "depth": 3},
    "swin": {"name": "swin-t", "dim": 24, "depths": (2, 2, 2), "heads": (1, 2, 4), "window": 4},
    "cait": {"name": "cait-xxs24", "depth": 3, "patch": 8},
    "timm's": {"name": "timm:test_resnet"},
    "timm's, non-local": {"name": "timm:test_resnet", "non_local": (2,)},
    "dalle": {"name": "dalle/8", "hidden": 8, "depth": 1},
    "vitc, small": {"name": "vitc-15mf"},
    "vitc, paper's": {"name": "vitc-1gf"},
    "linear": {"name": "linear", "dim": 16},
    "mlp": {"name": "mlp", "dim": 16, "dropout": 0.0},
    "lenet": {"name": "lenet"},
    "resnet20": {"name": "resnet20"},
}


@pytest.fixture(params=list(CASES), ids=list(CASES))
def backbone(request):
    torch.manual_seed(0)
    return backbones.build(image_size=32, **CASES[request.param])


def test_shapes(backbone):
    features = backbone.eval()(torch.randn(2, 3, 32, 32))
    rows, columns = features.grid
    assert features.grid == backbone.grid(32, 32)
    assert features.pooled.shape == (2, backbone.dim)
    assert features.patches.shape == (2, rows * columns, backbone.dim)


def test_other_image_sizes(backbone):
    backbone.eval()
    p = backbone.patch
    height, width = (max(2, math.ceil(48 / p)) * p, max(2, math.ceil(64 / p)) * p)
    for h, w in ((height, width), (height - 1, width + 1), (37, 51)):
        features = backbone(torch.randn(1, 3, h, w))
        assert features.grid == backbone.grid(h, w)
        assert features.patches.shape[1] == features.grid[0] * features.grid[1]
        assert torch.isfinite(features.pooled).all()


def test_spec_rebuilds_it(backbone):
    twin = backbones.build(**backbone.spec())
    twin.load_state_dict(backbone.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(twin.eval()(x).pooled, backbone.eval()(x).pooled)


def test_gradient_reaches_every_parameter(backbone):
    features = backbone.train()(torch.randn(2, 3, 32, 32))
    (features.pooled.square().sum() + features.patches.square().sum()).backward()
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


def test_attention_is_a_distribution_over_patches(backbone):
    x = torch.randn(2, 3, 32, 32)
    try:
        maps = backbone.eval().pooled_attention(x)
    except NoAttention:
        assert not backbone.plain or backbone.spec().get("mixer") == "fourier"
        return
    rows, columns = backbone.grid(32, 32)
    assert maps.shape[0] == 2
    assert maps.shape[2] == rows * columns
    total = maps.sum(-1)
    assert (maps >= 0).all()
    assert (total <= 1 + 1e-5).all()  # the rest goes to class token and registers
    assert (total > 0.3).all()


def test_attention_of_chosen_layers(backbone):
    """Asked for together or one by one, in any order, and the same whatever path runs fast."""
    x = torch.randn(2, 3, 32, 32)
    try:
        first, last = backbone.eval().attention(x, layers=[0, -1])
    except NoAttention:
        return
    again, once_more = backbone.attention(x, layers=(-1, 0))
    assert torch.equal(first, once_more)
    assert torch.equal(last, again)
    for maps in (first, last):
        torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps.sum(-1)))
    with pytest.raises(ValueError, match="layer 99"):
        backbone.attention(x, layers=[99])


def test_encode_many_equals_one_by_one(backbone):
    """In features and in all gradients."""
    backbone.eval()
    p = backbone.patch
    images = [torch.randn(2, 3, 32, 32), torch.randn(3, 3, 2 * p, 2 * p), torch.randn(1, 3, 2 * p, 3 * p)]
    found = []
    for many in (backbone.encode_many, lambda given: [backbone.encode(*one) for one in given]):
        backbone.zero_grad()
        seen = many([(backbone.tokenize(x), backbone.grid(*x.shape[-2:])) for x in images])
        sum(f.pooled.square().sum() + f.patches.sin().sum() for f in seen).backward()
        grads = {name: w.grad for name, w in backbone.named_parameters() if w.grad is not None}
        found.append(([f._asdict() for f in seen], grads))
    (features, grads), (right, right_grads) = found
    torch.testing.assert_close(features, right, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grads, right_grads, rtol=1e-3, atol=2e-4)


def test_dropping_tokens(backbone):
    """Kept tokens are those of the whole image, with their own positions; order does not matter."""
    if not backbone.drops_tokens:
        with pytest.raises(AssertionError):
            backbone.tokenize(torch.randn(1, 3, 32, 32), torch.zeros(1, 1, dtype=torch.int64))
        return
    backbone.eval()
    x = torch.randn(2, 3, 32, 32)
    grid = backbone.grid(32, 32)
    n = grid[0] * grid[1]
    everything = torch.arange(n).expand(2, -1)
    whole = backbone(x)
    kept = backbone.encode(backbone.tokenize(x, everything), grid, everything)
    torch.testing.assert_close(kept.pooled, whole.pooled, rtol=1e-4, atol=1e-5)
    some = torch.tensor([[3, 1, 2], [0, 3, 1]])
    a = backbone.encode(backbone.tokenize(x, some), grid, some)
    b = backbone.encode(backbone.tokenize(x, some.flip(1)), grid, some.flip(1))
    assert a.patches.shape == (2, 3, backbone.dim)
    torch.testing.assert_close(a.patches, b.patches.flip(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.pooled, b.pooled, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_acts_in_training_only(backbone):
    if backbone.name in ("linear", "mlp", "lenet"):
        pytest.skip("without residual branches")
    spec = backbone.spec()
    torch.manual_seed(0)
    for p in backbone.parameters():  # some branches begin at zero, and dropping them would not show
        p.data.add_(0.1 * torch.rand_like(p))
    deep = backbones.build(**spec, drop_path=0.5)
    deep.load_state_dict(backbone.state_dict())
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(deep.eval()(x).pooled, backbone.eval()(x).pooled)
    assert not torch.equal(deep.train()(x).pooled, backbone.train()(x).pooled)
    deep.drop_nothing()
    torch.testing.assert_close(deep.train()(x).pooled, backbone.train()(x).pooled)


@pytest.mark.parametrize("channels", [1, 6, 13])
def test_channels(channels):
    for case in CASES.values():
        backbone = backbones.build(image_size=32, channels=channels, **case).eval()
        assert torch.isfinite(backbone(torch.randn(1, channels, 32, 32)).pooled).all()


def test_bf16(backbone):
    backbone.eval()
    x = torch.randn(2, 3, 32, 32)
    exact = backbone(x).pooled
    rough = backbone.bfloat16()(x).pooled.float()
    assert torch.cosine_similarity(exact, rough).min() > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_trains(backbone, dtype):
    x = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", dtype):
        loss = backbone.train()(x).pooled.float().square().sum()
    loss.backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters() if p.requires_grad
    )


def test_no_images_at_all(backbone):
    features = backbone.eval()(torch.randn(0, 3, 32, 32))
    assert features.pooled.shape == (0, backbone.dim)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit-ti/16", {"depth": 0}, "depth=0 of vit-ti/16: must be whole and at least 1"),
        ("vit-ti/16", {"heads": -3}, "heads"),
        ("vit-ti/16", {"hidden": 2.5}, "hidden"),
        ("vit-ti/16", {"registers": -1}, "at least 0"),
        ("vit-ti/16", {"channels": 0}, "channels"),
        ("vit-ti/16", {"drop_path": 1.0}, r"in \[0, 1\)"),
        ("vit-ti/16", {"drop_path": "much"}, "drop_path"),
        ("vit-ti/16", {"eps": -1}, "above 0"),
        ("vit-ti/16", {"layer_scale": math.nan}, "above 0"),
        ("vit-ti/16", {"qkv_bias": "no"}, "true or false"),
        ("vit-ti/16", {"positions": "rope", "heads": 32}, "multiple of 4"),
        ("eva02-ti/14", {"heads": 32}, "multiple of 4"),
        ("cait-xxs24", {"layer_scale": None}, "layer_scale"),
        ("vit/16", {}, "give depth, dim, heads, hidden too"),
        ("swin", {}, "no size of its own"),
    ],
)
def test_values_that_no_network_can_have(name, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        backbones.build(name=name, image_size=32, **options)
    assert "\n" not in str(caught.value)


def test_a_whole_number_will_do_for_another():
    network = backbones.build(name="vit-ti/16", image_size=32, depth=1, layer_scale=1)
    assert network.blocks[0].ls1.gamma.dtype == torch.float32


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match="did you mean vit-s/16"):
        backbones.build(name="vit_s/16", image_size=32)
    with pytest.raises(ValueError, match="patch size"):
        backbones.build(name="vit-s/65", image_size=64)
    with pytest.raises(ValueError, match=r"no option 'colour'; it has .*depth"):
        backbones.build(name="vit-s/16", image_size=40, colour=1)
    with pytest.raises(ValueError, match="positions='rope'"):
        backbones.build(name="vit-s/16", image_size=32, positions="rope", mixer="linear")
    with pytest.raises(ValueError, match="pool"):
        backbones.build(name="vit-s/16", image_size=32, pool="max")
