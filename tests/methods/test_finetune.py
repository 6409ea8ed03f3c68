"""The classifier of `omma finetune`: its losses written out, its rates, its average, and its best weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from omma import backbones, methods, weights
from omma.core.protocols import Batch, Clock, Context, Extras, Key, Preprocess
from omma.methods import finetune
from omma.weights.classifier import Classifier

CLOCK = Clock(1, 10, 0.1)
CLASSES = ("a", "b", "c")
PLAIN = finetune.Config(mix_p=0.0, smoothing=0.0, operations=0, erase_p=0.0, layer_decay=1.0)
PREPARED = Preprocess(
    size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)


def build(config=PLAIN, name="vit-n/8", encoder_options=None, **facts):
    torch.manual_seed(0)
    encoder = backbones.build(name=name, image_size=16, **(encoder_options or {}))
    context = Context(image_size=16, images=100, classes=CLASSES, preprocess=PREPARED, **facts)
    return finetune.Method(encoder, config, context)


def batch_of(n, sets=None):
    g = torch.Generator().manual_seed(0)
    index = np.arange(n)
    labels = torch.from_numpy(index % 3) if sets is None else None
    images = torch.randn(n, 1, 3, 16, 16, generator=g)
    return Batch((images,), Key(0, np.zeros(n, int), index), labels, None, sets)


def logits_of(method, batch):
    return method.head(method.encoder(batch.views[0][:, 0]).pooled)


def wider(method):
    """Logits that differ from image to image: at first all are near 0."""
    torch.nn.init.normal_(method.head.weight)
    return method.train()


def test_one_label_an_image():
    batch, method = batch_of(6), wider(build())
    expected = F.cross_entropy(logits_of(method, batch), batch.labels)
    torch.testing.assert_close(method(batch, CLOCK).loss, expected)
    weighed = (3.0, 1.0, 0.5)
    method = wider(build(replace(PLAIN, balance="loss"), class_weights=weighed))
    rows = F.cross_entropy(logits_of(method, batch), batch.labels, reduction="none")
    expected = (rows * torch.tensor(weighed)[batch.labels]).mean()
    torch.testing.assert_close(method(batch, CLOCK).loss, expected)


def test_several_labels_an_image_of_which_some_are_not_known():
    sets = torch.tensor([[1.0, 0, 1], [0, 0, 0], [-1, -1, -1], [1, -1, 0]])
    batch, method = batch_of(4, sets), wider(build(several=True))
    known = sets >= 0
    z = logits_of(method, batch)
    torch.testing.assert_close(
        method(batch, CLOCK).loss, F.binary_cross_entropy_with_logits(z[known], sets[known])
    )
    method = wider(build(replace(PLAIN, balance="loss"), several=True, class_weights=(2.0, 5.0, 1.0)))
    z = logits_of(method, batch)
    rows = F.binary_cross_entropy_with_logits(
        z, sets, pos_weight=torch.tensor([2.0, 5.0, 1.0]), reduction="none"
    )
    torch.testing.assert_close(method(batch, CLOCK).loss, rows[known].mean())


def test_what_is_not_known_of_one_is_not_known_of_a_mixed_pair():
    sets = torch.tensor([[1.0, 0, -1], [0, 1, 1]])
    batch = batch_of(2, sets)
    examples = finetune.labelled_views.examples(batch, 3, replace(PLAIN, mix_p=1.0, cutmix=0.0))
    assert examples.weights.tolist() == [[1, 1, 0], [1, 1, 0]]
    torch.testing.assert_close(examples.targets[:, :2].sum(1), torch.ones(2))


def test_contrast_is_that_of_transfg_on_the_pooled_features():
    config = replace(PLAIN, contrast=0.5)
    batch, method = batch_of(6), wider(build(config))
    f = F.normalize(method.encoder(batch.views[0][:, 0]).pooled, dim=1)
    cos, same = f @ f.T, batch.labels[:, None] == batch.labels
    expected = torch.where(same, 1 - cos, (cos - 0.4).clamp(min=0)).mean()
    output = method(batch, CLOCK)
    torch.testing.assert_close(output.metrics["contrast"], expected)
    torch.testing.assert_close(
        output.loss, F.cross_entropy(logits_of(method, batch), batch.labels) + 0.5 * expected
    )


def test_a_teacher_speaks_to_the_second_head():
    torch.manual_seed(1)
    encoder = backbones.build(name="vit-n/8", image_size=16)
    tensors = {"classifier.weight": torch.randn(3, encoder.dim)}
    teacher = weights.Model(encoder, PREPARED, extras=Extras(tensors, {"classes": CLASSES}))
    config = replace(PLAIN, teacher="runs/teacher")
    tokens = {"distilled": True, "pool": "token"}
    batch, method = batch_of(6), build(config, encoder_options=tokens, model=teacher)
    method.train()
    features = method.encoder(batch.views[0][:, 0])
    own, told = method.head(features.pooled), method.distilled(features.prefix[:, 1])
    said = teacher.encoder(batch.views[0][:, 0]).pooled @ tensors["classifier.weight"].T
    expected = (F.cross_entropy(own, batch.labels) + F.cross_entropy(told, said.argmax(1))) / 2
    torch.testing.assert_close(method(batch, CLOCK).loss, expected)
    classifier = Classifier.of(weights.Model(method.encoder, PREPARED, extras=method.extras()))
    assert classifier is not None
    with method.evaluated(), torch.no_grad():
        mean = (own.softmax(1) + told.softmax(1)) / 2
        torch.testing.assert_close(classifier(method.encoder(batch.views[0][:, 0])), mean)
    with pytest.raises(ValueError, match="a teacher needs a distillation token"):
        build(config, model=teacher)


def test_rates_fall_from_layer_to_layer():
    """lr d^(L + 1 - l): embeddings have l = 0, blocks 1 to L, the last norm and the head L + 1 [Bao 2021]."""
    method = build(replace(PLAIN, layer_decay=0.5, encoder_lr_scale=0.2, head_warmup=0.3))
    depth = len(method.encoder.blocks)
    names = {id(p): name for name, p in method.named_parameters()}
    for group in method.groups():
        for p in group.params:
            name = names[id(p)]
            layer = 0 if not name.startswith("encoder.blocks.") else int(name.split(".")[2]) + 1
            layer = depth + 1 if name.startswith(("head", "encoder.norm", "encoder.fc_norm")) else layer
            scale = 0.5 ** (depth + 1 - layer)
            expected = 1.0 if name.startswith("head") else 0.2 * scale
            assert group.lr_scale == pytest.approx(expected), name
            assert group.frozen_share == (0.0 if name.startswith("head") else 0.3), name
            assert group.decay == (p.ndim > 1 and "token" not in name and "pos_embed" not in name), name


def test_the_average_is_evaluated_and_the_best_is_kept():
    method = build(replace(PLAIN, ema=0.9), name="vitc-15mf")
    start = method.head.bias.detach().clone()
    for step in range(200):
        with torch.no_grad():
            method.head.bias.copy_(torch.full((3,), float(step)))
        method.after_step(Clock(step, 200, 1.0), [None])
    with method.evaluated():
        assert not method.training
        averaged = method.head.bias.detach().clone()
        method.keep()
    torch.testing.assert_close(averaged, torch.full((3,), 199 - 0.9 / 0.1), atol=0.01, rtol=0)
    assert method.head.bias.tolist() == [199.0] * 3
    method.settle(best=False)
    torch.testing.assert_close(method.head.bias.detach(), averaged)
    with torch.no_grad():
        method.head.bias.copy_(start)
    method.settle(best=True)
    torch.testing.assert_close(method.head.bias.detach(), averaged)
    first = build(replace(PLAIN, ema=0.999))
    with torch.no_grad():
        first.head.bias.fill_(1.0)
    first.after_step(Clock(0, 200, 0.0), [None])
    with first.evaluated():  # of a short run, it is not where it began
        torch.testing.assert_close(first.head.bias.detach(), torch.full((3,), 0.9))


@pytest.mark.parametrize("fixed", [False, True])
def test_batch_norms_keep_their_statistics_if_asked_to(fixed):
    method = wider(build(replace(PLAIN, fixed_statistics=fixed), name="vitc-15mf"))
    statistics = {name: b.clone() for name, b in method.encoder.named_buffers() if "running" in name}
    method(batch_of(6), CLOCK).loss.backward()
    changed = [name for name, b in method.encoder.named_buffers() if "running" in name]
    changed = [name for name in changed if not torch.equal(statistics[name], method.encoder.get_buffer(name))]
    assert changed == ([] if fixed else list(statistics))
    assert len(statistics) == 6
    assert all(p.grad is not None for m in method.encoder.modules() if is_norm(m) for p in m.parameters())


def is_norm(module):
    return isinstance(module, torch.nn.modules.batchnorm._BatchNorm)


@pytest.mark.parametrize("n", [1, 3])
def test_an_odd_batch_is_learned_from(n):
    method = build(replace(PLAIN, mix_p=1.0)).train()
    assert torch.isfinite(method(batch_of(n), CLOCK).loss)


def test_the_paper_s_recipe_is_that_of_how_the_weights_were_pretrained():
    plans = {
        (method, model): finetune.paper_after(method, 224, model)
        for method in ("mae", "beit", "simmim", "supervised", "dino")
        for model in ("vit-b/16", "vit-l/16")
    }
    found = {
        key: (plan.lr, plan.config.layer_decay, plan.drop_path, plan.clip) for key, plan in plans.items()
    }
    assert found["mae", "vit-b/16"] == (2e-3, 0.65, 0.1, None)
    assert found["mae", "vit-l/16"] == (4e-3, 0.75, 0.2, None)
    assert found["beit", "vit-b/16"] == (4e-3, 0.65, 0.1, None)
    assert found["beit", "vit-l/16"] == (1e-3, 0.75, 0.2, None)
    assert found["simmim", "vit-b/16"] == (2.5e-3, 0.65, 0.1, 5.0)
    assert found["supervised", "vit-b/16"] == (1e-5, 1.0, 0.1, None)
    assert found["dino", "vit-b/16"] == found["mae", "vit-b/16"]
    assert finetune.paper(224, "vit-b/16") == plans["mae", "vit-b/16"]


def test_it_is_no_pretraining_method():
    assert "finetune" not in methods.names()
    assert methods.get("finetune").doc.startswith("Finetune")
