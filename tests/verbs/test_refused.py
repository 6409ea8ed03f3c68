"""What a method needs and lacks is refused before the first image is decoded."""

import numpy as np
import pytest
from PIL import Image

from omma.data.sources.readers import Files
from omma.verbs.pretrain import pretrain

WITHOUT_LABELS = [
    (("supervised",), {}, "learns from labels.*one folder a class"),
    (("grafit",), {}, "learns from labels.*one folder a class"),
    (("deit",), {"options": {"teacher": "x"}}, "learns from labels.*one folder a class"),
    (("clip",), {}, "learns from captions.*columns `path` and `text`"),
    (("beit",), {}, "learns from a tokenizer.*vqvae.*--method.tokenizer"),
    (("eva",), {}, "learns from .*--method.target"),
    (("mae",), {"model": "vitc-15mf"}, "leave tokens out.*plain ViT"),
    (("mae",), {"model": "swin-t"}, "leave tokens out.*plain ViT"),
    (("ibot", "dinov2", "simmim"), {"model": "vitc-15mf"}, "each patch by itself.*plain ViT"),
    (("dinov2",), {"batch_size": 1}, "batch of 2 at least.*KoLeo.*--batch-size"),
    (("dinov2",), {"batch_size": 1, "options": {"koleo": "0"}}, "Sinkhorn-Knopp compares.*--batch-size"),
    (("dino", "ibot"), {"batch_size": 1, "model": "vit-n/8"}, "Sinkhorn-Knopp compares.*--batch-size"),
    (
        ("dino", "ibot"),
        {"model": "vit-n/8", "options": {"centring": "median"}},
        "centring='median'.*choose",
    ),
    (("simclr", "moco", "lejepa"), {"batch_size": 1}, "batch of 2 at least.*--batch-size"),
    (("moco",), {"batch_size": 1, "options": {"queue": "8"}}, "batch norms compare"),
    (
        ("simclr",),
        {"batch_size": 8, "accumulate": 8},
        "in each of 8 micro-batches.*--batch-size or --accumulate",
    ),
    (("dinov2",), {"model": "swin-t", "options": {"ladder": "3"}}, "hidden.*no such options.*plain ViT"),
    (("mae", "simclr", "vqvae"), {"options": {"scale": "0.5"}}, "scale=.0.5,.: must be two shares"),
    (("mae", "dvae"), {"options": {"decoder_heads": "0"}}, "decoder_heads=0: must be above 0"),
    (("dino",), {"options": {"prototypes": "1"}}, "prototypes=1"),
    (("dinov2",), {"options": {"ladder": "12"}}, "row from 0 to 11"),
]


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        pixels = np.full((32, 32, 3), 60 * i, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(("names", "options", "message"), WITHOUT_LABELS)
def test_before_the_first_image_is_read(folder, monkeypatch, names, options, message):
    def read(*_, **__):
        raise AssertionError("an image was read")

    monkeypatch.setattr(Files, "load", read)
    for name in names:
        with pytest.raises(ValueError, match=message) as error:
            pretrain(folder, method=name, steps=1, out=folder / "run", **options)
        assert "\n" not in str(error.value)
        assert not (folder / "run").exists()


def test_labels_of_one_class_and_a_missing_file_of_merges(folder, monkeypatch):
    table = folder / "table.csv"
    rows = "".join(f"{i}.png,a,a cat\n" for i in range(4))
    table.write_text(f"path,label,text\n{rows}")
    monkeypatch.setattr(Files, "load", lambda *_, **__: pytest.fail("an image was read"))
    for name in ("supervised", "grafit"):
        with pytest.raises(ValueError, match=r"of one class \(a\).*simclr"):
            pretrain(table, method=name, steps=1, out=folder / "run")
    with pytest.raises(ValueError, match=r"--method.merges nowhere.txt: no such file"):
        pretrain(table, method="clip", steps=1, out=folder / "run", options={"merges": "nowhere.txt"})
    assert not (folder / "run").exists()


def test_a_batch_of_one_where_omma_chooses_the_method(folder):
    with pytest.raises(ValueError, match=r"simclr needs a batch of 2 at least.*--batch-size"):
        pretrain(folder, batch_size=1, steps=1, out=folder / "run")
    assert not (folder / "run").exists()


def test_a_batch_of_one_is_no_hindrance_where_nothing_compares(folder):
    options = {"koleo": 0.0, "centring": "mean", "prototypes": 8, "head_hidden": 8, "head_bottleneck": 4}
    result = pretrain(
        folder, method="dinov2", model="vit-n/8", steps=1, batch_size=1, out=folder / "run", options=options
    )
    assert result.steps == 1


def test_deit_without_a_teacher(folder):
    for i, name in enumerate("aabb"):
        (folder / "sorted" / name).mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").rename(folder / "sorted" / name / f"{i}.png")
    with pytest.raises(ValueError, match=r"learns from a teacher.*--method\.teacher"):
        pretrain(folder / "sorted", method="deit", steps=1, out=folder / "run")
