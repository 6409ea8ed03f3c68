"""SimMIM: the whole loss written out, units in the features' patches, pictures, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from waves import wave

from omma import backbones, methods
from omma.core.protocols import Batch, Clock, Context, Key
from omma.core.random import Stream
from omma.methods import simmim
from omma.methods.shared.masking import random_units
from omma.ops.patches import normalised, patchify
from omma.pretraining import requirements
from omma.train import schedules

SIZE, PATCH = 24, 4


def method(**options):
    torch.manual_seed(0)
    encoder = backbones.build(name="vit/4", image_size=SIZE, depth=2, dim=16, heads=2, hidden=32)
    return simmim.Method(encoder, simmim.Config(**{"unit": 8} | options), Context(image_size=SIZE))


def batch(b=5):
    views = (wave(b, 1, 3, SIZE, SIZE, step=0.31).float(),)
    return Batch(views, Key(0, np.zeros(b, np.int64), np.arange(b)))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("unit", [8, 16])  # 3 x 3 whole ones; 2 x 2 of which three are cut
def test_forward_is_the_equation(norm, unit):
    """Hidden embeddings replaced, one linear layer, |x - y|_1 over the hidden values [Xie 2021, eq. 2]."""
    net, data = method(normalise_target=norm, unit=unit), batch()
    twin = copy.deepcopy(net)
    images, side = data.views[0][:, 0], SIZE // PATCH
    mask = random_units(data.key, Stream.MASK, (side, side), unit // PATCH, 0.6)
    assert 0 < mask.sum() < mask.numel()
    tokens = twin.encoder.tokenize(images)
    tokens = torch.where(mask[:, :, None], twin.mask_token, tokens)
    predicted = twin.predict(twin.encoder.encode(tokens, (side, side)).patches)
    target = patchify(images, PATCH)
    target = normalised(target) if norm else target
    expected = (predicted - target)[mask].abs().mean()
    output = net(data, Clock(0, 1, 0.0))
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    expected.backward()
    for (name, p), (_, q) in zip(net.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_constant_picture_has_error_one():
    """It is told against the best constant: each pixel's mean over the batch."""
    net, data = method(), batch()
    mean = patchify(data.views[0][:, 0], PATCH).mean(0, keepdim=True).expand(5, -1, -1)
    net._predict = lambda images, mask: mean
    assert float(net(data, Clock(0, 1, 0.0)).metrics["error_vs_mean_image"]) == pytest.approx(1.0)


@pytest.mark.parametrize("norm", [False, True])
def test_a_perfect_prediction_paints_the_image(norm):
    net, images = method(normalise_target=norm), batch().views[0][:, 0]
    patches = patchify(images, PATCH)
    net._predict = lambda images, mask: normalised(patches) if norm else patches
    made = net.reconstruct(images, batch().key)
    torch.testing.assert_close(made.images, images, rtol=1e-4, atol=1e-5)
    mask = random_units(batch().key, Stream.MASK, net.encoder.grid(*images.shape[-2:]), net.unit, 0.6)
    hidden = patchify(made.hidden[:, None].float(), PATCH).bool()
    assert torch.equal(hidden.all(-1), mask)
    assert torch.equal(hidden.any(-1), mask)
    assert f"{1 - float(mask.float().mean()):.0%} of it" in made.caption


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mask_share": 0.0}, "mask_share=0.0: must lie between 0 and 1"),
        ({"mask_share": 1.0}, "mask_share=1.0"),
        ({"unit": 0}, "unit=0: must be above 0"),
        ({"scale": (0.5,)}, r"scale=\(0.5,\): must be two shares"),
        ({"scale": (0.0, 0.0)}, "scale"),
        ({"unit": 24}, "unit=24 hides all of an image of 24 px.*choose a smaller --method.unit"),
    ],
)
def test_what_would_teach_nothing_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        method(**options)


@pytest.mark.parametrize(
    ("size", "model", "network"),
    [
        (192, "swin-b", {"window": 6}),
        (192, "swin-l", {"window": 12}),
        (192, "swin-b/w12", {}),  # the name says it
        (224, "swin-b", {}),
        (224, "beit-b/16", {"bias": "shared", "layer_scale": 0.1, "pool": "mean"}),
    ],
)
def test_the_published_runs_of_800_epochs(size, model, network):
    """microsoft/SimMIM, configs/*__800ep: 1e-4 for 512 images from 5e-7, a tenth after epoch 700."""
    recipe = simmim.paper(size, model)
    assert {name: recipe.encoder.get(name) for name in network} == network
    assert network or "window" not in recipe.encoder
    for batch in (2048, 512):
        scaled = recipe.for_batch(batch)
        rate = [
            schedules.learning_rate(Clock(step, 8000, step / 10, 800), scaled)
            for step in (0, 1, 51, 101, 7000, 7001, 7999)
        ]
        parts = [0.005, 0.005, 0.5025, 1, 1, 0.1, 0.1]  # a step late
        assert rate == pytest.approx([1e-4 * batch / 512 * part for part in parts])


@pytest.mark.parametrize("name", ["simmim", "mae", "beit", "eva", "ibot", "dinov2"])
def test_an_image_that_is_one_patch_is_refused(name):
    encoder = backbones.outline(name="vit-n/16", image_size=16)
    needs = requirements.needs_of(name, methods.get(name).Config())
    with pytest.raises(ValueError, match=r"an image of 16 px is a single one.*smaller patches"):
        requirements.suits(name, needs, encoder, 16)
    requirements.suits(name, needs, encoder, 32)
