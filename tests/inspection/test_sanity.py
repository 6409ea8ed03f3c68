"""The randomisation test: what becomes random, in which order, and who passes."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from explained import bright, model, squares, subject

from omma.inspection import checks, occlusion, registry, sanity
from omma.inspection.kinds import Kind


def test_rank_correlation_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 5, 5)).round(1)  # with ties
    expected = [stats.spearmanr(x.ravel(), y.ravel())[0] for x, y in zip(a, b)]
    np.testing.assert_allclose(sanity.spearman(a, b), expected)
    np.testing.assert_allclose(sanity.spearman(a, 2 * a + 1), 1)
    np.testing.assert_allclose(sanity.spearman(a, -a), -1)
    assert (sanity.spearman(a, np.ones_like(a)) == 0).all()


def test_layers_become_random_from_the_top():
    made = model(depth=3)
    before = made.encoder.state_dict()
    changed = []
    for _, other in sanity.randomised(made, seed=5, stages=10):
        state = other.encoder.state_dict()
        changed.append({name for name in state if not torch.equal(state[name], before[name])})
    assert not changed[0]  # the classifier alone
    for earlier, later in itertools.pairwise(changed[1:]):
        assert earlier <= later
    blocks = [{n.split(".")[1] for n in names if n.startswith("blocks.")} for names in changed]
    assert blocks[2:5] == [{"2"}, {"1", "2"}, {"0", "1", "2"}]
    random = {n for n, p in made.encoder.named_parameters() if p.std() > 0}  # others start as constants
    assert changed[-1] >= random - {"cls_token"} - {"pos_embed"}
    again = [other.encoder.state_dict() for _, other in sanity.randomised(made, seed=5, stages=10)]
    assert all(torch.equal(again[-1][n], x) for n, x in other.encoder.state_dict().items())
    assert all(torch.equal(before[n], x) for n, x in made.encoder.state_dict().items())  # itself untouched


def test_the_classifier_is_the_first():
    made = model()
    (name, other), *_ = sanity.randomised(made, seed=0)
    assert name == "classifier"
    assert not torch.equal(other.classifier.weight, made.classifier.weight)
    names = [name for name, _ in sanity.randomised(model(classified=False), seed=0)]
    assert "classifier" not in names


def test_networks_without_known_layers_go_by_their_modules():
    groups = sanity.by_stage(model("timm:resnet18", 32).encoder)
    flat = [name for group in groups for name in group]
    assert sorted(flat) == sorted(model("timm:resnet18", 32).encoder.state_dict())
    assert flat[0].startswith("conv1")
    assert flat[-1].startswith("layer4.1")
    assert len(groups) > 8


def test_a_map_of_the_image_fails_and_one_of_the_network_passes():
    """Edges of the picture do not depend on weights; noise of the weights does."""

    def edges(asked):
        return np.abs(np.diff(asked.pixels.mean(1).numpy(), axis=-1))

    def weights(asked):
        seed = int(1000 * sum(float(p.detach().abs().sum()) for p in asked.encoder.parameters()))
        return np.random.default_rng(seed).random((len(asked.pixels), 12, 12))

    made = subject(n=3)
    kinds = [
        Kind(name="edges", explain=occlusion.explain, one_map=edges),
        Kind(name="weights", explain=occlusion.explain, one_map=weights),
    ]
    found = sanity.cascade(kinds, made)
    np.testing.assert_allclose(found.likeness["edges"], 1)
    assert abs(found.at_end("weights")) < sanity.LIMIT
    section, sentences = sanity.test(kinds, made)
    assert [judged.good for judged in section.judged] == [False, True]
    assert "hardly change" in sentences["edges"]
    assert section.arrays["sanity.edges"].shape == (len(found.stages), 3)


def test_the_same_class_is_asked_of_random_networks():
    made = subject(n=2)
    for _, other in sanity.randomised(made.model, 0):
        assert torch.equal(made.with_model(other).target.classes, made.target.classes)
    own = subject(n=2, classified=False)
    *_, (_, other) = sanity.randomised(own.model, 0)
    assert not torch.equal(own.with_model(other).target.own, own.target.own)


def test_what_a_test_finds_stands_beside_the_pictures():
    images, _ = squares(2)
    asked = bright(images)
    kinds = [registry.find("occlusion")]
    made = [kind.explain(asked) for kind in kinds]
    told = checks.applied("insertion", kinds, made, asked)
    assert len(told) == 2
    assert told[0].caption.startswith(made[0].caption)
    assert "Too few images" in told[0].caption
    with pytest.raises(ValueError, match="--test nothing"):
        checks.known(("nothing",))
    nothing = [dataclasses.replace(kinds[0], one_map=None)]
    with pytest.raises(ValueError, match="none of occlusion gives one map"):
        checks.applied("sanity", nothing, made, asked)
