"""`omma evaluate`: every number with its protocol, floors beside it, and a verdict they allow."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from omma import backbones, weights
from omma.core.protocols import Preprocess
from omma.data.sources import identity, split
from omma.data.sources.collection import ArrayImages
from omma.evaluation import metrics
from omma.evaluation.detail import write_matrices
from omma.evaluation.score import Score
from omma.evaluation.verdict import Comparison, Evaluation
from omma.verbs.evaluate import evaluate
from omma.weights.classifier import Classifier

PREPROCESS = Preprocess(
    size=16, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)
CPU = {"device": "cpu", "precision": "fp32"}


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small lose by threads, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(5)
    encoder = backbones.build(name="vit-ti/16", image_size=16)
    folder = tmp_path_factory.mktemp("runs") / "x"
    weights.save(folder, encoder, PREPROCESS, {"method": "mae", "images": "noise", "part": "train"})
    return folder


def images(classes=2, each=60, noise=40, splits=None, seed=0) -> ArrayImages:
    """Each class a colour pattern of its own, under noise."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 256, (classes, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    labels = np.arange(classes).repeat(each)
    pixels = patterns[labels] + rng.normal(0, noise, (len(labels), 16, 16, 3))
    names = tuple(f"c{i}" for i in range(classes))
    return ArrayImages(
        pixels.clip(0, 255).astype(np.uint8), labels=labels, classes=names, splits=splits, source="noise"
    )


def test_two_classes_with_everything(run, tmp_path):
    seen = []
    outcome = evaluate(
        run,
        images(),
        protocols=("knn", "linear", "ridge"),
        json=tmp_path / "deep" / "r.json",
        progress=lambda *a: seen.append(a),
        **CPU,
    )
    assert {r.subject for r in outcome.results} == {"trained", "untrained", "pixels"}
    assert [r.k for r in outcome.results if r.subject == "trained"] == [10, 20, 96, None, None]
    for r in outcome.results:
        assert (r.n_train, r.n_test, r.classes, r.seed) == (96, 24, 2, 0)
        assert r.interval95[0] <= r.value <= r.interval95[1]
        assert "stratified" in r.split
        assert r.majority == 0.5
    trained = next(r for r in outcome.results if r.subject == "trained" and r.k == 20)
    assert (trained.T, trained.layer, trained.pooling, trained.precision) == (0.07, "last", "pooled", "fp32")
    assert "16 x 16" in trained.crop
    assert next(r for r in outcome.results if r.protocol == "linear").settings["solver"] == "lbfgs"
    pixels = next(r for r in outcome.results if r.subject == "pixels" and r.k == 20)
    assert pixels.value == 1.0  # the patterns are plain to see

    written = json.loads((tmp_path / "deep" / "r.json").read_text())
    assert written == json.loads(json.dumps(outcome.to_json()))
    assert written["schema"] == 1
    required = {"subject", "protocol", "metric", "value", "interval95", "k", "n_train", "n_test"}
    assert required <= written["results"][0].keys()
    assert written["digest"] == weights.load(run).digest

    heads, rows = outcome.table()
    assert heads[1:] == ["pixels", "untrained", "trained"]
    assert [row[0] for row in rows] == ["k-NN (k=20, T=0.07)", "linear probe", "ridge probe"]
    assert rows[0][1].startswith("100.0 % (")
    assert "96 train and 24 test images of 2 classes" in outcome.protocol()
    assert "train part alone" in outcome.notes[0]
    assert {text for text, _, _ in seen} >= {"features, trained", "features, untrained", "pixels"}


TAXONOMY = "parent,child\nroot,warm\nwarm,c0\nwarm,c1\nroot,c2\n"


def test_everything_that_can_be_measured(run, tmp_path):
    (tmp_path / "taxonomy.csv").write_text(TAXONOMY)
    data = images(classes=3, each=40, noise=250)
    options = {"metrics": ["all"], "taxonomy": tmp_path / "taxonomy.csv", "protocols": ["linear", "knn"]}
    outcome = evaluate(run, data, floors=False, json=tmp_path / "r.json", **options, **CPU)
    found = {(r.protocol, r.metric) for r in outcome.results}
    measured = {name for group in metrics.GROUPS.values() for name in group} - {"top5"}  # of three classes
    assert {("linear", name) for name in measured} <= found
    assert ("knn", "ece") not in found  # votes are no probabilities
    names = {"h_f1", "lca_height", "lca_height_mistakes", "tree_error", "crm_top1", "accuracy, level 1"}
    assert {("linear", name) for name in names} <= found
    values = {r.metric: r.value for r in outcome.results if r.protocol == "linear"}
    assert values["f1_micro"] == pytest.approx(values["top1"])
    assert values["top1"] <= values["accuracy, level 1"] < 1
    _, rows = outcome.table()
    names = [row[0] for row in rows]
    assert names[:3] == ["linear probe", "linear probe, balanced", "  precision, macro"]
    assert "  calibration error, 15 bins" in names
    assert "  common ancestor's height" in names

    written = json.loads((tmp_path / "r.json").read_text())["details"]
    assert [each["protocol"] for each in written] == ["linear", "knn"]
    first, detail = written[0], outcome.details[0]
    assert [row["class"] for row in first["by_class"]] == ["c0", "c1", "c2"]
    assert sum(n for _, _, n in first["confusions"]) == 24
    right = sum(n for true, predicted, n in first["confusions"] if true == predicted)
    assert right / 24 == pytest.approx(values["top1"])
    assert first["pairs"][0]["taken"][0].startswith("noise[")
    assert detail.sentences()[0].startswith(f"{first['pairs'][0]['true']} taken for")

    files = write_matrices(tmp_path / "c.csv", outcome.details)
    assert [file.name for file in files] == ["c-linear.csv", "c-knn.csv"]
    lines = files[0].read_text().splitlines()
    assert lines[0] == "true \\ predicted,c0,c1,c2"
    counts = np.array([list(map(int, line.split(",")[1:])) for line in lines[1:]])
    assert np.trace(counts) == right
    assert (counts.sum(1) == 8).all()


def test_a_taxonomy_without_a_class_is_refused(run, tmp_path):
    (tmp_path / "taxonomy.csv").write_text(TAXONOMY)
    with pytest.raises(ValueError, match="the class 'c3' is no node of it"):
        evaluate(run, images(classes=4, each=10), taxonomy=tmp_path / "taxonomy.csv", floors=False, **CPU)


def classified(run, folder, classes):
    """The run's encoder with a classifier, fitted by least squares to images of classes c0, c1, c2."""
    model = weights.load(run)
    data = images(classes=3, each=40)
    features = torch.from_numpy(model.embed([data.read(i) for i in range(len(data))]))
    target = torch.nn.functional.one_hot(torch.from_numpy(data.labels), 3).float() - 1 / 3
    centre = features.mean(0)
    weight = torch.linalg.lstsq(features - centre, target, driver="gelsd").solution.T
    order = [("c0", "c1", "c2").index(name) if name in ("c0", "c1", "c2") else -1 for name in classes]
    bias = -(weight @ centre)
    weight = torch.stack([weight[k] if k >= 0 else torch.zeros_like(weight[0]) for k in order])
    bias = torch.stack([bias[k] if k >= 0 else torch.tensor(-10.0) for k in order])
    classifier = Classifier(classes=tuple(classes), weight=weight, bias=bias).calibrated(temperature=0.1)
    weights.save(folder, model.encoder, PREPROCESS, {"method": "x"}, classifier.extras())
    return folder


def test_the_models_own_classifier_is_judged_by_name(run, tmp_path):
    """Its classes come in another order, with one that the images lack."""
    model = classified(run, tmp_path / "m", ["c2", "other", "c0", "c1"])
    data = images(classes=3, each=40)
    outcome = evaluate(model, data, metrics=["calibration"], floors=False, cache=None, **CPU)
    assert {r.protocol for r in outcome.results} == {"classifier", "knn", "linear"}
    mine = {r.metric: r for r in outcome.results if r.protocol == "classifier"}
    assert mine["top1"].value > 0.9
    assert mine["top1"].settings == {"temperature": 0.1, "classes": 4}
    assert {"ece", "nll", "brier"} <= mine.keys()
    assert outcome.details[0].names == ("c0", "c1", "c2", "other")
    assert not any("does not know" in note for note in outcome.notes)

    renamed = ArrayImages(data._store.values, data.labels, ("c0", "c1", "new"), source="noise")
    outcome = evaluate(model, renamed, protocols=["classifier"], floors=False, cache=None, **CPU)
    assert outcome.results[0].value < 0.7
    assert any(
        note
        == "the classifier does not know 1 class of the test part (new): it gets all of the 8 images wrong"
        for note in outcome.notes
    )
    strangers = ArrayImages(data._store.values, data.labels, ("x", "y", "z"), source="noise")
    assert {r.protocol for r in evaluate(model, strangers, floors=False, **CPU).results} == {"knn", "linear"}
    with pytest.raises(ValueError, match="knows none of the classes of noise by name: it has 'c2', 'other'"):
        evaluate(model, strangers, protocols=["classifier"], **CPU)


def test_images_of_several_labels(run, tmp_path):
    rng = np.random.default_rng(0)
    sets = (rng.random((120, 3)) < 0.4).astype(np.int8)
    pixels = rng.normal(120, 60, (120, 16, 16, 3))
    for k in range(3):
        pixels[:, 5 * k : 5 * k + 5, :, k] += 25 * sets[:, k, None, None]
    sets[rng.random((120, 3)) < 0.1] = -1
    pixels = pixels.clip(0, 255).astype(np.uint8)
    data = ArrayImages(pixels, sets, ("a", "b", "c"), source="noise")
    outcome = evaluate(run, data, metrics=["all"], json=tmp_path / "r.json", **CPU)
    found = {(r.subject, r.protocol): r for r in outcome.results if r.metric == "mAP"}
    assert found["pixels", "linear"].value > 0.75
    assert found["pixels", "linear"].interval95[0] < found["pixels", "linear"].value
    assert {p for s, p in found if s == "trained"} == {"knn", "linear"}
    names = {r.metric for r in outcome.results}
    assert {"mAP", "map_micro", "f1_macro", "f1_micro", "exact_match"} <= names
    assert {c.metric for c in outcome.comparisons} == {"mAP"}
    assert "linear probe, mAP" in outcome.verdict()
    assert all(c.interval95[0] < c.difference < c.interval95[1] for c in outcome.comparisons)
    assert "of 3 classes (stratified split, 20% test, seed 0" in outcome.protocol()
    _, rows = outcome.table()
    assert rows[0][0] == "k-NN, mAP (k=20, T=0.07)"
    written = json.loads((tmp_path / "r.json").read_text())["details"][0]
    assert {"precision", "recall", "f1", "ap"} <= written["by_class"][0].keys()
    assert write_matrices(tmp_path / "c.csv", outcome.details) == []

    model = weights.load(run)
    head = Classifier(classes=("c", "a"), weight=torch.zeros(2, model.encoder.dim), multi_label=True)
    head = head.calibrated(thresholds=(0.4, 0.6))  # each probability is .5
    weights.save(tmp_path / "m", model.encoder, PREPROCESS, {}, head.extras())
    outcome = evaluate(tmp_path / "m", data, protocols=["classifier"], floors=False, cache=None, **CPU)
    assert outcome.details[0].metrics.predicted[:2].tolist() == [0, 0]
    assert outcome.details[0].metrics.predicted[2] > 0
    with pytest.raises(ValueError, match=r"several labels each .* the protocol ridge needs one"):
        evaluate(run, data, protocols=["ridge"], **CPU)


def test_images_of_the_same_label_or_object_are_found(run, tmp_path, monkeypatch):
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path / "cache"))
    data, rows = images(each=12, noise=10), ["path,label,sequence"]
    for i in range(24):
        Image.fromarray(data.read(i)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{data.labels[i]},{'' if i == 0 else i // 2}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    outcome = evaluate(run, tmp_path / "list.csv", protocols=["image-retrieval"], **CPU)
    assert {r.subject for r in outcome.results} == {"trained", "untrained", "pixels"}
    pixels = {r.metric: r for r in outcome.results if r.subject == "pixels"}
    assert list(pixels) == [f"{name}, {level}" for level in ("category", "instance")
                            for name in ("recall@1", "recall@5", "recall@10", "mAP")]  # fmt: skip
    assert pixels["mAP, category"].value > 0.95
    assert pixels["recall@1, instance"].value < 0.5
    assert (pixels["mAP, category"].n_test, pixels["mAP, instance"].n_test) == (24, 22)
    # images of one sequence are not compared: 22 have another of theirs, two have none
    expected = (22 * 10 / 22 + 2 * 11 / 23) / 24
    assert pixels["recall@1, category"].settings["chance"] == pytest.approx(expected)
    assert (pixels["mAP, category"].group, pixels["mAP, category"].test_groups) == ("sequence", 13)
    assert "instance: 1 image without another of the same sequence: no queries" in outcome.notes
    assert "24 queries of the same label among 23 other images (all images, seed 0)" in outcome.protocol()
    assert "22 queries of the same sequence among 22 other images" in outcome.protocol()
    _, table = outcome.table()
    assert table[0][0] == "recall@1, category"
    assert "recall@1, instance" in outcome.verdict()

    (tmp_path / "bare.csv").write_text("path\n0.png\n1.png\n")
    with pytest.raises(ValueError, match="neither labels nor a column instance or sequence or object"):
        evaluate(run, tmp_path / "bare.csv", protocols=["image-retrieval"], **CPU)


def test_many_classes_of_few_images(run):
    outcome = evaluate(run, images(classes=200, each=20), floors=False, **CPU)
    assert [r.n_train for r in outcome.results] == [3200] * 5
    assert all(r.classes == 200 for r in outcome.results)
    assert all(r.value > 0.05 for r in outcome.results)  # chance is .005
    assert outcome.comparisons == ()
    assert "unknown whether" in outcome.verdict()


def test_the_collections_own_split_is_kept(run):
    splits = np.array(["train", "test", "train"] * 40)
    outcome = evaluate(run, images(splits=splits), protocols=["knn"], floors=False, **CPU)
    assert {(r.n_train, r.n_test) for r in outcome.results} == {(80, 40)}


def test_a_class_without_train_images_is_named(run):
    splits = np.array(["train", "test"] * 60 + ["test"] * 60)
    outcome = evaluate(run, images(classes=3, splits=splits), protocols=["knn"], floors=False, **CPU)
    assert (
        "1 class has no train image (c2): probes get all of the 60 test images of it wrong" in outcome.notes
    )
    assert all(r.classes == 3 for r in outcome.results)


def test_parts_that_the_user_names(run, tmp_path, monkeypatch):
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path / "cache"))
    rows = ["path,label,site"]
    for k in range(24):
        Image.fromarray(np.full((16, 16, 3), 10 * k, np.uint8)).save(tmp_path / f"{k}.png")
        rows.append(f"{k}.png,{'-1' if k % 2 else '0'},{'AB'[k % 3 == 0]}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    options = {"protocols": ["knn"], "floors": False, **CPU}
    outcome = evaluate(run, tmp_path / "list.csv", test_on=["site=B"], **options)
    assert {(r.n_train, r.n_test, r.classes) for r in outcome.results} == {(16, 8, 2)}
    assert (
        "16 train and 8 test images of 2 classes (trained on the rest, tested on site=B, seed 0)"
        in outcome.protocol()
    )
    assert any("the label -1 is a class" in note for note in outcome.notes)
    with pytest.raises(ValueError, match="no image matches"):
        evaluate(run, tmp_path / "list.csv", train_on=["site=C"], **options)


def test_why_a_table_gives_no_labels(run, tmp_path, monkeypatch):
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path / "cache"))
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "x.jsonl").write_text('{"path": "a.png", "label": ["cat", "dog"]}')
    with pytest.raises(ValueError, match=r"x.jsonl: with one image per class none is left to test on"):
        evaluate(run, tmp_path / "x.jsonl", **CPU)
    (tmp_path / "x.csv").write_text("path,species\na.png,cat\n")
    (tmp_path / "train.csv").write_text("id,breed\na,cat\n")
    with pytest.raises(
        ValueError, match=r"only labels.csv is read: rename it if it is train.csv, x.csv, x.jsonl"
    ):
        evaluate(run, tmp_path, **CPU)
    with pytest.raises(ValueError, match=r"no column is named label \(there are species\)"):
        evaluate(run, tmp_path / "x.csv", **CPU)


def test_features_are_cached_beside_the_weights(run, monkeypatch):
    data = images(seed=7)
    first = evaluate(run, data, **CPU)
    files = set((run / "features").iterdir())

    def fail(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(backbones.vit.ViT, "encode", fail)
    assert evaluate(run, data, **CPU).results == first.results
    assert set((run / "features").iterdir()) == files
    with pytest.raises(AssertionError):
        evaluate(run, data, cache=None, **CPU)


def test_a_folder_with_a_torn_file(run, tmp_path):
    data = images(each=8)
    for i in range(16):
        file = tmp_path / f"c{data.labels[i]}" / f"{i:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(data.read(i)).save(file)
    whole = (tmp_path / "c0" / "03.png").read_bytes()
    (tmp_path / "c0" / "03.png").write_bytes(whole[: len(whole) // 2])
    outcome = evaluate(run, tmp_path, protocols=["knn"], floors=True, cache=None, **CPU)
    assert [path for path, _ in outcome.skipped] == ["c0/03.png"]
    assert all(r.n_train + r.n_test == 15 for r in outcome.results)
    assert any("1 file (" in note for note in outcome.notes)


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (lambda: ArrayImages(np.zeros((4, 16, 16, 3), np.uint8)), {}, "no labels"),
        (lambda: images(classes=1), {}, "one class"),
        (lambda: images(each=1), {}, "one image per class"),
        (lambda: images(each=2), {"protocols": ["linear"]}, "no class has two"),
        (images, {"protocols": ["svm"]}, "choose among"),
        (images, {"metrics": ["auc"]}, "choose among accuracy, f1, ap, calibration, all"),
        (images, {"protocols": ["classifier"]}, "holds no classifier"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_one_line(run, data, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        evaluate(run, data(), cache=None, **CPU, **options)
    assert "\n" not in str(caught.value)


def evaluation(comparisons) -> Evaluation:
    result = Score(
        subject="trained", protocol="knn", value=0.5, interval95=(0.4, 0.6), balanced_accuracy=0.5,
        majority=0.5, k=20, crop="", split="", seed=0, n_train=1, n_test=1, classes=2,
    )  # fmt: skip
    return Evaluation(
        model="m", digest="", data="", results=(result,), comparisons=tuple(comparisons), notes=(), skipped=()
    )


@pytest.mark.parametrize(
    ("untrained", "pixels", "words"),
    [
        (
            [(0.1, 0.2)],
            [(-0.1, 0.1)],
            "Training helped, compared with the same network untrained: k-NN: better (+10.0 to +20.0 "
            "points). No difference from raw pixels is proved: k-NN (-10.0 to +10.0 points).",
        ),
        ([(-0.1, 0.1)], [(0.1, 0.2)], "No difference from the same network untrained is proved: k-NN (-1"),
        ([(-0.3, -0.2)], [(0.1, 0.2)], "Training harmed, compared with the same network untrained: k-NN: wo"),
        ([(0.1, 0.2), (-0.1, 0.1)], [], "Training helped by k-NN, compared with the same network untrained:"),
        ([(0.1, 0.2), (-0.2, -0.1)], [], "Training helped by k-NN and harmed by linear probe, compared"),
        ([], [], "No floor was measured, so it is unknown whether training helped."),
    ],
)
def test_the_headline_compares_with_the_untrained_network(untrained, pixels, words):
    comparisons = [
        Comparison(protocol, against, 20 if protocol == "knn" else None, 0.0, interval)
        for against, intervals in (("pixels", pixels), ("untrained", untrained))
        for protocol, interval in zip(("knn", "linear"), intervals)
    ]
    assert evaluation(comparisons).verdict().startswith(words)


def test_where_classes_are_uneven_both_accuracies_are_shown(run):
    data = images(classes=3, each=40)
    splits = np.array((["train"] * 20 + ["test"] * 20) * 3)
    splits[30:40], splits[75:80] = "none", "none"  # 10, 15 and 20 test images
    outcome = evaluate(
        run,
        ArrayImages(data._store.values, data.labels, data.classes, splits),
        protocols=["knn"],
        floors=False,
        **CPU,
    )
    _, rows = outcome.table()
    assert [row[0] for row in rows] == ["k-NN (k=20, T=0.07)", "k-NN, balanced (k=20, T=0.07)"]
    assert "the best constant answer scores 44.4% (balanced: 33.3%)" in outcome.protocol()
    balanced = next(r for r in outcome.results if r.metric == "balanced_accuracy" and r.k == 20)
    assert balanced.value == next(r for r in outcome.results if r.k == 20).balanced_accuracy


def test_grey_images_are_judged_by_a_network_for_rgb(run):
    data = images()
    grey = ArrayImages(data._store.values[..., :1], data.labels, data.classes, source="grey")
    outcome = evaluate(run, grey, protocols=["knn"], **CPU)
    assert {r.subject for r in outcome.results} == {"trained", "untrained", "pixels"}
    assert outcome.skipped == ()


def test_the_note_on_pretraining_goes_by_the_images(run, tmp_path):
    """Another name and no fingerprint in common: a run that saw the images is told all the same."""
    data = images()
    shutil.copytree(run, tmp_path / "run")

    def note(seen):
        identity.write(tmp_path / "run" / identity.RECORD, seen.identity.record(), {})
        outcome = evaluate(tmp_path / "run", data, protocols=["knn"], floors=False, **CPU)
        return next((note for note in outcome.notes if "pretrained" in note), None)

    train, test, _ = split.train_test(data)
    copy = ArrayImages(data._store.values.copy(), source="copy")
    assert note(copy) == (
        "the encoder was pretrained on all 24 test images, by their content; labels were not used then"
    )
    some = copy.subset(np.concatenate([train, test[:5]]))
    assert note(some).startswith("the encoder was pretrained on 5 of 24 test images")
    assert "on all 96 images outside the test part, by their content, and on none inside it" in note(
        copy.subset(train)
    )
    assert note(ArrayImages(255 - data._store.values)) is None
