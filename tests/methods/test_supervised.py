"""Learning from labels: the loss written out, what is drawn, unlabelled images, what is kept."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import omma
from omma import backbones, weights
from omma.core.protocols import Batch, Clock, Context, Key
from omma.methods import deit, supervised
from omma.methods.shared import crops, labelled_views
from omma.pretraining.events import Plan, Read
from omma.verbs.pretrain import pretrain

CLOCK = Clock(1, 10, 0.1)
GIVEN = Context(image_size=16, images=100, classes=("a", "b", "c"))
PLAIN = supervised.Config(mix_p=0.0, smoothing=0.0, repeats=1, operations=0, erase_p=0.0)


def batch_of(n, repeats=1, labels=None, first=0):
    g = torch.Generator().manual_seed(first)
    index = np.arange(first, first + n)
    known = torch.from_numpy(index % 3) if labels is None else torch.tensor(labels)
    return Batch((torch.randn(n, repeats, 3, 16, 16, generator=g),), Key(0, np.zeros(n, int), index), known)


def build(config=PLAIN, context=GIVEN):
    torch.manual_seed(0)
    return supervised.Method(backbones.build(name="vit-n/8", image_size=16, pool="mean"), config, context)


def test_the_loss_is_cross_entropy():
    method, batch = build(), batch_of(6)
    logits = method.head(method.encoder(batch.views[0][:, 0]).pooled)
    output = method(batch, CLOCK)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(logits, batch.labels))
    assert output.metrics["accuracy"] == (logits.argmax(1) == batch.labels).float().mean()
    assert abs(output.loss.item() - math.log(3)) < 0.1  # it starts near 0


def test_repeated_views_are_mixed_among_themselves():
    config = replace(PLAIN, mix_p=1.0, repeats=2, mixup=0.0)
    batch = batch_of(4, repeats=2)
    found = labelled_views.examples(batch, 3, config)
    assert found.images.shape == (8, 3, 16, 16)
    views = batch.views[0]
    for view in range(2):
        for image in range(4):
            got = found.images[4 * view + image]
            own, other = views[image, view], views[image ^ 1, view]
            stays = (got == own).all(0)
            assert torch.equal(got[:, ~stays], other[:, ~stays])
            target = found.targets[4 * view + image]
            torch.testing.assert_close(target[image % 3], stays.float().mean())
    assert not torch.equal(found.targets[:4], found.targets[4:])


def test_images_without_a_label_take_no_part():
    config = replace(PLAIN, mix_p=1.0)
    some, method = batch_of(4, labels=[0, 1, -1, -1]), build(config)
    alone = Batch((some.views[0][:2],), Key(0, some.key.epoch[:2], some.key.index[:2]), some.labels[:2])
    torch.testing.assert_close(method(some, CLOCK).loss, method(alone, CLOCK).loss)
    nothing = some._replace(labels=torch.full((4,), -1))
    output = method(nothing, CLOCK)
    assert output.loss == 0
    assert output.metrics["accuracy"] == 0


def test_two_halves_accumulate_to_the_whole():
    method = build(supervised.Config(repeats=1))
    whole = batch_of(8)
    method(whole, CLOCK).loss.backward()
    expected = method.head.weight.grad.clone()
    method.zero_grad()
    for rows in (slice(0, 4), slice(4, 8)):
        k = Key(0, whole.key.epoch[rows], whole.key.index[rows])
        (method(Batch((whole.views[0][rows],), k, whole.labels[rows]), CLOCK).loss / 2).backward()
    torch.testing.assert_close(method.head.weight.grad, expected)


def test_what_is_kept_classifies():
    method = build()
    extras = method.extras()
    assert extras.facts == {"classes": ["a", "b", "c"]}
    x = batch_of(5).views[0][:, 0]
    pooled = method.export_encoder()(x).pooled
    logits = pooled @ extras.tensors["classifier.weight"].T + extras.tensors["classifier.bias"]
    torch.testing.assert_close(logits, method.head(pooled))
    assert not any(t.requires_grad for t in extras.tensors.values())


def test_the_plan_is_the_papers():
    (crop,) = supervised.views(supervised.Config(), 224)
    assert (crop.size, crop.count, crop.scale, crop.erase_p) == (224, 3, (0.08, 1.0), 0.25)
    assert (crop.augment.count, crop.augment.magnitude, crop.augment.deviation) == (2, 9.0, 0.5)
    (crop,) = supervised.views(PLAIN, 32)
    assert crop.augment is None


def test_quicker_views():
    assert [crops.smaller(size) for size in (16, 32, 64, 96, 224)] == [None, 24, 48, 64, 160]
    assert [crops.smaller(size, plain=True) for size in (16, 32, 64)] == [None, 16, 48]


@pytest.mark.parametrize(
    "values",
    [{"mix_p": 1.5}, {"erase_p": -0.1}, {"smoothing": 1.0}, {"mixup": -1.0}, {"magnitude": 12.0},
     {"operations": -1}, {"repeats": 0}],
)  # fmt: skip
def test_what_cannot_be_is_refused(values):
    for file in (supervised, deit):
        with pytest.raises(ValueError, match=f"method.{next(iter(values))}="):
            file.Config(**values)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match=r"of one class \(a\).*simclr"):
        build(context=replace(GIVEN, classes=("a",)))


# ---------------------------------------------------------------- as a run
def folder_of(root, labels=True, unlabelled=0):
    """60 images of three colours: in folders, or in a table of which some rows have no label."""
    rng = np.random.default_rng(0)
    rows = ["path,label"]
    for i in range(60):
        name = "rgb"[i % 3]
        pixels = (rng.random((16, 16, 3)) * 90).astype(np.uint8)
        pixels[:, :, i % 3] += 120
        path = root / (f"{name}/{i}.png" if labels and not unlabelled else f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        rows.append(f"{path.name},{'' if i < unlabelled else name}")
    if unlabelled:
        (root / "table.csv").write_text("\n".join(rows))
        return root / "table.csv"
    return root


def run(images, out, **options):
    events = []
    pretrain(
        images, out=out, model="vit-n/8", image_size=16, batch_size=20, steps=options.pop("steps", 4),
        device="cpu", workers=0, listen=events.append, **options,
    )  # fmt: skip
    return events


def test_a_run_and_a_run_that_learns_from_it(tmp_path):
    images = folder_of(tmp_path / "images")
    easy = {"operations": 0, "mix_p": 0.0, "scale": "0.9,1.0"}
    events = run(images, tmp_path / "one", method="supervised", steps=30, lr=3e-3, options=easy)
    # no images are held out from so few: k-NN would read labels that were learned
    assert all(event.knn is None for event in events if isinstance(event, Read))
    model = weights.load(tmp_path / "one")
    assert model.provenance["labels"] == "learned"  # `omma evaluate` says so
    assert model.extras.facts["classes"] == ["b", "g", "r"]
    pictures = [images / "rgb"[i % 3] / f"{i}.png" for i in range(60)]
    features = torch.from_numpy(model.embed(pictures))
    logits = features @ model.extras.tensors["classifier.weight"].T + model.extras.tensors["classifier.bias"]
    wanted = torch.tensor([2, 1, 0])[torch.arange(60) % 3]
    assert (logits.argmax(1) == wanted).float().mean() > 0.9

    options = easy | {"teacher": str(tmp_path / "one")}
    run(images, tmp_path / "two", method="deit", options=options)
    student = weights.load(tmp_path / "two")
    assert student.encoder.dist_token is not None
    assert set(student.extras.tensors) == {
        f"{n}.{p}" for n in ("classifier", "distilled") for p in ("weight", "bias")
    }
    assert omma.load(tmp_path / "two").preprocess == student.preprocess


def test_unlabelled_images_are_left_out_and_counted(tmp_path):
    events = run(folder_of(tmp_path / "images", unlabelled=15), tmp_path / "run", method="supervised")
    (plan,) = (event for event in events if isinstance(event, Plan))
    assert plan.used == 45
    assert "left out, without a label: 15 images" in plan.notes


def test_no_labels_are_refused_before_anything_is_decoded(tmp_path):
    with pytest.raises(ValueError, match="supervised learns from labels, and these images have none"):
        run(folder_of(tmp_path / "images", labels=False), tmp_path / "run", method="supervised")
