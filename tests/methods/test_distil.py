"""Distil: what the student is compared with, at which size and on which grid; what is kept of the teacher."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from waves import wave

import omma
from omma import backbones, weights
from omma.core.protocols import Batch, Clock, Context, Key, Preprocess
from omma.data.batches.order import keys
from omma.data.sources.collection import ArrayImages
from omma.methods import distil
from omma.verbs.pretrain import pretrain


def preprocess(size, mean, std, channels=3):
    return Preprocess(
        size=size, channels=channels, low=(0.0,) * channels, high=(255.0,) * channels,
        mean=(mean,) * channels, std=(std,) * channels,
    )  # fmt: skip


def teacher(channels=3):
    """Reads 64 px with a normalisation of its own; grid 4 x 4."""
    torch.manual_seed(1)
    encoder = backbones.build(
        name="vit/16", image_size=64, channels=channels, depth=1, dim=12, heads=2, hidden=24
    )
    return weights.Model(encoder, preprocess(64, 0.4, 0.2, channels))


def method(model=None, student="vit", images=20, **options):
    torch.manual_seed(0)
    if student == "vit":
        encoder = backbones.build(
            name="vit/4", image_size=32, depth=1, dim=16, heads=2, hidden=32, pool="mean"
        )
    else:
        encoder = backbones.build(name=student, image_size=32)
    context = Context(
        image_size=32, images=images, preprocess=preprocess(32, 0.5, 0.25), model=model or teacher()
    )
    return distil.Method(encoder, distil.Config(**options), context)


def batch(b=6, epoch=0, first=0):
    index = np.arange(first, first + b)
    return Batch((wave(b, 1, 3, 32, 32, step=0.31 + 0.01 * epoch).float(),), Key(0, np.full(b, epoch), index))


def expected(model, images):
    """The teacher's features of a student's views: denormalised, resized, normalised its own way."""
    raw = images * 0.25 + 0.5
    seen = F.interpolate((raw - 0.4) / 0.2, size=(64, 64), mode="bicubic", antialias=True)
    with torch.no_grad():
        return model.encoder(seen)


def silent(net):
    """The student says the same of every image, so that the loss tells the targets."""
    for head in (net.pooled_head, net.patch_head):
        if head is not None:
            head.weight.data.zero_()
            head.bias.data.normal_()
    return net


@pytest.mark.parametrize("period", [0, 3])
@pytest.mark.parametrize("smooth", [0.0, 0.25, 1.0])
def test_the_loss_is_the_papers(period, smooth):
    """(1 - b)(1 - cos) + b smooth-L1 of the image and, averaged over patches, of the coarser grid's cells."""
    model, context = teacher(), batch()
    net = silent(method(model, pooled=2.0, patches=0.5, smooth=smooth, pooled_smooth=0.1, period=period))
    assert net.grid == (4, 4)  # of 8 x 8 and 4 x 4
    f = expected(model, context.views[0][:, 0])

    def distance(bias, target, share):
        said = bias.expand_as(target)
        cosine = F.cosine_similarity(said, target, dim=-1).mean()
        return (1 - share) * (1 - cosine) + share * F.smooth_l1_loss(said, target)

    loss = 2 * distance(net.pooled_head.bias, f.pooled, 0.1)
    loss += 0.5 * distance(net.patch_head.bias, f.patches, smooth)
    tolerance = 2e-3 if period else 1e-5  # kept in fp16
    torch.testing.assert_close(net(context, Clock(0, 9, 0.0)).loss, loss, rtol=tolerance, atol=tolerance)


def test_grids_are_averaged_over_the_coarser_cells():
    features = distil.Features(torch.zeros(1, 1), torch.arange(36.0).reshape(1, 36, 1), (6, 6))
    assert distil.on_grid(features, (3, 3))[0, :, 0].tolist() == pytest.approx(
        [3.5, 5.5, 7.5, 15.5, 17.5, 19.5, 27.5, 29.5, 31.5]
    )
    assert distil.on_grid(features, (6, 6)) is features.patches


@pytest.mark.parametrize("student", ["vitc-15mf", "timm:test_resnet"])
def test_students_of_other_kinds(student):
    if student.startswith("timm:"):
        pytest.importorskip("timm")
    net = method(student=student)
    net(batch(), Clock(0, 9, 0.0)).loss.backward()
    assert all(p.grad is not None for p in net.encoder.parameters())
    assert all(p.grad is None for p in net.teacher.parameters())


def test_standardised_targets_have_no_common_direction():
    net = method(standardise=True)
    context = batch()
    first = net(context, Clock(0, 9, 0.0))
    net.after_step(Clock(0, 9, 0.0), [first.carry])
    targets = net._standardised(0, net._targets(context.views[0][:, 0], context.key).pooled)
    torch.testing.assert_close(targets.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(targets.square().mean(0), torch.ones(12), atol=1e-2, rtol=0)
    second = net(context, Clock(1, 9, 0.1))
    assert second.metrics["cosine_of_constant"] < 0.25 < first.metrics["cosine_of_constant"]


def test_the_teacher_sees_each_view_once():
    """And what was computed in other batches is the same, bit for bit."""
    net, calls = method(period=2), []
    whole = net.teacher.forward
    net.teacher.forward = lambda images: calls.append(len(images)) or whole(images)
    for epoch in range(6):
        for first in (0, 6):
            net(batch(6, epoch % 2, first), Clock(0, 9, 0.0))
    assert calls == [distil.CHUNK] * 4  # two epochs of two batches
    other = method(period=2)
    big = batch(12, 0)  # images 6 to 11 of `big` are others than those of a batch that begins at 6
    one = other._targets(big.views[0][:6, 0], Key(0, np.zeros(6, int), np.arange(6)))
    for a, b in zip(
        one, net._targets(big.views[0][:6, 0], Key(0, np.zeros(6, int), np.arange(6))), strict=True
    ):
        assert torch.equal(a, b)
    assert not any("kept" in name for name in net.state_dict())


def test_large_features_go_into_a_file(monkeypatch):
    monkeypatch.setattr(distil, "IN_MEMORY", 100)
    net, plain = method(period=1), method(period=0)
    loss = net(batch(), Clock(0, 9, 0.0)).loss
    again = net(batch(), Clock(0, 9, 0.0)).loss
    assert torch.equal(loss, again)
    torch.testing.assert_close(loss, plain(batch(), Clock(0, 9, 0.0)).loss, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"has no room: lower --method.period"):
        distil.Kept(1000, 10**10, 50, 1000)


def test_views_repeat_after_the_period_and_the_order_does_not():
    streams = {period: list(zip(range(12), keys(10, 5, 7, period=period), strict=False)) for period in (0, 3)}
    for (_, free), (_, repeated) in zip(*streams.values(), strict=True):
        assert np.array_equal(free.index, repeated.index)
        assert np.array_equal(free.epoch % 3, repeated.epoch)
    assert distil.needs(distil.Config(period=3)).period == 3
    assert not distil.needs(distil.Config()).numbered  # usable in one's own loop


def test_what_is_refused():
    with pytest.raises(ValueError, match="both 0"):
        distil.Config(pooled=0, patches=0)
    with pytest.raises(ValueError, match="must lie in"):
        distil.Config(smooth=2)
    with pytest.raises(ValueError, match="made for 1 channels, these images have 3"):
        method(teacher(channels=1))


def test_a_run_goes_on_where_it_was_stopped_bit_for_bit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    images = ArrayImages(pixels, None, ())
    model = teacher()
    weights.save(tmp_path / "teacher", model.encoder, preprocess(64, 0.4, 0.2))
    small = {"model": "vit-n/4", "batch_size": 8, "image_size": 16, "device": "cpu", "precision": "fp32"}
    options = {"teacher": str(tmp_path / "teacher"), "period": "2"}
    pretrain(images, method="distil", out=tmp_path / "straight", steps=9, options=options, **small)

    def stop(event):
        if getattr(event, "step", 0) == 7 and hasattr(event, "loss"):
            raise KeyboardInterrupt

    halves = {"method": "distil", "out": tmp_path / "halves", "steps": 9, "options": options, **small}
    with pytest.raises(KeyboardInterrupt):
        pretrain(images, checkpoint_every=1e-9, listen=stop, **halves)
    pretrain(images, **halves)
    one, other = (omma.load(tmp_path / name).encoder.state_dict() for name in ("straight", "halves"))
    assert all(torch.equal(x, other[name]) for name, x in one.items())
