"""CoOp: logits and gradients of the published code, schedule, training, what is stored, refusals."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from waves import wave

from omma.adaptation import coop
from omma.backbones.layers import prompts, text
from omma.core.protocols import Extras
from omma.data.text_tokenizer import Tokenizer

NAMES = ("cat", "sea_lion", "a bee")


def paired(context=32):
    """A text tower of formulas, whose tokens are bytes; its images' vectors are given as they are."""
    tower = text.TextTower(vocabulary=514, end=513, context=context, depth=2, dim=32, heads=2, out=8)
    with torch.no_grad():
        for i, (name, p) in enumerate(sorted(tower.named_parameters())):
            scale = 0.02 if p.ndim == 1 or "embed" in name else p.shape[-1] ** -0.5
            p.copy_(wave(*p.shape, phase=i, scale=scale) + float("norm" in name and name.endswith("weight")))
    return text.Paired(tower.eval(), torch.eye(8), Tokenizer(context=context))


# logits of three images, the norm of the context's gradient, and its sixth value: CustomCLIP of
# KaiyangZhou/CoOp ff61507 with this tower and tokenizer, in fp32
GOLDEN = {
    ("end", False): (
        [[-1.65354, -4.11604, -7.5984], [12.73429, 10.08411, 12.72159], [15.41612, 9.77777, 14.285]],
        30.094976, -2.859517,
    ),
    ("end", True): (
        [[-1.65354, -2.01815, -10.18509], [12.73429, 6.56755, 15.33715], [15.41612, 6.99769, 13.06297]],
        44.017597, 4.470223,
    ),
    ("middle", False): (
        [[-1.25899, -0.35382, -7.43026], [12.56321, 8.02463, 12.65427], [13.81738, 7.92405, 13.64026]],
        37.729362, -3.891604,
    ),
    ("middle", True): (
        [[-1.25899, -1.98364, -8.15369], [12.56321, 8.61424, 12.79055], [13.81738, 8.45234, 10.88741]],
        42.325443, 6.449822,
    ),
}  # fmt: skip


@pytest.mark.parametrize("batch", [256, 2])  # as one batch of prompts, or recomputed in batches
@pytest.mark.parametrize(("position", "per_class"), GOLDEN)
def test_logits_and_gradient_of_the_published_code(monkeypatch, position, per_class, batch):
    monkeypatch.setattr(prompts, "BATCH", batch)
    both = paired()
    shape = (3, 4, 32) if per_class else (4, 32)
    context = wave(*shape, scale=0.1).float().requires_grad_()
    images = torch.nn.functional.normalize(wave(3, 8).float(), dim=-1)
    slots = prompts.slots(both, NAMES, 4, position)
    logits = math.exp(3.0) * images @ prompts.features(both.tower, slots, context).T
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2, 1])).backward()
    expected, norm, sixth = GOLDEN[position, per_class]
    assert (logits - torch.tensor(expected)).abs().max() < 2e-5
    assert context.grad.norm().item() == pytest.approx(norm, rel=1e-5)
    assert context.grad.flatten()[5].item() == pytest.approx(sixth, rel=1e-4)


def test_prompts_are_those_of_their_words():
    """Slots filled with the embeddings of words give the vectors of the written prompts."""
    both = paired()
    words = "a photo of"
    ids = both.tokenizer.encode(words)
    learned = prompts.Learned(both.tower.token_embed.weight[ids].detach())
    written = both.texts([f"{words} {name.replace('_', ' ')}." for name in NAMES])
    np.testing.assert_allclose(prompts.class_vectors(both, learned, NAMES), written, atol=2e-6)
    middle = dataclasses.replace(learned, position="middle")
    half = len(ids) // 2
    tokens = [
        [512, *ids[:half], *both.tokenizer.encode("cat"), *ids[half:], *both.tokenizer.encode("."), 513]
    ]
    with torch.no_grad():
        row = torch.nn.functional.normalize(both.tower(torch.tensor(tokens)), dim=-1)
    np.testing.assert_allclose(prompts.class_vectors(both, middle, ["cat"]), row, atol=2e-6)


def test_learning_rate():
    """KaiyangZhou/Dassl.pytorch: ConstantWarmupScheduler over torch's CosineAnnealingLR."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.002)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    expected = [1e-5]
    for _ in range(49):
        expected.append(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    assert [coop.rate(e, 50, 0.002) for e in range(50)] == pytest.approx(expected)


@pytest.mark.parametrize(("shots", "epochs"), [(1, 50), (2, 100), (4, 100), (8, 200), (16, 200), (99, 200)])
def test_epochs_by_shots(shots, epochs):
    assert coop._epochs(np.repeat(np.arange(3), shots)) == epochs


def task(both, shots=8, seed=0):
    """Unit vectors near those of the classes' prompts in a context to be found."""
    rng = np.random.default_rng(seed)
    context = prompts.Learned(wave(4, 32, scale=0.5).float())
    centres = prompts.class_vectors(both, context, NAMES).numpy()
    labels = np.repeat(np.arange(3), shots)
    images = centres[labels] + rng.normal(scale=0.05, size=(3 * shots, 8))
    return (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("tokens", [0, 4])
def test_it_learns(per_class, tokens):
    both = paired(48)
    before = {name: x.clone() for name, x in both.tower.state_dict().items()}
    images, labels = task(both)
    config = coop.Config(tokens=tokens, per_class=per_class, lr=0.01, epochs=60, batch=8)

    def accuracy(learned):
        vectors = prompts.class_vectors(both, learned, NAMES).numpy()
        return float(((images @ vectors.T).argmax(1) == labels).mean())

    steps = []
    found = coop.learn(both, 20.0, images, labels, NAMES, config, progress=steps.append)
    assert found.epochs == 60
    assert found.steps == 180
    assert steps[-1].loss < steps[0].loss
    assert accuracy(found.learned) > 0.7
    vectors = tokens or len(both.tokenizer.encode("a photo of a"))
    assert found.learned.context.shape == ((3,) * per_class + (vectors, 32))
    assert found.loss < found.loss_before
    assert f"{vectors} learned vectors" in found.notes()[0]
    assert all(torch.equal(x, before[name]) for name, x in both.tower.state_dict().items())
    again = coop.learn(both, 20.0, images, labels, NAMES, config)
    assert torch.equal(again.learned.context, found.learned.context)
    other = coop.learn(both, 20.0, images, labels, NAMES, config, seed=1)
    assert not torch.equal(other.learned.context, found.learned.context)


def test_it_says_when_it_gained_nothing():
    learned = prompts.Learned(torch.zeros(4, 32))
    notes = coop.Result(learned, 50, 100, 2.0, 1.5, 3.0).notes()
    assert "CoOp gained nothing on its own images, where its cross-entropy is 2.00" in notes[1]


def test_start():
    both = paired(48)
    generator = torch.Generator().manual_seed(0)
    random = coop._start(both, coop.Config(tokens=400), 3, generator)
    assert random.std().item() == pytest.approx(0.02, rel=0.02)
    assert coop._start(both, coop.Config(tokens=5, per_class=True), 3, generator).shape == (3, 5, 32)
    words = coop._start(both, coop.Config(words="ab", per_class=True), 3, generator)
    assert torch.equal(words[2], both.tower.token_embed.weight[both.tokenizer.encode("ab")])


def test_a_budget_shortens_it(monkeypatch):
    clock = iter(np.arange(0, 1e6, 0.5))
    monkeypatch.setattr(coop.time, "monotonic", lambda: float(next(clock)))
    both = paired()
    images, labels = task(both)
    found = coop.learn(both, 20.0, images, labels, NAMES, coop.Config(tokens=2), seconds=5.0)
    assert 2 <= found.epochs < 20


def test_what_is_stored_takes_new_names():
    both = paired()
    learned = prompts.Learned(wave(4, 32, scale=0.1).float(), "middle")
    extras = learned.extras()
    kept = prompts.restored(Extras(extras.tensors, json.loads(json.dumps(extras.facts))), "run")
    assert kept.position == "middle"
    assert torch.equal(kept.context, learned.context)
    vectors = prompts.class_vectors(both, kept, ["wolf", "cat"])
    torch.testing.assert_close(vectors[1:], prompts.class_vectors(both, kept, ["cat"]))
    assert prompts.restored(Extras({}), "run") is None


def test_a_context_of_each_class():
    both = paired()
    learned = prompts.Learned(wave(3, 4, 32, scale=0.1).float(), "end", NAMES)
    kept = prompts.restored(learned.extras(), "run")
    vectors = prompts.class_vectors(both, kept, NAMES)
    torch.testing.assert_close(prompts.class_vectors(both, kept, NAMES[::-1]), vectors.flip(0))
    with pytest.raises(ValueError, match="3 classes, and none for 'wolf'"):
        prompts.class_vectors(both, kept, ["cat", "wolf"])


@pytest.mark.parametrize(
    "facts",
    [{}, {"prompt": 3}, {"prompt": {"position": "up"}}, {"prompt": {"position": "end", "classes": ["a"]}}],
)
def test_a_damaged_context(facts):
    with pytest.raises(ValueError, match="run: its learned context is damaged"):
        prompts.restored(Extras({prompts.CONTEXT: torch.zeros(4, 32)}, facts), "run")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"position": "front"}, "adapt.position='front': choose"),
        ({"tokens": -1}, "adapt.tokens=-1"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"epochs": 0}, "epochs=0"),
    ],
)
def test_refused(options, why):
    with pytest.raises(ValueError, match=why):
        coop.Config(**options)


def test_names_that_do_not_fit():
    with pytest.raises(ValueError, match="class 'caterpillar': 12 tokens and 20 learned ones do not fit"):
        prompts.slots(paired(), ["cat", "caterpillar"], 20)
    with pytest.raises(ValueError, match=r"adapt.words=' '"):
        coop._start(paired(), coop.Config(words=" "), 3, torch.Generator())
