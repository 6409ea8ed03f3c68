"""EVA: the target's features, the floor of a constant, and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from waves import wave

from omma import backbones, weights
from omma.core.protocols import Batch, Clock, Context, Extras, Key, Preprocess
from omma.core.random import Stream
from omma.methods import eva
from omma.methods.shared.masking import blockwise
from omma.pretraining import requirements
from omma.pretraining.request import Request


def close(a, b, atol=2e-6):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=atol)


PREPROCESS = Preprocess(size=32, channels=3, low=(0,) * 3, high=(255,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3)


def tower(projection: bool = True) -> weights.Model:
    torch.manual_seed(1)
    encoder = backbones.build(name="vit/8", image_size=64, depth=1, dim=12, heads=2, hidden=24)
    tensors = {"projection.weight": torch.randn(5, 12)} if projection else {}
    return weights.Model(encoder, PREPROCESS, extras=Extras(tensors))


def method(model: weights.Model, **options) -> eva.Method:
    torch.manual_seed(0)
    encoder = backbones.build(name="vit/4", image_size=32, depth=2, dim=16, heads=2, hidden=32, pool="mean")
    config = eva.Config(**options)
    return eva.Method(encoder, config, Context(image_size=32, preprocess=PREPROCESS, model=model))


def batch(b: int = 6) -> Batch:
    return Batch((wave(b, 1, 3, 32, 32, step=0.31).float(),), Key(0, np.zeros(b, np.int64), np.arange(b)))


def masks(context: Batch) -> torch.Tensor:
    counts = np.full(len(context.key.index), round(105 / 256 * 64))
    return blockwise(context.key, Stream.MASK, (8, 8), counts, 4)


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("normalised", [True, False])
def test_a_student_that_says_the_target_is_at_minus_one(projection, normalised):
    """Whatever the length it says it with."""
    model, context = tower(projection), batch()
    net = method(model, normalise_target=normalised)
    images = F.interpolate(context.views[0][:, 0], size=(64, 64), mode="bicubic", antialias=True)
    target = model.encoder(images).patches
    if projection:
        target = target @ model.extras.tensors["projection.weight"].T
    target = target[masks(context)]
    target = F.layer_norm(target, target.shape[-1:]) if normalised else target
    assert net.head.predict.out_features == (5 if projection else 12)
    for sign in (1.0, -1.0):
        net.head.forward = lambda *_, sign=sign: sign * 3 * target
        close(net(context, Clock(0, 1, 0.0)).loss, -sign, atol=1e-5)


def test_the_constants_cosine_is_what_the_best_constant_gets():
    model, context = tower(), batch()
    net = method(model)
    target = net.target(context.views[0][:, 0], (8, 8))[masks(context)]
    best = F.normalize(target, dim=-1).mean(0, keepdim=True).expand_as(target)
    net.head.forward = lambda *_: best
    output = net(context, Clock(0, 1, 0.0))
    close(output.metrics["cosine"], output.metrics["cosine_of_constant"], atol=1e-5)


def test_the_tower_never_changes():
    net = method(tower()).train()
    net(batch(), Clock(0, 1, 0.0)).loss.backward()
    assert not any(m.training for m in net.target.modules())
    assert all(p.grad is None and not p.requires_grad for p in net.target.parameters())
    assert any(name.startswith("target.encoder") for name in net.state_dict())


def test_without_a_target_it_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"a trained image tower.*--method\.target MODEL"):
        requirements.refuse(Request("images", method="eva"), classes=None, captions=False)


def test_a_backbone_that_looks_at_neighbours_is_refused():
    wishes = Request("images", method="eva", model="vitc-15mf", options={"target": "tower"})
    with pytest.raises(ValueError, match="embed each patch by itself"):
        requirements.refuse(wishes, classes=None, captions=False)


def test_values_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        eva.Config(mask_share=0.0)
    with pytest.raises(ValueError, match="at most mask_share"):
        eva.Config(block_share=0.9)


def test_the_recipe_is_the_codes():
    """EVA-01's README: 105 of 256 patches, blocks of 16 and more."""
    config = eva.paper(224, "eva-g/14").config
    assert round(config.mask_share * 256) == 105
    assert round(config.block_share * 256) == 16
