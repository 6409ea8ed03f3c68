"""`omma describe`: sentences from answers, a tiny language model of random weights, what a file keeps."""

import json

import pytest
import torch

from omma.adaptation import describe
from omma.verbs.describe import describe as verb

WORDS = ["<s>", "</s>", "what", "does", "a", "dog", "look", "like", "fur", "red", ".", "cat", "blue"]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A folder of transformers: two words in three are known to it, and its weights are random."""
    transformers = pytest.importorskip("transformers", reason="transformers (dev group) is not installed")
    tokenizers = pytest.importorskip("tokenizers")
    folder = str(tmp_path_factory.mktemp("lm"))
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a")
    engine = tokenizers.Tokenizer(model)
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=engine, bos_token="<s>", eos_token="</s>", unk_token="a"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=8, n_layer=1, n_head=1, n_positions=96, bos_token_id=0, eos_token_id=1
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("answer", "first"),
    [
        ("\n\nA dog has fur. It barks", "A dog has fur."),
        ('**"A dog\nhas fur', "A dog has fur."),
        (" . Then", ""),
        ("", ""),
    ],
)
def test_the_first_sentence(answer, first):
    assert describe.sentence(answer) == first


@pytest.mark.parametrize(
    ("name", "phrase"), [("sea_lion", "a sea lion"), ("owl", "an owl"), ("Airplane", "an Airplane")]
)
def test_articles(name, phrase):
    assert describe.phrase(name) == phrase


def test_a_file_of_sentences(language_model, tmp_path):
    names, out = tmp_path / "names.txt", tmp_path / "out.json"
    names.write_text("dog\n\nblue_cat\ndog\n")
    options = {"answers": 3, "device": "cpu"}
    made = verb(names, language_model, out, seed=1, **options)
    content = json.loads(out.read_text())
    assert list(content) == ["dog", "blue_cat"]
    assert made.made == 2
    assert made.sentences == sum(map(len, content.values()))
    assert all(each.endswith(".") for sentences in content.values() for each in sentences)
    # a class's sentences do not depend on others, nor on torch's state; they depend on the seed
    torch.manual_seed(5)
    names.write_text("blue_cat\n")
    verb(names, language_model, tmp_path / "one.json", seed=1, **options)
    assert json.loads((tmp_path / "one.json").read_text()) == {"blue_cat": content["blue_cat"]}
    verb(names, language_model, tmp_path / "two.json", seed=2, **options)
    assert json.loads((tmp_path / "two.json").read_text()) != {"blue_cat": content["blue_cat"]}
    # what a person has edited stays
    out.write_text(json.dumps({"Dog": ["It barks, éàü."]}), encoding="utf-8")
    names.write_text("dog\nblue_cat\n")
    made = verb(names, language_model, out, seed=1, **options)
    assert (made.made, made.kept) == (1, 1)
    content = json.loads(out.read_text(encoding="utf-8")) | {}
    assert content["Dog"] == ["It barks, éàü."]
    assert list(content) == ["Dog", "blue_cat"]


def test_one_answer_without_sampling(language_model):
    model = describe.load(language_model, torch.device("cpu"))
    (one,) = model.answers("what does a dog look like", 10, 0.0, seed=1)
    assert model.answers("what does a dog look like", 10, 0.0, seed=2) == [one]
    assert len(set(model.answers("what does a dog look like", 10, 1.0, seed=1))) > 1


def test_refused(language_model, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n")
    with pytest.raises(ValueError, match="names no classes"):
        verb(names, language_model, tmp_path / "out.json", device="cpu")
    names.write_text("dog\n")
    with pytest.raises(ValueError, match="cannot be loaded as a causal language model"):
        verb(names, tmp_path, tmp_path / "out.json", device="cpu")
    with pytest.raises(ValueError, match="at least 1 answer"):
        verb(names, language_model, tmp_path / "out.json", answers=0)
    silent = describe.LanguageModel("it", None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(describe.LanguageModel, "answers", lambda *_: [" .", ""])
        with pytest.raises(ValueError, match="it answers nothing about 'dog'"):
            describe.sentences(silent, "dog")
