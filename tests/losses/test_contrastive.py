"""NT-Xent, CLIP, SigLIP: closed forms, the equation written out, and numbers of lightly's."""

import math

import pytest
import torch
import torch.nn.functional as F
from waves import wave

from omma.losses import contrastive


def close(a, b):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("b", [1, 2, 7])
def test_identical_images_give_log_of_the_others(b):
    x = torch.ones(b, 4)
    close(contrastive.ntxent((x, x), 0.5), math.log(2 * b - 1))


def written_out(a, b, temperature):
    """[Chen 2020, eq. 1] for each of the 2b anchors, in fp64."""
    z = F.normalize(torch.cat([a, b]).double(), dim=1)
    n = len(a)
    total = 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = torch.stack([(z[i] @ z[k] / temperature).exp() for k in range(2 * n) if k != i])
        total = total - torch.log((z[i] @ z[partner] / temperature).exp() / others.sum())
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_equals_the_equation(temperature):
    a, b = wave(5, 6).requires_grad_(), wave(5, 6, phase=1.0)
    twin = a.detach().clone().requires_grad_()
    loss, reference = contrastive.ntxent((a, b), temperature), written_out(twin, b, temperature)
    close(loss, reference)
    loss.backward()
    reference.backward()
    close(a.grad, twin.grad)


@pytest.mark.parametrize(
    ("b", "d", "temperature", "loss", "first", "norm"),
    [
        (4, 6, 0.5, 0.50970659,
         [-0.105995044, 0.021518722, 0.00179526, -0.037626013, -0.025651197, -0.073865069], 0.191099473),
        (3, 5, 0.1, 0.067167876,
         [-0.074443573, 0.044582438, -0.096758068, 0.066713037, 0.048506032], 0.173945298),
    ],
)  # fmt: skip
def test_lightlys_numbers(b, d, temperature, loss, first, norm):
    """lightly 1.6, NTXentLoss, in fp64."""
    one = wave(b, d, phase=0.1).float().double().requires_grad_()
    two = wave(b, d, phase=0.4) + 0.3 * wave(b, d, phase=2.0, step=1.7)
    ours = contrastive.ntxent((one, two), temperature)
    ours.backward()
    close(ours, loss)
    close(one.grad[0], first)
    close(one.grad.norm(), norm)


def test_three_views_are_contrasted_in_pairs():
    """Each view against one of its image's others and all views of other images, written out."""
    views = [wave(4, 6, phase=phase).requires_grad_() for phase in (0.0, 1.0, 2.0)]
    twins = [x.detach().clone().requires_grad_() for x in views]
    z, total = F.normalize(torch.stack(twins), dim=2), torch.zeros(())
    for v, w in ((v, w) for v in range(3) for w in range(3) if v != w):
        for i in range(4):
            own = (z[v, i] @ z[w, i] / 0.2).exp()
            others = sum((z[v, i] @ z[u, j] / 0.2).exp() for u in range(3) for j in range(4) if j != i)
            total = total - (own / (own + others)).log() / (6 * 4)
    loss = contrastive.ntxent(views, 0.2)
    close(loss, total)
    loss.backward()
    total.backward()
    for x, twin in zip(views, twins, strict=True):
        close(x.grad, twin.grad)
    parts = [[x[rows] for x in views] for rows in (slice(0, 1), slice(1, 4))]
    split = [contrastive.ntxent(part, 0.2, views, offset=at) for part, at in zip(parts, (0, 1), strict=True)]
    close((split[0] + 3 * split[1]) / 4, total)


def test_a_part_of_a_larger_batch_sees_all_negatives():
    a, b = wave(6, 4), wave(6, 4, phase=1.0)
    parts = [
        contrastive.ntxent((a[rows], b[rows]), 0.2, everyone=(a, b), offset=rows.start)
        for rows in (slice(0, 2), slice(2, 6))
    ]
    close((2 * parts[0] + 4 * parts[1]) / 6, contrastive.ntxent((a, b), 0.2))


def test_excluded_images_are_no_negatives():
    """Each anchor against its partner and the views of images that are not excluded, written out."""
    a, b = wave(4, 6), wave(4, 6, phase=1.0)
    group = torch.tensor([0, 1, 0, 2])
    excluded = group[:, None] == group
    z, total = F.normalize(torch.cat([a, b]), dim=1), 0.0
    for i in range(8):
        own = (z[i] @ z[(i + 4) % 8] / 0.2).exp()
        others = sum((z[i] @ z[k] / 0.2).exp() for k in range(8) if group[k % 4] != group[i % 4])
        total -= torch.log(own / (own + others)) / 8
    close(contrastive.ntxent((a, b), 0.2, excluded=excluded), total)
    close(
        contrastive.ntxent((a, b), 0.2, excluded=torch.zeros(4, 4, dtype=torch.bool)),
        contrastive.ntxent((a, b), 0.2),
    )
    parts = [
        contrastive.ntxent((a[r], b[r]), 0.2, everyone=(a, b), offset=r.start, excluded=excluded[r])
        for r in (slice(0, 2), slice(2, 4))
    ]
    close(sum(parts) / 2, total)


def test_without_negatives_there_is_nothing_to_learn():
    a = wave(3, 4).requires_grad_()
    loss = contrastive.ntxent((a, wave(3, 4, phase=1.0)), 0.2, excluded=torch.ones(3, 3, dtype=torch.bool))
    loss.backward()
    close(loss, 0.0)
    close(a.grad, torch.zeros(3, 4))


def test_alignment_and_uniformity():
    x = torch.eye(4)
    close(contrastive.alignment(x, x), 0.0)
    close(contrastive.alignment(x, -x), 4.0)
    close(contrastive.alignment(x, 7 * x.roll(1, 0)), 2.0)  # right angles, whatever the lengths
    close(contrastive.uniformity(x), -4.0)  # all pairs at squared distance 2
    close(contrastive.uniformity(torch.ones(4, 4)), 0.0)
    close(contrastive.uniformity(x[:1]), 0.0)
    points = F.normalize(wave(6, 3), dim=-1)
    pairs = [(points[i] - points[j]).square().sum() for i in range(6) for j in range(i)]
    close(contrastive.uniformity(5 * points), torch.stack(pairs).mul(-2).exp().mean().log())


# ---------------------------------------------------------------- images and texts
@pytest.mark.parametrize(("b", "scale"), [(1, 3.0), (2, 1.0), (5, 14.0), (8, 100.0)])
def test_clip_on_orthonormal_pairs(b, scale):
    x = torch.eye(8)[:b]
    close(contrastive.clip(x, 3 * x, scale), math.log1p((b - 1) * math.exp(-scale)))


def test_clip_that_cannot_tell_is_log_b():
    x = torch.ones(6, 3)
    close(contrastive.clip(x, x, 20.0), math.log(6))


def test_clip_is_the_same_both_ways():
    a, b = wave(5, 6), wave(5, 6, phase=1.0)
    close(contrastive.clip(a, b, 7.0), contrastive.clip(b, a, 7.0))


@pytest.mark.parametrize(
    ("kind", "loss", "first", "norm"),
    [
        ("clip", 0.230353723,
         [-0.129614431, -0.133570333, 0.187009385, -0.068048603, 0.178949721, -0.151704395], 0.467164412),
        ("siglip", 1.015088322,
         [-0.210445918, -0.19434741, 0.214646946, -0.141802686, 0.256566456, -0.276749886], 1.013781786),
    ],
)  # fmt: skip
def test_transformers_numbers(kind, loss, first, norm):
    """transformers 5.23: image_text_contrastive_loss of its CLIP and the loss of SiglipModel, in fp64."""
    one = wave(4, 6, phase=0.1).float().double().requires_grad_()
    two = wave(4, 6, phase=1.0).requires_grad_()
    found = contrastive.clip(one, two, 5.0) if kind == "clip" else contrastive.siglip(one, two, 5.0, -2.0)
    found.backward()
    close(found, loss)
    close(one.grad[0], first)
    close(two.grad.norm(), norm)


def test_siglip_closed_forms():
    x = wave(4, 6)
    close(contrastive.siglip(x, -x, 0.0, 0.0), 4 * math.log(2))  # all logits are 0
    pairs = torch.eye(5)
    apart = contrastive.siglip(pairs, pairs, 7.0, -2.0)
    close(apart, math.log1p(math.exp(-5.0)) + 4 * math.log1p(math.exp(-2.0)))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_parts_of_a_batch_of_pairs_see_all_others(kind):
    a, b = wave(6, 4), wave(6, 4, phase=1.0)

    def loss(rows):
        if kind == "clip":
            return contrastive.clip(a[rows], b[rows], 5.0, (a, b), rows.start)
        return contrastive.siglip(a[rows], b[rows], 5.0, -1.0, b, rows.start)

    parts = [loss(rows) for rows in (slice(0, 2), slice(2, 6))]
    whole = contrastive.clip(a, b, 5.0) if kind == "clip" else contrastive.siglip(a, b, 5.0, -1.0)
    close((2 * parts[0] + 4 * parts[1]) / 6, whole)


def test_the_scale_learns():
    scale = torch.tensor(2.0, requires_grad=True)
    contrastive.clip(torch.eye(4), torch.eye(4), scale.exp()).backward()
    s = math.exp(2.0)  # d/dt log(1 + 3 exp(-e^t))
    close(scale.grad, -3 * s * math.exp(-s) / (1 + 3 * math.exp(-s)))
