"""BEiT: a published implementation's numbers, what is masked, and what it refuses to learn from."""

import math

import numpy as np
import pytest
import torch
from waves import wave

from omma import backbones, weights
from omma.core.protocols import Batch, Clock, Context, Extras, Key, Preprocess
from omma.losses import prediction
from omma.methods import beit
from omma.methods.shared.masked_head import MaskedHead
from omma.pretraining import init_weights, requirements
from omma.pretraining.request import Request


def close(a, b, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=atol)


def preprocess(size: int) -> Preprocess:
    return Preprocess(size=size, channels=3, low=(0,) * 3, high=(255,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3)


def tokenizer(codes: int = 7, patch: int = 4, size: int = 32, **extras) -> weights.Model:
    torch.manual_seed(1)
    encoder = backbones.build(
        name=f"vit/{patch}", image_size=size, depth=1, dim=12, heads=2, hidden=24, pool="mean"
    )
    tensors = {"codes.weight": torch.randn(codes, 12), "codes.bias": torch.zeros(codes)} | extras
    return weights.Model(encoder, preprocess(size), extras=Extras(tensors))


def method(model: weights.Model, size: int = 32, **options) -> beit.Method:
    torch.manual_seed(0)
    encoder = backbones.build(name="vit/4", image_size=size, depth=2, dim=16, heads=2, hidden=32, pool="mean")
    config = beit.Config(**options)
    return beit.Method(encoder, config, Context(image_size=size, preprocess=preprocess(size), model=model))


def batch(b: int = 6, size: int = 32) -> Batch:
    return Batch((wave(b, 1, 3, size, size, step=0.31).float(),), Key(0, np.zeros(b, np.int64), np.arange(b)))


def test_masked_forward_and_gradients_of_a_published_implementation():
    """transformers 5.23.0, BeitForMaskedImageModeling with relative positions and layer scale, in fp64."""
    encoder = backbones.build(name="beit/4", image_size=12, depth=2, dim=8, heads=2, hidden=32).double()
    head = MaskedHead(encoder, 7).double()
    norms = {id(m.weight) for m in encoder.modules() if isinstance(m, torch.nn.LayerNorm)}
    with torch.no_grad():
        for i, p in enumerate([*encoder.parameters(), *head.parameters()]):
            p.copy_(wave(*p.shape, phase=i, scale=0.3) + (1.0 if id(p) in norms else 0.0))
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 1, 1, 0]]).bool()
    logits = head(encoder, wave(2, 3, 12, 12, phase=0.3), mask)
    loss = prediction.codes(logits, torch.tensor([3, 0, 6, 1, 1, 5]), torch.tensor(6.0))
    loss.backward()
    close(loss, 2.048228805)
    close(head.mask_token.grad[0, 0, :4], [0.341612339, 0.240578261, -0.258961692, -0.258342713])
    value = encoder.blocks[0].attn.qkv.weight.grad[19, :4]
    close(value, [-0.013356828, -0.005689285, 0.000523946, -0.001257188])
    bias = [0.161535221, -0.266988217, 0.077239232, -0.069936026, 0.064665675, 0.037620503, -0.004136389]
    close(head.predict.bias.grad, bias)


def test_a_head_that_knows_nothing_costs_log_k():
    net = method(tokenizer(codes=11))
    for p in net.head.predict.parameters():
        torch.nn.init.zeros_(p)
    close(net(batch(), Clock(0, 1, 0.0)).loss, math.log(11))


def test_masks_are_blocks_of_about_the_share():
    output = method(tokenizer())(batch(64), Clock(0, 1, 0.0))
    assert 0.30 < float(output.metrics["masked"]) <= 25 / 64  # round(75/196 * 64), at the most


def test_targets_are_of_the_unmasked_image_at_the_students_grid():
    """A tokenizer of another patch size is shown the image at the size where the grids are equal."""
    model = tokenizer(patch=2, size=16)
    net = method(model)
    images = batch().views[0][:, 0]
    got = net.tokenizer(images, (8, 8))
    small = torch.nn.functional.interpolate(images, size=(16, 16), mode="bicubic", antialias=True)
    features = model.encoder(small).patches
    kept = model.extras.tensors
    close(got, features @ kept["codes.weight"].T + kept["codes.bias"], atol=1e-5)


def test_the_tokenizer_sees_what_it_was_trained_with():
    """The same raw values, normalised as it wants, although the student's are normalised otherwise."""
    net = method(tokenizer())
    images = batch().views[0][:, 0]
    plain = net.tokenizer(images, (8, 8))
    net.tokenizer.seen = Preprocess(
        size=32, channels=3, low=(0,) * 3, high=(255,) * 3, mean=(0.3,) * 3, std=(0.1,) * 3
    )
    raw = images * 0.25 + 0.5
    close(net.tokenizer((raw - 0.3) / 0.1, (8, 8)), plain, atol=1e-4)


def test_the_tokenizer_never_changes():
    net = method(tokenizer())
    net.train()
    assert not any(m.training for m in net.tokenizer.modules())
    assert not any(p.requires_grad for p in net.tokenizer.parameters())
    output = net(batch(), Clock(0, 1, 0.0))
    output.loss.backward()
    assert all(p.grad is None for p in net.tokenizer.parameters())
    grouped = {id(p) for group in net.groups() for p in group.params}
    assert not grouped & {id(p) for p in net.tokenizer.parameters()}


def test_merged_tokens_are_hidden_together():
    """Swin embeds 4 px and gives features of 32: all 64 tokens of a hidden feature are hidden."""
    encoder = backbones.build(name="swin-t", image_size=64)
    head = MaskedHead(encoder, 3)
    seen = []
    encode = encoder.encode
    encoder.encode = lambda tokens, grid, keep=None: (seen.append(tokens), encode(tokens, grid, keep))[1]
    mask = torch.tensor([[True, False, False, True]])
    assert head(encoder, torch.zeros(1, 3, 64, 64), mask).shape == (2, 3)
    hidden = (seen[0] == head.mask_token).all(-1).view(16, 16)
    assert hidden[:8, :8].all()
    assert hidden[8:, 8:].all()
    assert int(hidden.sum()) == 128


def test_without_a_tokenizer_it_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"a tokenizer.*--method vqvae.*--method\.tokenizer MODEL"):
        requirements.refuse(Request("images", method="beit"), classes=None, captions=False)


def test_a_model_without_codes_is_refused(tmp_path):
    model = tokenizer()
    weights.save(tmp_path, model.encoder, model.preprocess)
    request = Request("images", method="beit", options={"tokenizer": str(tmp_path)})
    with pytest.raises(ValueError, match="is not what beit learns from, a tokenizer"):
        init_weights.teacher(request)
    weights.save(tmp_path, model.encoder, model.preprocess, extras=model.extras)
    loaded = init_weights.teacher(request)
    assert loaded is not None
    assert set(loaded.extras.tensors) == {"codes.weight", "codes.bias"}


def test_codes_of_another_width_are_refused():
    with pytest.raises(ValueError, match="do not belong together"):
        method(tokenizer(**{"codes.weight": torch.zeros(7, 5)}))


def test_other_channels_are_refused():
    model = tokenizer()
    context = Context(
        image_size=32,
        preprocess=Preprocess(size=32, channels=1, low=(0,), high=(255,), mean=(0.5,), std=(0.25,)),
        model=model,
    )
    encoder = backbones.build(name="vit-n/4", image_size=32, channels=1)
    with pytest.raises(ValueError, match="made for 3 channels, these images have 1"):
        beit.Method(encoder, beit.Config(), context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_share": 1.0}, "between 0 and 1"),
        ({"mask_share": 0.05}, "at most mask_share"),
    ],
)
def test_values_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        beit.Config(**options)


def test_layer_scale_is_the_papers_for_each_size():
    assert beit.paper(224, "vit-b/16").encoder["layer_scale"] == 0.1
    assert beit.paper(224, "beit-l/16").encoder["layer_scale"] == 1e-5
