"""Real runs that collapse on purpose are reported, with a remedy; healthy ones are not."""

import pytest

from omma import methods
from omma.data.sources.collection import ArrayImages
from omma.data.sources.demo_digits import make_digits
from omma.pretraining import readings, requirements
from omma.pretraining.events import Read
from omma.pretraining.folder import RunFolder
from omma.verbs.pretrain import pretrain

SIZE, BATCH = 16, 32
LITTLE = {
    "prototypes": 64, "head_hidden": 64, "head_bottleneck": 32, "hidden": 64, "out": 32, "codes": 32,
    "directions": 64,
}  # fmt: skip


QUICK = ("simclr", "mae", "supervised")  # one that compares images, one that hides patches, one with labels


def on_their_own(*quick):
    """Methods that need no other model, no captions, sequences or columns."""
    for name in methods.names():
        config = methods.get(name).small(SIZE, "vit-n/8").config
        needs, frames = requirements.needs_of(name, config), methods.get(name).frames(config)
        if needs.model is None and not needs.text and frames is None and not needs.fields:
            yield pytest.param(name, marks=[] if name in quick else pytest.mark.slow)


@pytest.fixture(scope="module")
def images():
    digits = make_digits(256, 8, size=24)
    return ArrayImages(digits.train, digits.train_labels)


@pytest.fixture(autouse=True)
def all_readings(monkeypatch):
    """Each that is due, however long one takes: of a rate that falls again the end may show nothing."""
    monkeypatch.setattr(readings, "SHARE", 1e9)


def verdicts(images, folder, method, rate=1.0, steps=100, **options):
    model = "vit-n/4" if method == "mae" else "vit-n/8"
    recipe = methods.get(method).small(SIZE, model)
    little = {k: v for k, v in LITTLE.items() if hasattr(recipe.config, k)}
    if hasattr(recipe.config, "local_crops") and recipe.config.local_crops:
        little |= {"local_crops": 2, "local_size": 16}
    events = []
    result = pretrain(
        images, method=method, model=model, image_size=SIZE, batch_size=BATCH, steps=steps, device="cpu",
        precision="fp32", lr=rate * recipe.lr * (BATCH / recipe.batch) ** 0.5, out=folder / "run",
        model_options={"depth": 2} if method in (*QUICK, "dino") else {},
        options={**little, **options}, listen=events.append,
    )  # fmt: skip
    read = [event.verdict for event in events if isinstance(event, Read)]
    logged = [line["text"] for line in RunFolder(folder / "run").metrics() if line["event"] == "health"]
    assert logged == list(map(str, read))
    assert result.verdict == read[-1]
    return read


@pytest.mark.parametrize("method", on_their_own(*QUICK))
def test_healthy_runs_are_not_accused(images, tmp_path, method):
    assert "collapsed" not in {verdict.state for verdict in verdicts(images, tmp_path, method)}


@pytest.mark.slow
def test_the_first_steps_teach_nothing(images, tmp_path):
    assert verdicts(images, tmp_path, "simclr", steps=10)[-1].state == "idle"


def test_without_centring_dino_collapses(images, tmp_path):
    quick = {"momentum": 0.9}  # a teacher that follows soon
    assert "bad" not in {v.level for v in verdicts(images, tmp_path / "with", "dino", **quick)}
    last = verdicts(images, tmp_path / "without", "dino", centring="off", **quick)[-1]
    assert last.state == "collapsed"
    assert "centring off" in last.remedy


@pytest.mark.slow  # tests/pretraining/test_health.py tells a uniform teacher
def test_at_temperature_1_dino_teaches_nothing(images, tmp_path):
    last = verdicts(images, tmp_path, "dino", teacher_temp=1.0, teacher_temp_start=1.0)[-1]
    assert last.level == "bad"
    assert "uniform" in last.text
    assert "teacher-temp" in last.remedy


@pytest.mark.parametrize("method", on_their_own("simclr", "mae"))
def test_a_thousandfold_learning_rate_is_reported(images, tmp_path, method):
    """Where it leads, to one point, to a few directions or to noise, the processor's rounding decides.

    So does whether the features come back as the rate falls.
    """
    spread = {"koleo": 0.0} if method == "dinov2" else {}  # KoLeo keeps images apart at any rate
    reported = verdicts(images, tmp_path, method, rate=1000.0, **spread)
    assert any("--lr" in v.remedy for v in reported if v.level != "good")
