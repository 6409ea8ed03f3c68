"""Distillation through a token: both losses written out, the teacher's part, what is refused."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from omma import backbones, weights
from omma.core.protocols import Batch, Clock, Context, Extras, Key, Preprocess
from omma.methods import deit
from omma.methods.shared import teaching
from omma.pretraining import requirements
from omma.pretraining.request import Request
from omma.train.loop import Position, train
from omma.train.optimizer import make_optimizer

CLOCK = Clock(1, 10, 0.1)
CLASSES = ("a", "b", "c")
PLAIN = deit.Config(mix_p=0.0, smoothing=0.0, repeats=1, operations=0, erase_p=0.0, teacher="runs/teacher")


def prepared(mean=0.5, size=16):
    ends = {"low": (0.0,) * 3, "high": (255.0,) * 3}
    return Preprocess(size=size, channels=3, mean=(mean,) * 3, std=(0.25,) * 3, **ends)


def teacher(classes=3, named=None, size=16, mean=0.5):
    torch.manual_seed(1)
    encoder = backbones.build(name="vitc-15mf", image_size=size)
    tensors = {
        "classifier.weight": torch.randn(classes, encoder.dim),
        "classifier.bias": torch.randn(classes),
    }
    facts = {} if named is None else {"classes": named}
    return weights.Model(encoder, prepared(mean, size), extras=Extras(tensors, facts))


def context(**values):
    values = {"model": teacher(), "preprocess": prepared(), "classes": CLASSES} | values
    return Context(image_size=16, images=100, **values)


def build(config=PLAIN, given_=None, **options):
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/8", image_size=16, **({"distilled": True} | options))
    return deit.Method(encoder, config, given_ or context())


def batch_of(n):
    g = torch.Generator().manual_seed(0)
    index = np.arange(n)
    labels = torch.from_numpy(index % 3)
    return Batch((torch.randn(n, 1, 3, 16, 16, generator=g),), Key(0, np.zeros(n, int), index), labels)


def parts(method, batch):
    x = batch.views[0][:, 0]
    features = method.encoder(x)
    own, told = method.head(features.pooled), method.distilled(features.prefix[:, 1])
    said = method.teacher_head(method.teacher(x).pooled)
    return own, told, said.detach()


def test_hard_and_soft_loss_written_out():
    batch = batch_of(6)
    method = build().train()
    own, told, said = parts(method, batch)
    hard = (F.cross_entropy(own, batch.labels) + F.cross_entropy(told, said.argmax(1))) / 2
    torch.testing.assert_close(method(batch, CLOCK).loss, hard)

    base = F.cross_entropy(own, batch.labels)
    kl = F.kl_div((told / 3).log_softmax(1), (said / 3).softmax(1), reduction="batchmean")
    method.config = replace(PLAIN, distillation="soft", per_class=False)
    torch.testing.assert_close(method(batch, CLOCK).loss, 0.9 * base + 0.1 * 9 * kl)
    method.config = replace(PLAIN, distillation="soft", weight=0.4, temperature=3.0)
    torch.testing.assert_close(method(batch, CLOCK).loss, 0.6 * base + 0.4 * 9 * kl / 3)


def test_the_two_tokens_differ_and_both_learn():
    method = build()
    features = method.encoder(batch_of(2).views[0][:, 0])
    assert features.prefix.shape == (2, 2, 192)
    torch.testing.assert_close(features.prefix[:, 0], features.pooled)
    assert not torch.allclose(features.prefix[:, 1], features.pooled, atol=1e-2)
    method(batch_of(4), CLOCK).loss.backward()
    for p in (
        method.encoder.cls_token,
        method.encoder.dist_token,
        method.head.weight,
        method.distilled.weight,
    ):
        assert p.grad.any()
    assert not any(p.requires_grad for p in (*method.teacher.parameters(), *method.teacher_head.parameters()))


def test_the_teacher_never_moves():
    method = build()
    before = copy.deepcopy(method.teacher.state_dict())
    batches = [batch_of(6)] * 3
    recipe = replace(deit.small(16, "vit-n/8"), config=PLAIN)
    list(train(method, make_optimizer(method, recipe), batches, recipe, Position(0, 3, 6, 100)))
    assert method.training
    assert not any(module.training for module in method.teacher.modules())
    for name, value in method.teacher.state_dict().items():  # statistics too
        assert torch.equal(value, before[name]), name


def test_the_teacher_sees_what_it_was_taught_to_see():
    """Views in its own normalisation, and at its own size."""
    model = teacher(size=32, mean=0.3)
    method = build(given_=context(model=model))
    x = batch_of(3).views[0][:, 0]
    pixels = x * 0.25 + 0.5
    wanted = F.interpolate((pixels - 0.3) / 0.25, size=(32, 32), mode="bicubic", antialias=True)
    expected = method.teacher_head(model.encoder.eval()(wanted).pooled)
    torch.testing.assert_close(teaching.logits(method, x), expected, atol=1e-4, rtol=1e-4)
    method.config = replace(PLAIN, teacher_size=16)
    expected = method.teacher_head(model.encoder((pixels - 0.3) / 0.25).pooled)
    torch.testing.assert_close(teaching.logits(method, x), expected, atol=1e-4, rtol=1e-4)


def test_both_heads_are_exported():
    extras = build().extras()
    assert extras.facts["classes"] == list(CLASSES)
    assert extras.tensors["distilled.weight"].shape == (3, 192)


def test_classes_of_the_teacher_in_another_order():
    model = teacher(named=["c", "a", "b"])
    method = build(given_=context(model=model))
    rows = model.extras.tensors["classifier.weight"]
    torch.testing.assert_close(method.teacher_head.weight.detach(), rows[[1, 2, 0]])


def test_classes_of_one_name_in_the_same_order():
    """Names may be shared (ImageNet has two cranes); rows are then the teacher's own."""
    model = teacher(named=["a", "a", "b"])
    method = build(given_=context(model=model, classes=("a", "a", "b")))
    rows = model.extras.tensors["classifier.weight"]
    torch.testing.assert_close(method.teacher_head.weight.detach(), rows)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (teacher(classes=5), r"runs/teacher has 5 classes, and these images have 3: train one"),
        (teacher(named=["a", "b", "x"]), "has a class 'x', which these images lack"),
        (teacher(named=["a", "a", "b"]), "classes of the teacher runs/teacher share a name.*train one"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(model, said):
    with pytest.raises(ValueError, match=said):
        build(given_=context(model=model))


def test_a_teacher_that_cannot_look_is_refused():
    one = replace(prepared(), channels=1, low=(0.0,), high=(255.0,), mean=(0.5,), std=(0.25,))
    with pytest.raises(ValueError, match="runs/teacher was made for 3 channels, these images have 1"):
        build(given_=context(preprocess=one))
    model = teacher()
    model.extras.tensors["classifier.weight"] = torch.zeros(3, 7)
    with pytest.raises(ValueError, match="reads 7 numbers, its encoder gives 192"):
        build(given_=context(model=model))


@pytest.mark.parametrize("options", [{"distilled": False}, {"pool": "mean"}])
def test_a_backbone_without_the_tokens_is_refused(options):
    with pytest.raises(ValueError, match=r"distillation token.*--model deit-s/16"):
        build(**options)


def test_other_backbones_are_refused_before_anything_is_decoded():
    wishes = Request("images", method="deit", model="vitc-15mf", options={"teacher": "run"})
    with pytest.raises(ValueError, match=r"carry a distillation token, and vitc-15mf cannot"):
        requirements.refuse(wishes, classes=("a", "b"), captions=False)
    with pytest.raises(ValueError, match=r"learns from a teacher that classifies.*--method.teacher MODEL"):
        requirements.refuse(Request("images", method="deit"), classes=("a", "b"), captions=False)


@pytest.mark.parametrize(
    "values", [{"distillation": "warm"}, {"weight": 2.0}, {"temperature": 0.0}, {"teacher_size": 0}]
)
def test_what_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match=f"method.{next(iter(values))}="):
        deit.Config(**values)


def test_inference_of_timms_distilled_model_is_the_logits_mean():
    """The published form averages logits; ours, the probabilities, agrees where the heads do."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, img_size=32).eval()
    ours = backbones.build(name="deit-ti/16", image_size=32).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith(("head.", "head_dist."))}
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = ours(x)
    logits = (theirs.head(features.pooled) + theirs.head_dist(features.prefix[:, 1])) / 2
    with torch.no_grad():
        torch.testing.assert_close(logits, theirs(x), atol=1e-4, rtol=1e-4)
