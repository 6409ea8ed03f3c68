"""Whole forward passes written out from the papers' equations, loop by loop: which view meets what."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from balanced import sinkhorn

from omma.backbones.vit import ViT
from omma.core.protocols import Batch, Clock, Context, Key
from omma.core.random import derive
from omma.losses.koleo import koleo
from omma.methods import dino, dinov2, lejepa, simclr
from omma.methods.shared.masking import view_masks

IMAGES = 3
HEAD = {"prototypes": 7, "head_hidden": 8, "head_bottleneck": 4}
CLOCK = Clock(0, 10, 0.0)


def made(file, config):
    """The method with parameters that are all random, and a twin to compare gradients with."""
    torch.manual_seed(0)
    encoder = ViT("toy", depth=1, dim=8, heads=2, hidden=16, patch=4, image_size=16)
    for p in encoder.parameters():
        p.data += 0.3 * torch.randn_like(p)
    net = file.Method(encoder, config, Context(image_size=16))
    return net, copy.deepcopy(net)


def batch(*shapes):
    """shapes: views and pixels of each kind of crop."""
    generator = torch.Generator().manual_seed(1)
    views = tuple(torch.randn(IMAGES, v, 3, s, s, generator=generator) for v, s in shapes)
    return Batch(views, Key(5, np.zeros(IMAGES), np.arange(IMAGES)))


def agree(output, expected, net, twin):
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=5e-6)
    output.loss.backward()
    expected.backward()
    for (name, p), (_, q) in zip(net.named_parameters(), twin.named_parameters(), strict=True):
        if q.grad is None:
            assert p.grad is None, name
        else:
            torch.testing.assert_close(
                p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}"
            )


def crops_of(data):
    """All views, one tensor each: globals first, then locals."""
    return [view[:, number] for view in data.views for number in range(view.shape[1])]


def cross_entropy(teacher, logits, temperature=0.1):
    return -(teacher * (logits / temperature).log_softmax(-1)).sum(-1)


def test_simclr():
    """Each view against all views but itself [Chen 2020, eq. 1]."""
    net, twin = made(simclr, simclr.Config(hidden=8, out=4, temperature=0.3))
    data = batch((2, 16))
    one, two = crops_of(data)
    z = F.normalize(twin.head(twin.encoder(torch.cat([one, two])).pooled), dim=1)
    terms = []
    for i in range(2 * IMAGES):
        j = (i + IMAGES) % (2 * IMAGES)
        others = [z[i] @ z[k] / 0.3 for k in range(2 * IMAGES) if k != i]
        terms.append(-(z[i] @ z[j] / 0.3) + torch.stack(others).logsumexp(0))
    agree(net(data, CLOCK), torch.stack(terms).mean(), net, twin)


@pytest.mark.parametrize("centring", ["mean", "sinkhorn", "off"])
def test_dino(centring):
    """Every student's view against the teacher's views that are others [Caron 2021, eq. 3]."""
    net, twin = made(dino, dino.Config(**HEAD, centring=centring))
    net.centre += torch.linspace(-0.1, 0.1, 7)
    data = batch((1, 16), (1, 16), (2, 8))
    crops = crops_of(data)
    with torch.no_grad():
        logits = [twin.teacher_head(twin.teacher(x).pooled) for x in crops[:2]]
        if centring == "sinkhorn":
            teacher = sinkhorn(torch.cat(logits), 0.04).chunk(2)
        else:
            teacher = [((x - net.centre) / 0.04).softmax(-1) for x in logits]
    student = [twin.head(twin.encoder(x).pooled) for x in crops]
    terms = [
        cross_entropy(t, s).mean() for i, t in enumerate(teacher) for j, s in enumerate(student) if i != j
    ]
    assert len(terms) == 6
    agree(net(data, CLOCK), torch.stack(terms).mean(), net, twin)


@pytest.mark.parametrize("untied", [True, False])
def test_dinov2(untied):
    """DINO's and iBOT's terms, balanced over the batch, and KoLeo of each global view [Oquab 2023]."""
    config = dinov2.Config(**HEAD, untied=untied, mask_probability=0.8, patch_weight=0.6, koleo=0.2)
    net, twin = made(dinov2, config)
    data = batch((1, 16), (1, 16), (2, 8))
    crops = crops_of(data)
    mask = view_masks(data.key, 2, (4, 4), 0.8, (0.1, 0.5), 1).chunk(2)
    assert all(0 < m.sum() < m.numel() for m in mask)
    heads = (twin.patch_head, twin.teacher_patch_head) if untied else (twin.head, twin.teacher_head)
    with torch.no_grad():
        whole = [twin.teacher(x) for x in crops[:2]]
        teacher = sinkhorn(torch.cat([twin.teacher_head(f.pooled) for f in whole]), 0.04).chunk(2)
        told = sinkhorn(torch.cat([heads[1](f.patches)[m] for f, m in zip(whole, mask, strict=True)]), 0.04)
    seen = []
    for x, m in zip(crops[:2], mask, strict=True):
        tokens = torch.where(m[:, :, None], twin.mask_token, twin.encoder.tokenize(x))
        seen.append(twin.encoder.encode(tokens, (4, 4)))
    pooled = [f.pooled for f in seen] + [twin.encoder(x).pooled for x in crops[2:]]
    terms = [
        cross_entropy(t, twin.head(s)).mean()
        for i, t in enumerate(teacher)
        for j, s in enumerate(pooled)
        if i != j
    ]
    patches, row = [], 0  # image by image of each view, the mean over what is hidden of it
    for f, m in zip(seen, mask, strict=True):
        for image in range(IMAGES):
            n = int(m[image].sum())
            each = cross_entropy(told[row : row + n], heads[0](f.patches[image, m[image]]))
            patches.append(each.mean() if n else each.sum())
            row += n
    assert row == len(told)
    spread = koleo(pooled[0]) + koleo(pooled[1])
    expected = torch.stack(terms).mean() + 0.6 * torch.stack(patches).mean() + 0.2 * spread
    agree(net(data, CLOCK), expected, net, twin)


def test_lejepa():
    """All views near the mean of the global ones; the same random directions for all [Balestriero 2025]."""
    config = lejepa.Config(hidden=8, out=4, directions=16, weight=0.3, global_crops=2, local_crops=3)
    net, twin = made(lejepa, config)
    data = batch((2, 16), (3, 8))
    kinds = [view.transpose(0, 1).flatten(0, 1) for view in data.views]
    z = twin.head(torch.cat([twin.encoder(x).pooled for x in kinds])).unflatten(0, (5, IMAGES))
    spread = torch.stack([(view - (z[0] + z[1]) / 2).square().mean() for view in z]).mean()
    draw = torch.Generator().manual_seed(derive(5, 0))
    directions = F.normalize(torch.randn(4, 16, generator=draw), dim=0)
    test = torch.stack([lejepa.sigreg(view[None], directions) for view in z]).mean()
    agree(net(data, CLOCK), 0.7 * spread + 0.3 * test, net, twin)
