"""The report of a run: it draws what it can of any images, and keeps every evaluation."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from omma.evaluation import history
from omma.evaluation.score import Score
from omma.evaluation.verdict import Comparison, Evaluation
from omma.pretraining.folder import EVALUATION, RunFolder
from omma.pretraining.saved_method import trained_method
from omma.reporting.results import ReportedEvaluation
from omma.train import checkpoint, sharded_checkpoint
from omma.verbs.evaluate import evaluate
from omma.verbs.pretrain import pretrain
from omma.verbs.report import report, report_evaluation

pytestmark = pytest.mark.report


def write_images(folder, sizes, shape=(16, 16, 3), dtype=np.uint8):
    """Classes "dark" and "light", told apart by brightness; sizes: images of each."""
    rng = np.random.default_rng(0)
    top = 200 if dtype is np.uint8 else 50_000
    for name, low in (("dark", 0), ("light", top // 2)):
        (folder / name).mkdir(parents=True)
        for i in range(sizes):
            pixels = rng.integers(low, low + top // 2, shape).astype(dtype)
            Image.fromarray(pixels).save(folder / name / f"{name}{i}.png")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on 16 px RGB images."""
    root = tmp_path_factory.mktemp("report")
    photos = write_images(root / "photos", 12)
    pretrain(
        str(photos), out=root / "run", method="mae", model="vit-n/4", steps=1, batch_size=8, device="cpu",
        precision="fp32", workers=0,
        options={"decoder_depth": 1, "decoder_dim": 16, "decoder_heads": 1},
    )  # fmt: skip
    return root / "run"


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def page(run, images):
    return report(run, images).read_text(encoding="utf-8")


def test_grey_images_are_drawn_by_a_model_of_colour(run, tmp_path):
    text = page(run, write_images(tmp_path / "grey", 4, (20, 16)))
    assert all(
        title in text for title in ("Nearest neighbours", "Attention", "Reconstructions", "Patch features")
    )
    assert ">dark0.png</span>" in text
    assert "not drawn" not in text


@pytest.mark.parametrize(
    "shape", [(1, 1, 3), (3, 400, 3), (16, 16, 4)], ids=["one pixel", "a strip", "transparent"]
)
def test_images_of_any_shape_are_drawn(run, tmp_path, shape):
    text = page(run, write_images(tmp_path / "odd", 2, shape))
    assert "Nearest neighbours</h2>" in text
    assert "not drawn" not in text


def test_damaged_images_are_left_out(run, tmp_path):
    photos = write_images(tmp_path / "some", 3)
    whole = (photos / "dark" / "dark0.png").read_bytes()
    for i in range(3):
        (photos / "dark" / f"dark{i}.png").write_bytes(whole[: len(whole) // 2])
    text = page(run, photos)
    assert "Nearest neighbours</h2>" in text
    assert "light1.png</span>" in text
    assert "dark1.png</span>" not in text


def test_one_image_has_no_neighbours_but_attention(run, tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "one.png")
    text = page(run, tmp_path / "one.png")
    assert "Nearest neighbours</h2>" not in text
    assert "Attention</h2>" in text


def test_images_that_the_model_cannot_take_become_a_note(run, tmp_path):
    np.save(tmp_path / "bands.npy", np.zeros((4, 16, 16, 7), np.uint8))
    text = page(run, tmp_path / "bands.npy")
    assert "What the model sees: not drawn (the model takes images of 3 channels, these have 7" in text
    assert "<h2>Training" in text


def test_images_are_mapped_and_those_that_repeat_another_are_shown(run, tmp_path):
    photos = write_images(tmp_path / "photos", 5)
    text = page(run, photos)
    assert "Map of the images</h2>" in text
    assert "10 images by their features" in text
    assert "The same picture twice" not in text
    shutil.copy(photos / "dark" / "dark0.png", photos / "light" / "again.png")
    with Image.open(photos / "dark" / "dark1.png") as image:
        image.save(photos / "dark" / "other.bmp")
    text = page(run, photos)
    assert "2 images of 12 looked at repeat another" in text
    assert ">the same file</span>" in text
    assert ">the same pixels</span>" in text


def test_domains_are_set_against_each_other(run, tmp_path):
    photos = write_images(tmp_path / "photos", 6)
    files = sorted(photos.rglob("*.png"))
    rows = [
        f"{f.relative_to(photos)},{f.parent.name},{'day' if i % 2 else 'night'}" for i, f in enumerate(files)
    ]
    (photos / "labels.csv").write_text("\n".join(["path,label,time", *rows]))
    text = report(run, photos / "labels.csv", domains="time").read_text(encoding="utf-8")
    assert "Domains by time</h2>" in text
    assert "day on night: " in text
    assert "12 test images of 2 domains and 2 classes" in text
    for column, says in (("place", "no column place; choose among"), ("path", "two classes in common")):
        with pytest.raises(ValueError, match=says):
            report(run, photos / "labels.csv", domains=column)


def test_later_evaluations_join_earlier_ones(run, tmp_path):
    """The newest first, its sentence at the top; one that repeats an earlier one replaces it."""
    birds, trees = (write_images(tmp_path / name, 6) for name in ("birds", "trees"))
    for data, protocol in ((birds, "knn"), (trees, "ridge"), (birds, "knn")):
        last = evaluate(run, str(data), protocols=[protocol], device="cpu", precision="fp32")
    entries = history.read(run / EVALUATION)
    assert [(e["data"], e["results"][0]["protocol"]) for e in entries] == [
        (str(birds), "knn"), (str(trees), "ridge"),
    ]  # fmt: skip
    content = json.loads((run / EVALUATION).read_text())
    assert content["schema"] == 1
    assert content["data"] == str(birds)  # where it always was: the last evaluation
    text = page(run, birds)
    assert text.index(last.verdict().split(";")[0][:30]) < text.index("class=facts")
    assert text.index(f"Results on {birds}") < text.index(f"Results on {trees}")
    assert text.count(last.protocol()) == 2  # once an evaluation: both have the same


def test_the_report_has_the_classes_and_the_confusions(run, tmp_path):
    photos = write_images(tmp_path / "photos", 20)
    for file in sorted((photos / "dark").iterdir())[:8]:
        file.rename(photos / "light" / file.name)  # labels that no classifier can learn
    outcome = evaluate(run, photos, protocols=["knn"], metrics=["f1"], floors=False, cache=None, device="cpu")
    for text in (
        page(run, photos),
        report_evaluation(outcome, photos, tmp_path / "page.html").read_text(encoding="utf-8"),
    ):
        assert "2 further metrics" not in text
        assert "6 further metrics of the trained network" in text
        assert "light taken for dark" in text
        assert "The most confused classes</h2>" in text


def test_results_of_earlier_weights_are_not_shown_as_those_of_the_present_ones(run, tmp_path):
    """As in a run that was extended after it was evaluated."""
    photos = write_images(tmp_path / "photos", 4)
    evaluate(run, photos, protocols=["knn"], device="cpu", precision="fp32", floors=False)
    assert f"Results on {photos}" in page(run, photos)
    content = json.loads((run / EVALUATION).read_text())
    (run / EVALUATION).write_text(json.dumps({**content, "digest": "of other weights"}))
    text = page(run, photos)
    assert f"Results on {photos}" not in text
    assert "1 evaluation of earlier weights of this run left out" in text


def test_what_a_sharded_checkpoint_holds_is_drawn(run):
    folder = RunFolder(run)
    before = trained_method(folder)
    (file,) = checkpoint.paths(folder.checkpoints)
    facts = {"step": 1, "total": 1, "elapsed": 0.0, "notes": {}}
    sharded_checkpoint.save(file.with_suffix(""), before, torch.optim.AdamW(before.parameters()), facts)
    file.unlink()
    after = trained_method(folder).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.state_dict().items())


def test_a_damaged_history_is_set_aside_and_stays(run, tmp_path):
    photos = write_images(tmp_path / "photos", 4)
    (run / EVALUATION).write_text('{"results": 3')
    assert f"No results: {run / EVALUATION} is damaged" in page(run, photos)
    evaluate(run, photos, protocols=["knn"], device="cpu", precision="fp32", floors=False)
    assert len(history.read(run / EVALUATION)) == 1
    assert (run / f"{EVALUATION}.damaged").read_text() == '{"results": 3'


def score(k, value, subject="trained"):
    return Score(
        subject=subject, protocol="knn", value=value, interval95=(value, value), k=k, T=0.07, crop="c",
        split="s", seed=0, n_train=5, n_test=5, classes=2, majority=0.5,
    )  # fmt: skip


def evaluated(*results, comparisons=(), data="d"):
    return Evaluation(
        model="m", digest="0", data=data, results=results, comparisons=comparisons, notes=(), skipped=()
    )


def test_a_history_that_cannot_be_written_is_a_note(tmp_path):
    (tmp_path / "file").touch()
    told = history.record(tmp_path / "file" / EVALUATION, evaluated(score(20, 0.5)))
    assert told.results[0].value == 0.5
    assert told.notes[0].startswith(f"not recorded in {tmp_path / 'file' / EVALUATION} (")


def test_the_report_shows_the_headline_k_alone():
    """Of several k only k = 20 is in the table, as in what `omma evaluate` prints."""
    read = ReportedEvaluation.read(evaluated(*(score(k, k / 1000) for k in (10, 20, 100))).to_json(), 20)
    assert [r.value for r in read.scores] == [0.02]


@pytest.mark.parametrize(
    ("intervals", "level"),
    [([(0.1, 0.2)], "good"), ([(-0.1, 0.2)], "warn"), ([(0.1, 0.2), (-0.2, -0.1)], "bad"), ([], None)],
)
def test_the_colour_follows_the_comparison_with_the_untrained_network(intervals, level):
    """Whatever raw pixels score."""
    comparisons = [
        *(Comparison("knn", "untrained", 20, sum(i) / 2, i) for i in intervals),
        Comparison("knn", "pixels", 20, 0.3, (0.2, 0.4)),
    ]
    told = evaluated(score(20, 0.5), comparisons=tuple(comparisons)).to_json()
    assert ReportedEvaluation.read(told, 20).level == level
