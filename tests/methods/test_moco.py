"""MoCo: whose keys, whose statistics, the average's pace, and the order of the queue."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from omma.backbones.vit import ViT
from omma.core.protocols import Batch, Clock, Context, Key
from omma.losses import contrastive
from omma.methods import moco
from omma.train.schedules import cosine


def method(**options):
    torch.manual_seed(0)
    encoder = ViT("toy", depth=1, dim=8, heads=2, hidden=16, patch=4, image_size=8)
    config = moco.Config(**({"hidden": 12, "out": 4} | options))
    return moco.Method(encoder, config, Context(image_size=8)).train()


def batch(n=6):
    generator = torch.Generator().manual_seed(1)
    views = tuple(torch.randn(n, 1, 3, 8, 8, generator=generator) for _ in range(2))
    return Batch(views, Key(0, np.zeros(n), np.arange(n)))


def rows(*numbers):
    """Keys that can be told apart: their number along one axis and 1 along another."""
    return torch.stack([torch.tensor([float(n), 1.0, 0.0, 0.0]) for n in numbers])


def test_loss_is_the_papers_view_by_view():
    """2 t (ctr(q1, k2) + ctr(q2, k1)), each view with batch norms of its own [Chen 2021, algorithm 1]."""
    net, data = method(), batch()
    twin = copy.deepcopy(net)
    one, two = (view[:, 0] for view in data.views)
    q1, q2 = (twin.predictor(twin.head(twin.encoder(x).pooled)) for x in (one, two))
    k1, k2 = (twin.key_head(twin.key_encoder(x).pooled).detach() for x in (one, two))
    t = net.config.temperature
    expected = 2 * t * (contrastive.infonce(q1, k2, t) + contrastive.infonce(q2, k1, t))
    output = net(data, Clock(0, 10, 0.0))
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    expected.backward()
    for (name, p), (_, q) in zip(net.named_parameters(), twin.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in [*net.key_encoder.parameters(), *net.key_head.parameters()])
    for ours, theirs in zip(net.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_views_outputs_do_not_know_the_other_view():
    net, data = method(), batch()
    other = Batch((data.views[0], 5 + 3 * data.views[1]), data.key)
    seen = []
    hook = net.predictor.register_forward_hook(lambda module, given, out: seen.append(out.detach()))
    net(data, Clock(0, 10, 0.0))
    net(other, Clock(0, 10, 0.0))
    hook.remove()
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[1], seen[3])


@pytest.mark.parametrize("freeze", [True, False])
def test_patch_embedding_is_frozen_where_asked(freeze):
    net = method(freeze_patch_embed=freeze)
    grouped = {id(p) for group in net.groups() for p in group.params}
    for p in net.encoder.patch_embed.parameters():
        assert p.requires_grad != freeze
        assert (id(p) in grouped) != freeze


def test_average_follows_by_a_cosine_to_its_end():
    net = method(momentum=0.9, momentum_end=0.95)
    for p in [*net.encoder.parameters(), *net.head.parameters()]:
        p.data += 1
    for step in (0, 3, 10):
        slow = [*net.key_encoder.parameters(), *net.key_head.parameters()]
        fast = [*net.encoder.parameters(), *net.head.parameters()]
        expected = [k + (1 - cosine(0.9, 0.95, step / 10)) * (q - k) for k, q in zip(slow, fast, strict=True)]
        net.after_step(Clock(step, 10, 0.0), [None])
        for found, wanted in zip(slow, expected, strict=True):
            torch.testing.assert_close(found, wanted)
    assert cosine(0.9, 0.95, 1.0) == 0.95


# ---------------------------------------------------------------- the queue
def test_newest_keys_take_the_oldest_ones_place():
    net = method(queue=5)
    held = [tuple(row) for row in net.queue.tolist()]  # oldest first
    assert torch.allclose(net.queue.norm(dim=1), torch.ones(5))
    given = 0
    for carries in ([2], [1, 2], [3], [5], [1], [4, 4]):  # micro-batches of these sizes
        keys = [
            rows(*range(given + sum(carries[:i]), given + sum(carries[: i + 1]))) for i in range(len(carries))
        ]
        given += sum(carries)
        net.after_step(Clock(1, 10, 0.0), keys)
        held = [*held, *(tuple(row) for part in keys for row in part.tolist())][-5:]
        at = int(net.queue_at)
        assert [tuple(row) for row in net.queue.roll(-at, 0).tolist()] == held
    assert {"queue", "queue_at"} <= set(net.state_dict())


def test_more_keys_than_the_queue_holds():
    net = method(queue=3)
    net.after_step(Clock(1, 10, 0.0), [rows(*range(8))])
    assert sorted(net.queue[:, 0].tolist()) == [5.0, 6.0, 7.0]
    net.after_step(Clock(1, 10, 0.0), [rows(8)])
    assert sorted(net.queue[:, 0].tolist()) == [6.0, 7.0, 8.0]


def test_with_a_queue_the_second_view_is_the_key():
    net, data = method(queue=7, predictor=False), batch()
    before = net.queue.clone()
    output = net(data, Clock(0, 10, 0.0))
    twin = copy.deepcopy(net)
    q = twin.head(twin.encoder(data.views[0][:, 0]).pooled)
    k = F.normalize(twin.key_head(twin.key_encoder(data.views[1][:, 0]).pooled), dim=1)
    torch.testing.assert_close(output.loss, contrastive.infonce_queue(q, k, before, net.config.temperature))
    torch.testing.assert_close(output.carry, k)
    assert torch.equal(net.queue, before)  # forward changes nothing; the step does
    net.after_step(Clock(1, 10, 0.0), [output.carry])
    assert torch.equal(net.queue[:6], output.carry)


def test_other_images_are_needed():
    """With a queue too: of a single image the heads' batch norms make zeros."""
    assert moco.needs(moco.Config()).batch == 2
    assert moco.needs(moco.Config(queue=8)).batch == 2
    with pytest.raises(ValueError, match="queue=-1"):
        moco.Config(queue=-1)
