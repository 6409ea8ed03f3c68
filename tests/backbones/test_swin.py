"""Swin: equal to timm's and transformers', at any image size, with attention that can be looked at."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from omma import backbones

SMALL = {"dim": 24, "depths": (2, 2, 2, 2), "heads": (1, 2, 4, 8)}


def small(image_size=64, window=2, **options):
    """A small network with numbers everywhere: in norms, biases and tables too."""
    torch.manual_seed(0)
    made = backbones.build(name="swin-t", image_size=image_size, window=window, **(SMALL | options)).eval()
    return shaken(made)


def shaken(network):
    for name, p in network.named_parameters():
        if p.ndim < 2 or name.endswith("table"):
            p.data += 0.5 * torch.randn_like(p)
    return network


def timm_twin(ours, size, window, shape=SMALL):
    models = pytest.importorskip("timm.models.swin_transformer", reason="timm (dev group) is not installed")
    sizes = {"embed_dim": shape["dim"], "depths": shape["depths"], "num_heads": shape["heads"]}
    theirs = models.SwinTransformer(img_size=size, window_size=window, num_classes=0, **sizes).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs


def assert_equals_timm(ours, theirs, size):
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        features, patches = ours(x), theirs.forward_features(x)
        assert features.grid == patches.shape[1:3]
        torch.testing.assert_close(features.patches, patches.flatten(1, 2), rtol=0, atol=1e-4)
        torch.testing.assert_close(features.pooled, theirs(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "window"),
    [((64, 64), 2), ((128, 128), 4), ((256, 256), 8), ((224, 224), 7), ((128, 64), 2), ((64, 192), 2)],
    ids=str,
)
def test_equal_to_timm(size, window):
    ours = small(min(size), window)
    assert_equals_timm(ours, timm_twin(ours, size, window), size)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("swin-t", 224),
        ("swin-t", 448),
        pytest.param("swin-s", 224, marks=pytest.mark.slow),
        pytest.param("swin-b", 224, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_published_sizes_equal_timm(name, size):
    torch.manual_seed(0)
    ours = shaken(backbones.build(name=name, image_size=224).eval())
    assert_equals_timm(ours, timm_twin(ours, size, 7, backbones.options(name)), (size, size))


@pytest.mark.parametrize("name", ["swin-s", "swin-b"])
def test_published_shapes_are_timms(name):
    """All names and shapes of the state; on no device, which takes no time."""
    with torch.device("meta"):
        timm_twin(backbones.outline(name=name, image_size=224), 224, 7, backbones.options(name))


def test_small_maps_shrink_the_window_as_timm():
    """Windows of 7 on maps of 4 and 2 rows: tables are as small as the maps."""
    ours = small(224, 7)
    assert ours.layers[3].blocks[0].attn.relative_position_bias_table.shape == (13 * 13, 8)
    ours = small(128, 16)
    sides = [stage.blocks[1].attn.relative_position_bias_table.shape[0] ** 0.5 for stage in ours.layers]
    assert sides == [31, 31, 15, 7]
    assert_equals_timm(ours, timm_twin(ours, (128, 128), 16), (128, 128))


def test_smaller_maps_use_the_middle_of_the_table():
    """One network at 128 and at 64 pixels: the latter is timm's for 64 pixels with the tables' middles."""
    large, few = small(128, 4), small(64, 4)
    state = large.state_dict()
    for name, wanted in few.state_dict().items():
        if state[name].shape != wanted.shape:
            new, old = math.isqrt(len(wanted)), math.isqrt(len(state[name]))
            cut = slice((old - new) // 2, (old + new) // 2)
            state[name] = state[name].view(old, old, -1)[cut, cut].flatten(0, 1)
    few.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(large(x).patches, few(x).patches)
    assert_equals_timm(few, timm_twin(few, (64, 64), 4), (64, 64))


OLDER = (  # names of today's transformers, and of its older versions
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
    ("attention.o_proj", "attention.output.dense"),
    ("attention.relative_position_bias.", "attention.self."),
    ("attention.q_proj", "attention.self.query"),
    ("attention.k_proj", "attention.self.key"),
    ("attention.v_proj", "attention.self.value"),
)


def transformers_twin(ours, window, shape):
    hf = pytest.importorskip("transformers", reason="transformers (bench group) is not installed")
    config = hf.SwinConfig(
        embed_dim=shape["dim"],
        depths=list(shape["depths"]),
        num_heads=list(shape["heads"]),
        window_size=window,
        drop_path_rate=0.0,
    )
    theirs = hf.SwinModel(config, add_pooling_layer=True).eval()
    state = {}
    for name, x in ours.state_dict().items():
        if ".qkv." in name:
            for part, value in zip("qkv", x.chunk(3), strict=True):
                state["encoder." + name.replace("attn.qkv", f"attention.{part}_proj")] = value
            continue
        for old, new in (
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("patch_embed.norm", "embeddings.norm"),
            ("attn.relative", "attention.relative_position_bias.relative"),
            ("attn.proj", "attention.o_proj"),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
        ):
            name = name.replace(old, new)
        if "downsample" in name:  # theirs stands at the end of a stage
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}", f"layers.{stage - 1}")
        if name.startswith("norm."):
            name = name.replace("norm", "layernorm")
        state[f"encoder.{name}" if name.startswith("layers") else name] = x
    if "encoder.layers.0.blocks.0.attention.self.query.weight" in theirs.state_dict():
        state = {
            functools.reduce(lambda text, pair: text.replace(*pair), OLDER, name): x
            for name, x in state.items()
        }
    found = theirs.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert not [name for name in found.missing_keys if not name.endswith("relative_position_index")]
    return theirs


@pytest.mark.parametrize(
    ("size", "window"),
    [((64, 64), 2), ((160, 96), 2), ((128, 192), 3), ((256, 256), 7)],
    ids=str,
)
def test_equal_to_transformers(size, window):
    """Also where maps are padded to whole windows: 160 x 96 has 5 x 3 features, padded to 6 x 4.

    Where one side of a map is no longer than a window, but the other is, theirs shifts neither, timm one.
    """
    ours = small(256, window)
    theirs = transformers_twin(ours, window, SMALL)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        features, found = ours(x), theirs(x)
    torch.testing.assert_close(features.patches, found.last_hidden_state, rtol=0, atol=1e-4)
    torch.testing.assert_close(features.pooled, found.pooler_output, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(33, 70), (97, 31), (1, 1), (200, 120)])
def test_odd_sizes_are_padded_at_the_input(size):
    ours = small(64, 3)
    x = torch.randn(2, 3, *size)
    rows, columns = math.ceil(size[0] / 32), math.ceil(size[1] / 32)
    whole = F.pad(x, (0, 32 * columns - size[1], 0, 32 * rows - size[0]))
    features = ours(x)
    assert features.grid == ours.grid(*size) == (rows, columns)
    assert features.patches.shape == (2, rows * columns, ours.dim)
    assert torch.equal(features.pooled, ours(whole).pooled)


def test_tokens_are_the_first_stage_and_can_be_masked():
    ours = small()
    assert (ours.patch, ours.token_patch, ours.dim, ours.token_dim) == (32, 4, 192, 24)
    x = torch.randn(2, 3, 70, 33)
    tokens, grid = ours.tokenize(x), ours.grid(70, 33)
    assert tokens.shape == (2, 8 * grid[0] * 8 * grid[1], 24)
    assert torch.equal(ours.encode(tokens, grid).pooled, ours(x).pooled)
    blind = ours.encode(torch.zeros_like(tokens), grid).pooled
    torch.testing.assert_close(blind[0], blind[1])
    with pytest.raises(AssertionError, match="cannot drop"):
        ours.tokenize(x, torch.zeros(2, 3, dtype=torch.long))


def naive(x, block, grid, side, shift):
    """The map of a block, pair by pair; windows of `side` rows and columns begin at `shift`."""
    rows, columns = grid
    attn, heads = block.attn, block.attn.heads
    q, k, _ = attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).unbind(2)
    table = attn.relative_position_bias_table.view(2 * side - 1, 2 * side - 1, heads)
    out = torch.zeros(len(x), heads, rows * columns, rows * columns)
    for i in range(rows * columns):
        y, z = divmod(i, columns)
        near = [
            j
            for j in range(rows * columns)
            if (j // columns - shift) // side == (y - shift) // side
            and (j % columns - shift) // side == (z - shift) // side
        ]
        scores = torch.stack(
            [
                (q[:, i] * k[:, j]).sum(-1) * q.shape[-1] ** -0.5
                + table[y - j // columns + side - 1, z - j % columns + side - 1]
                for j in near
            ],
            dim=-1,
        )
        out[:, :, i, near] = scores.softmax(-1)
    return out


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_attention_is_the_formula(layer):
    """Layer 1 and 3 are shifted; the image is not square."""
    ours, x = small(128, 4), torch.randn(2, 3, 64, 128)
    stage, index = divmod(layer, 2)
    grid = (16 >> stage, 32 >> stage)
    with torch.no_grad():
        inputs = ours.tokenize(x)
        for step, here in ours._steps(ours.grid(64, 128)):
            if step is ours.layers[stage].blocks[index]:
                break
            inputs = step(inputs, here)
        wanted = naive(inputs, step, grid, 4, 2 * index)
    (maps,) = ours.attention(x, [layer])
    torch.testing.assert_close(maps, wanted, rtol=1e-4, atol=1e-6)


def test_attention_of_chosen_layers():
    ours, x = small(128, 4), torch.randn(2, 3, 96, 160)
    last, first, again = ours.attention(x, [-1, 0, 7])
    assert last.shape == (2, 8, 15, 15)
    assert first.shape == (2, 1, 24 * 40, 24 * 40)
    assert torch.equal(last, again)
    torch.testing.assert_close(first.sum(-1), torch.ones(2, 1, 24 * 40))
    assert ours.pooled_attention(x).shape == (2, 8, 15)
    with pytest.raises(ValueError, match="layer 8"):
        ours.attention(x, [8])


@pytest.mark.parametrize("index", [0, 1])
def test_attention_moves_what_the_fast_path_moves(index):
    """Values mixed by the maps are the block's own output, on a map of 3 x 3, padded to 4 x 4."""
    ours, x = small(96, 2), torch.randn(2, 3, 96, 96)
    block = ours.layers[3].blocks[index]
    seen = {}
    block.attn.register_forward_hook(lambda _, inputs, out: seen.update(x=inputs[0], out=out))
    ours(x)
    (maps,) = ours.attention(x, [6 + index])
    total = maps.sum(-1, keepdim=True)  # the rest fell on padding, which a shift by half keeps apart here
    assert (total < 0.99).any() == (index == 0)
    v = block.attn.qkv(seen["x"]).chunk(3, -1)[2].unflatten(-1, (8, -1)).transpose(1, 2)
    mixed = maps @ v + (1 - total) * block.attn.qkv.bias.chunk(3)[2].view(1, 8, 1, -1)
    found = block.attn.proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, seen["out"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_gradients_are_those_of_the_formula(size, monkeypatch):
    """Every parameter has one; the hand-written derivative equals autograd's of the fused kernel."""

    def gradients(network):
        network.zero_grad()
        features = network(x)
        (features.pooled.square().sum() + features.patches.square().sum()).backward()
        return {name: p.grad.clone() for name, p in network.named_parameters()}

    ours = small().double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    written_out = gradients(ours)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # as if traced: no hand-written parts
    for name, grad in gradients(ours).items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(written_out[name], grad, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_bf16(size):
    ours = small(96, 3)
    x = torch.randn(4, 3, *size)

    def gradients(network, x):
        features = network(x)
        features.pooled.float().square().sum().backward()
        return features, {name: p.grad.float() for name, p in network.named_parameters()}

    exact, slopes = gradients(ours, x)
    ours.zero_grad()
    rough, rough_slopes = gradients(ours.bfloat16(), x.bfloat16())
    assert F.cosine_similarity(exact.pooled, rough.pooled.float()).min() > 0.995
    for name, slope in slopes.items():
        least = 0.9 if name.endswith("table") else 0.995  # sums of what cancels; timm's are as far off
        assert F.cosine_similarity(slope.flatten(), rough_slopes[name].flatten(), 0) > least, name


def test_spec_rebuilds_it():
    ours = small(96, (4, 3, 2, 2), ratio=2, qkv_bias=False, token_patch=2, channels=5)
    spec = ours.spec()
    assert spec["window"] == (4, 3, 2, 2)
    twin = backbones.build(**spec).eval()
    twin.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 96, 50)
    assert torch.equal(twin(x).pooled, ours(x).pooled)
    assert backbones.build(name="swin-b/w12", image_size=384).spec() == {
        "name": "swin-b/w12",
        "image_size": 384,
        "channels": 3,
    }


def test_drop_path():
    ours = small(drop_path=0.5)
    x = torch.randn(8, 3, 64, 64)
    drops = [block.drop_path for stage in ours.layers for block in stage.blocks]
    assert drops == pytest.approx([0.5 * i / 7 for i in range(8)])
    assert "drop_path" not in ours.spec()
    assert torch.equal(ours(x).pooled, small()(x).pooled)
    ours.train()
    assert not torch.equal(ours(x).pooled, ours(x).pooled)
    ours(x).pooled.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in ours.parameters() if p.grad is not None)


def test_evaluation_first_then_training():
    """What evaluation has remembered of the windows serves training; tracing leaves nothing behind."""
    shape = {"image_size": 96, "window": 2, "dim": 8, "depths": (1, 2), "heads": (1, 2)}
    ours, x = small(**shape), torch.randn(1, 3, 72, 96)
    with torch.inference_mode():
        ours(x)
    ours(x).pooled.sum().backward()
    several = {"images": {0: torch.export.Dim("b", min=1, max=8)}}
    exported = torch.export.export(ours, (x.repeat(2, 1, 1, 1),), dynamic_shapes=several).module()
    torch.testing.assert_close(exported(x).pooled, ours(x).pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours(x).pooled, small(**shape)(x).pooled)


@pytest.mark.parametrize(
    ("name", "size", "millions", "giga"),
    [
        ("swin-t", 224, 28, 4.5),
        ("swin-s", 224, 50, 8.7),
        ("swin-b", 224, 88, 15.4),
        ("swin-b/w12", 384, 88, 47.0),
        ("swin-l/w12", 384, 197, 103.9),
    ],
)
def test_sizes_of_the_paper(name, size, millions, giga):
    """Parameters and multiply-adds [table 1], which count a classifier of 1,000 classes."""
    with torch.device("meta"):
        ours, head = backbones.build(name=name, image_size=size), torch.nn.Linear(1, 1000)
        head = torch.nn.Linear(ours.dim, 1000)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            head(ours(torch.empty(1, 3, size, size)).pooled)
    parameters = sum(p.numel() for p in [*ours.parameters(), *head.parameters()])
    assert parameters / 1e6 == pytest.approx(millions, abs=0.6)
    assert counter.get_total_flops() / 2e9 == pytest.approx(giga, rel=0.01)


def test_wrong_options():
    for options, said in (
        ({"depths": (2, 2)}, "differ in length"),
        ({"dim": 100}, "multiple of"),
        ({"window": 0}, "at least 1"),
        ({"window": 2.5}, "at least 1"),
        ({"depths": (2, -2, 2, 2)}, "at least 1"),
        ({"patch": 4}, "no option 'patch'"),
    ):
        with pytest.raises(ValueError, match=said):
            backbones.build(name="swin-t", image_size=64, **options)
