"""What is explained: a class, words, or the image's likeness to itself; and the images that are gathered."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from explained import TINY, model, noise, preprocess, subject
from PIL import Image

from omma import backbones
from omma.backbones.layers import text
from omma.inspection import occlusion, target
from omma.inspection.gathering import captions, gather
from omma.weights import Model


def clip() -> Model:
    torch.manual_seed(0)
    encoder = backbones.build(name="vit/4", image_size=16, channels=3, **TINY)
    tower = text.TextTower(vocabulary=514, end=513, context=24, depth=1, dim=16, heads=2, out=8)
    extras = text.extras(tower, torch.randn(8, 32), np.zeros((0, 2), np.int32), {})
    return Model(encoder, preprocess(16), {}, extras)


def test_words_are_the_cosine_to_their_text():
    made, pixels = clip(), noise(2, 16)
    asked, answers = target.choose(made, pixels, "a red bird")
    reader = target.text_reader(made, "clip")
    words = torch.from_numpy(reader.vectors(["a red bird"]))
    features = made.encoder(pixels)
    images = features.pooled @ made.extras.tensors[text.PROJECTION].T
    torch.testing.assert_close(
        asked(features, torch.arange(2)), F.cosine_similarity(images, words), atol=1e-6, rtol=0
    )
    assert (asked.unit, asked.names, answers) == ("cosine", ("a red bird",) * 2, ())


def test_likeliest_class_and_a_chosen_one():
    made, pixels = model(), noise(3, 16)
    features, own = made.encoder(pixels), made.classifier
    logits = own.logits(features.pooled)
    likeliest, answers = target.choose(made, pixels)
    torch.testing.assert_close(likeliest(features, torch.arange(3)), logits.max(1).values)
    assert answers[0].startswith(own.classes[int(logits[0].argmax())])
    chosen, _ = target.choose(made, pixels, "2")  # a part of one name alone
    torch.testing.assert_close(chosen(features, torch.tensor([0, 0, 1])), logits[[0, 1, 2], 2])
    torch.testing.assert_close(chosen.share(features, torch.arange(3)), logits.softmax(1)[:, 2])


@pytest.mark.parametrize(
    ("name", "words"),
    [("class", "several classes contain it: choose one, such as class 0"), ("horse", "no such class")],
)
def test_unknown_and_ambiguous_classes(name, words):
    with pytest.raises(ValueError, match=words):
        target.choose(model(), noise(1, 16), name)
    with pytest.raises(ValueError, match="neither classifier nor text tower"):
        target.choose(model(classified=False), noise(1, 16), name)


def test_nothing_is_more_like_an_image_than_itself():
    made = subject(classified=False, n=3)
    same = made.target(made.encoder(made.pixels), torch.arange(3))
    other = made.target(made.encoder(made.pixels), torch.tensor([1, 2, 0]))
    torch.testing.assert_close(same, torch.ones(3))
    assert (other < 1 - 1e-5).all()
    alone = made.only([2])
    torch.testing.assert_close(alone.target(alone.encoder(alone.pixels), torch.tensor([0])), torch.ones(1))
    np.testing.assert_allclose(occlusion.one_map(alone)[0], occlusion.one_map(made)[2], atol=1e-6)


def test_images_are_gathered_from_several_sources(tmp_path):
    for name, shade in (("a", 10), ("b", 200)):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (20, 20), (shade + i,) * 3).save(tmp_path / name / f"{i}.png")
    (tmp_path / "a" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    found = gather([tmp_path / "a", tmp_path / "b" / "2.png"], preprocess(16), most=10)
    assert [path.rsplit("/")[-1] for path in found.paths] == ["0.png", "2.png", "2.png"]
    assert found.pixels.mean((1, 2, 3)).tolist() == pytest.approx(
        [(v / 255 - 0.5) / 0.25 for v in (10, 12, 202)], abs=1e-5
    )
    assert len(found.bad) == 1
    few = gather([tmp_path / "b"], preprocess(16), most=2, seed=1)
    assert len(few.paths) == 2
    assert any("2 images of 3" in note for note in few.notes)
    with pytest.raises(ValueError, match=r"broken|read"):
        gather([tmp_path / "a" / "1.png"], preprocess(16), most=2)


def test_captions():
    assert captions(["ant 0.9"], [""]) == ["ant 0.9"]
    assert captions(["ant 0.9"], ["bee"]) == ["ant 0.9 (label: bee)"]
    assert captions([], ["bee"]) == ["bee"]
