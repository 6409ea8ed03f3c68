"""TransFG: which patches are chosen, what reaches the last block, and what is refused."""

import copy
import pickle

import pytest
import torch
from waves import wave

from omma import backbones
from omma.backbones import adapters
from omma.backbones.adapters import transfg
from omma.core.protocols import Needs, Preprocess
from omma.pretraining import requirements
from omma.weights import store

SIZES = {"depth": 3, "dim": 24, "heads": 2, "hidden": 48}
SPEC = {"name": "vit-n/4", "image_size": 16, **SIZES}


def parts(seed: int = 0, adapt: dict | None = None, **options: object) -> transfg.Parts:
    torch.manual_seed(seed)
    network = backbones.build(**(SPEC | options))
    for p in network.parameters():  # attention far from even, so that heads differ
        p.data += 0.3 * torch.randn_like(p)
    adapters.insert(network, "transfg", adapt)
    assert isinstance(network, transfg.Parts)
    return network.eval()


def images(size: int = 16, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_the_row_of_the_product_is_that_of_the_whole_product():
    maps = [torch.rand(2, 3, 9, 9, dtype=torch.float64) for _ in range(4)]  # of layers 1 to 4
    whole = maps[3] @ maps[2] @ maps[1] @ maps[0]
    torch.testing.assert_close(transfg.attention_product(reversed(maps)), whole[:, :, 0])


def test_golden_choice():
    """`Part_Attention` of TACJu/TransFG, commit 9336fba, in fp64."""
    maps = [(3 * wave(2, 3, 10, 10, phase=layer)).softmax(-1).float() for layer in range(4)]
    largest, chosen = transfg.attention_product(reversed(maps))[..., 1:].max(-1)
    assert chosen.tolist() == [[0, 1, 2], [8, 3, 4]]
    published = [[0.1889284691, 0.2068980060, 0.2084610047], [0.2077377912, 0.2158336892, 0.1323660216]]
    torch.testing.assert_close(largest, torch.tensor(published), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"registers": 2}, {"positions": "rope"}], ids=str)
def test_each_head_chooses_the_patch_of_its_largest_product(options):
    network = parts(**options)
    first, second = network.attention(images(), (0, 1))
    scores = (second @ first)[:, :, 0, network.prefix :]
    assert network.grid(16, 16) == (5, 5)
    torch.testing.assert_close(network.part_scores(images()), scores)
    assert (network.chosen(images()) == scores.argmax(-1)).all()


@pytest.mark.parametrize("options", [{}, {"registers": 2}, {"positions": "rope"}], ids=str)
def test_the_last_block_receives_prefix_and_chosen_patches_alone(options):
    """By hand: all tokens, then those of the chosen numbers, with their positions."""
    network = parts(**options)
    grid, numbers = network.grid(16, 16), network.chosen(images())
    x, where = network._embed(network.tokenize(images()), grid, None), network.where(grid, None)
    for block in list(network.blocks)[:-1]:
        x = block(x, where)
    patches, front = x[:, network.prefix :], x[:, : network.prefix]
    few = torch.stack([torch.cat([f, p[n]]) for f, p, n in zip(front, patches, numbers, strict=True)])
    expected = network.norm(network.blocks[-1](few, network.where(grid, numbers)))
    features = network(images())
    torch.testing.assert_close(features.pooled, expected[:, 0])
    torch.testing.assert_close(features.prefix, expected[:, : network.prefix])
    torch.testing.assert_close(features.patches, network.norm(patches))
    assert features.grid == grid
    assert features.patches.shape[1] == 25


def test_overlapping_patches_are_the_strided_convolution():
    network = parts(adapt={"stride": 3})
    x = images(19)  # 3 pixels at right and bottom are left
    kernel = network.patch_embed.proj
    expected = torch.nn.functional.conv2d(x, kernel.weight, kernel.bias, stride=3)
    assert network.grid(19, 19) == expected.shape[2:] == (6, 6)
    torch.testing.assert_close(network.tokenize(x), expected.flatten(2).transpose(1, 2))
    assert network(images(3)).grid == (1, 1)  # smaller than a patch


def test_the_papers_grid():
    network = backbones.outline(**(SPEC | {"name": "vit/16", "patch": 16}), adapt={"kind": "transfg"})
    assert network.grid(448, 448) == (37, 37)
    assert network.grid(17, 40) == (1, 3)


def test_methods_that_hide_patches_are_refused():
    network = parts()
    assert not any((network.drops_tokens, network.plain, network.packs))
    with pytest.raises(ValueError, match="vit-n/4 with --adapt transfg cannot"):
        requirements.suits("mae", Needs(drops_tokens=True), network)


def test_a_stride_of_the_patch_keeps_positions_and_patches():
    torch.manual_seed(0)
    plain = backbones.build(**SPEC)
    network = copy.deepcopy(plain)
    adapters.insert(network, "transfg", {"stride": 4})
    assert all((a == b).all() for a, b in zip(plain.parameters(), network.parameters(), strict=True))
    torch.testing.assert_close(network.tokenize(images()), plain.tokenize(images()))


def test_boxes_are_where_the_patches_lie():
    network = parts()
    boxes, numbers = network.boxes(images()), network.chosen(images())
    assert boxes.shape == (3, 2, 4)
    for box, number in zip(boxes.flatten(0, 1).tolist(), numbers.flatten().tolist(), strict=True):
        top, left = number // 5 * 3, number % 5 * 3
        assert box == [top, left, top + 4, left + 4]


def test_a_patch_of_its_own_is_found():
    """Attention that follows content: keys are large for the one bright patch."""
    network = parts()
    for block in network.blocks:
        block.attn.qkv.weight.data.zero_()
        block.attn.qkv.bias.data.zero_()
        block.attn.qkv.bias.data[:24] = 1.0  # all queries ask for the same direction,
        block.attn.qkv.weight.data[24:48] = torch.eye(24)  # in the tokens themselves
    network.pos_embed.data.zero_()
    network.cls_token.data = -torch.linspace(-1, 1, 24).expand(1, 1, 24).clone()
    weight = network.patch_embed.proj.weight
    weight.data = torch.linspace(-1, 1, 24).view(24, 1, 1, 1).expand_as(weight).clone() / 48
    network.patch_embed.proj.bias.data.zero_()
    for block in network.blocks:  # a query that likes the direction of bright patches
        block.attn.qkv.bias.data[:24] = 20 * torch.linspace(-1, 1, 24)
        block.attn.proj.weight.data.zero_()
        block.attn.proj.bias.data.zero_()
        block.mlp.fc2.weight.data.zero_()
        block.mlp.fc2.bias.data.zero_()
    x = torch.full((1, 3, 16, 16), -1.0)
    x[:, :, 6:10, 9:13] = 1.0
    assert network.boxes(x).tolist() == [[[6, 9, 10, 13]] * 2]


def test_images_are_scored_alike_alone_and_together(monkeypatch):
    network = parts()
    together = network.part_scores(images(count=5))
    monkeypatch.setattr(transfg, "MAP_SIZE", 2 * 2 * 26**2)  # two images at a time
    torch.testing.assert_close(network.part_scores(images(count=5)), together)


def test_the_whole_network_is_trained_in_training_mode():
    network = parts(drop_path=0.5)
    assert all(p.requires_grad for p in network.parameters())
    assert not network.frozen
    network.train()
    assert all(module.training for module in network.modules())
    network.drop_nothing()
    network(images()).pooled.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_memory_is_not_taken_by_maps():
    """No graph leads through the choice."""
    network = parts()
    assert not network.part_scores(images()).requires_grad
    network.recompute = True
    first = network(images()).pooled
    network.recompute = False
    torch.testing.assert_close(network(images()).pooled, first)


def test_last_attention_is_spread_over_the_chosen_patches():
    network = parts(registers=1)
    (last,) = network.attention(images())
    assert last.shape == (3, 2, 4, 4)  # class token, register, two parts
    spread, numbers = network.pooled_attention(images()), network.chosen(images())
    assert spread.shape == (3, 2, 25)
    torch.testing.assert_close(spread.sum(-1), last[:, :, 0, 2:].sum(-1))
    for picture, own in zip(spread, numbers, strict=True):
        assert set(picture.nonzero()[:, 1].tolist()) == set(own.tolist())


def test_several_sizes_are_encoded_one_by_one():
    network = parts()
    batches = [(network.tokenize(x), network.grid(*x.shape[-2:])) for x in (images(16), images(22))]
    for features, x in zip(network.encode_many(batches), (images(16), images(22)), strict=True):
        torch.testing.assert_close(features.pooled, network(x).pooled)


def test_a_saved_network_is_the_same(tmp_path):
    network = parts(adapt={"stride": 2})
    preprocess = Preprocess(
        size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    store.save(tmp_path, network, preprocess)
    for again in (
        store.load(tmp_path).encoder,
        pickle.loads(pickle.dumps(network)),
        adapters.merged(network),
    ):
        assert again.adapter == "transfg"
        assert again.spec() == network.spec()
        assert again.pos_embed is not None
        assert again.pos_embed.shape == (1, 1 + 7 * 7, 24)
        assert (again.eval()(images()).pooled == network(images()).pooled).all()


def test_a_fresh_last_block_is_the_only_change():
    torch.manual_seed(0)
    plain = backbones.build(**SPEC, layer_scale=1e-5)
    network = copy.deepcopy(plain)
    for p in network.parameters():
        p.data += 1
    shifted = copy.deepcopy(network)
    adapters.insert(network, "transfg", {"stride": 4, "fresh_last": True})
    changed = {
        name for (name, a), b in zip(network.named_parameters(), shifted.parameters()) if (a != b).any()
    }
    assert changed == {name for name, _ in plain.named_parameters() if name.startswith("blocks.2.")}
    last = dict(network.blocks[2].named_parameters())
    assert (last["norm1.weight"] == 1).all()
    assert (last["ls2.gamma"] == 1).all()
    assert (last["mlp.fc1.bias"] == 0).all()
    assert 0.01 < last["mlp.fc1.weight"].std() < 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "mean"}, "mean of its patches.*model.pool token"),
        ({"mixer": "linear"}, "no softmax attention"),
        ({"depth": 1}, "one block"),
        ({"name": "swin-t"} | dict.fromkeys(SIZES), "no plain vision transformer"),
        ({"name": "beit/4", "pool": "token"}, "no plain vision transformer"),
    ],
    ids=str,
)
def test_other_networks_are_refused_in_one_line(options, message):
    spec = {key: value for key, value in (SPEC | options).items() if value is not None}
    with pytest.raises(ValueError, match=f"--adapt transfg: .*{message}.*--adapt lora") as refused:
        backbones.outline(**spec, adapt={"kind": "transfg"})
    assert "\n" not in str(refused.value)


def test_sharded_blocks_are_refused_in_one_line(monkeypatch):
    network = parts()
    monkeypatch.setattr(transfg, "is_sharded", lambda p: p.ndim > 1)
    with pytest.raises(ValueError, match="--shard none"):
        network(images())


@pytest.mark.parametrize("stride", [0, 5, 1.5])
def test_strides_that_leave_gaps_are_refused(stride):
    with pytest.raises(ValueError, match=r"--adapt\.stride"):
        parts(adapt={"stride": stride})


def test_dinov3_chooses_parts_too():
    network = parts(name="dinov3/4")
    assert network(images()).pooled.shape == (3, 24)
