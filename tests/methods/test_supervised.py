"""Learning from labels: the loss written out, what is drawn, unlabelled images, what is kept."""

import json
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


def test_the_hinge_of_equal_scores_is_k_minus_1():
    method, batch = build(replace(PLAIN, loss="hinge")), batch_of(6)
    torch.nn.init.zeros_(method.head.weight)
    assert method(batch, CLOCK).loss == 2
    torch.nn.init.normal_(method.head.weight)
    logits = method.head(method.encoder(batch.views[0][:, 0]).pooled)
    expected = 3 * torch.nn.functional.multi_margin_loss(logits, batch.labels)
    torch.testing.assert_close(method(batch, CLOCK).loss, expected)


@pytest.mark.parametrize("soft", [{"smoothing": 0.1}, {"mix_p": 0.5}])
def test_the_hinge_refuses_soft_labels(soft):
    with pytest.raises(
        ValueError, match=r"loss=hinge: needs one class.*--method.smoothing 0 --method.mix-p 0"
    ):
        replace(PLAIN, loss="hinge", **soft)
    # what is never mixed may have any alpha
    assert replace(PLAIN, loss="hinge", mix_p=1.0, mixup=0.0, cutmix=0.0).loss == "hinge"


@pytest.mark.parametrize("values", [{"loss": "squared"}, {"dropout": 1.0}, {"patience": -1}])
def test_options_of_its_own_are_checked(values):
    with pytest.raises(ValueError, match=f"method.{next(iter(values))}="):
        supervised.Config(**values)


def test_dropout_acts_on_the_feature_in_training_only():
    method, batch = build(replace(PLAIN, dropout=0.5)), batch_of(6)
    torch.nn.init.normal_(method.head.weight)
    assert method.train()(batch, CLOCK).loss != method(batch, CLOCK).loss
    assert method.eval()(batch, CLOCK).loss == method(batch, CLOCK).loss


def test_the_best_weights_are_kept_and_put_back():
    method = build(replace(PLAIN, patience=2))
    best = {name: t.clone() for name, t in method.state_dict().items() if not name.startswith("best.")}
    method.keep()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(1.0)
    method.settle(best=False)
    assert not torch.equal(method.head.weight, best["head.weight"])
    method.settle(best=True)
    assert all(torch.equal(t, method.state_dict()[name]) for name, t in best.items())
    assert build().best is None


@pytest.mark.parametrize("model", ["linear", "mlp", "lenet", "resnet20"])
def test_classical_networks_are_not_mixed(model):
    """So that `--method.loss hinge` is the one option that it takes."""
    recipe = supervised.small(32, model)
    assert replace(recipe.config, loss="hinge", patience=3).loss == "hinge"
    (crop,) = supervised.views(recipe.config, 32)
    assert (crop.size, crop.augment) == (32, None)


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


def test_training_ends_early_with_the_best_weights(tmp_path):
    """Labels without meaning are learned by heart, and no reading of others is better than by chance."""
    rng = np.random.default_rng(0)
    rows = ["path,label"]
    for i in range(60):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'ab'[int(rng.integers(2))]}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    events = []
    pretrain(
        tmp_path / "table.csv", out=tmp_path / "run", method="supervised", model="linear", image_size=16,
        batch_size=16, steps=400, lr=3e-3, device="cpu", workers=0, options={"patience": 2},
        listen=events.append,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    readings = [line for line in lines if line["event"] == "holdout"]
    best = max(readings, key=lambda line: (line["top1"], -line["nll"]))
    assert readings.index(best) == len(readings) - 3  # two more, neither of them better
    assert readings[-1]["step"] < 400
    model = weights.load(tmp_path / "run")
    assert model.extras.facts["calibration"]["images"] == best["images"] > 0
