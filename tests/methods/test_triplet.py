"""Triplets of two views: the loss written out, unlabelled images, and collapse."""

import numpy as np
import pytest
import torch

from omma import backbones
from omma.core.protocols import Batch, Clock, Context, Key
from omma.losses import triplet as loss
from omma.methods import triplet

CLOCK = Clock(1, 10, 0.1)


def build(classes=("a", "b", "c"), **options):
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/8", image_size=16, pool="mean", depth=1)
    return triplet.Method(encoder, triplet.Config(**options), Context(image_size=16, classes=classes))


def batch_of(labels):
    n = len(labels)
    g = torch.Generator().manual_seed(0)
    key = Key(0, np.zeros(n, np.int64), np.arange(n))
    return Batch((torch.randn(n, 2, 3, 16, 16, generator=g),), key, torch.tensor(labels))


def test_the_loss_is_the_mean_over_pairs_of_a_class():
    method, batch = build(), batch_of([0, 1, 0, 2, 1])
    z = method.head(method.encoder(batch.views[0].transpose(0, 1).flatten(0, 1)).pooled)
    labels = batch.labels.repeat(2)
    found = loss.semi_hard(z, labels, z, labels, 0.2)
    assert found.pairs.sum() == 2 * 4 * 3 + 2 * 1
    output = method(batch, CLOCK)
    torch.testing.assert_close(output.loss, found.loss.sum() / found.pairs.sum())
    active = (found.loss > 0).sum() / found.pairs.sum()
    torch.testing.assert_close(output.metrics["active"], active)


def test_a_collapsed_encoder_stands_at_the_margin():
    method = build(margin=0.3)
    torch.nn.init.zeros_(method.head.weight)
    output = method(batch_of([0, 1, 2, 0]), CLOCK)
    torch.testing.assert_close(output.loss, torch.tensor(0.3))
    (verdict,) = (s for s in method.health_signals() if s.kind == "verdict")
    assert output.metrics[verdict.metric] > verdict.limit


def test_images_without_a_label_take_no_part():
    method, some = build().eval(), batch_of([0, 1, -1, -1])
    alone = Batch((some.views[0][:2],), Key(0, some.key.epoch[:2], some.key.index[:2]), some.labels[:2])
    torch.testing.assert_close(method(some, CLOCK).loss, method(alone, CLOCK).loss)
    assert method(some._replace(labels=torch.full((4,), -1)), CLOCK).loss == 0


def test_every_image_has_a_positive():
    (crop,) = triplet.views(triplet.Config(), 32)
    assert crop.count == 2
    output = build()(batch_of([0, 1, 2]), CLOCK)
    assert output.metrics["positive_distance"] > 0


@pytest.mark.parametrize("values", [{"margin": 0.0}, {"margin": 4.0}, {"operations": -1}, {"out": 0}])
def test_what_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match=f"method.{next(iter(values))}="):
        triplet.Config(**values)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="of one class"):
        build(classes=("a",))
