"""CLIP's tokenizer: numbers of CLIP's own code, its pattern, oddities of Unicode, merges that are learned."""

import csv
import gzip
import io
import random
import sys
import unicodedata
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from omma.core.protocols import Tokenizer
from omma.data import text_tokenizer

DATA = Path(__file__).parents[2].parent / "shared" / "data"
VOCABULARY, PAIRS = DATA / "taxonomy_vocab_core.zip", DATA / "flickr8k_1000_s192.zip"
# CLIP's pattern for words [github.com/openai/CLIP, simple_tokenizer.py], as what it is compared with
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@pytest.fixture(scope="session")
def merges(tmp_path_factory):
    """CLIP's own file."""
    if not VOCABULARY.exists():
        pytest.skip(f"CLIP's merges are not there ({VOCABULARY})")
    file = tmp_path_factory.mktemp("clip") / "bpe_simple_vocab_16e6.txt.gz"
    file.write_bytes(zipfile.ZipFile(VOCABULARY).read("clip/bpe_simple_vocab_16e6.txt.gz"))
    return file


@pytest.fixture(scope="session")
def clips(merges):
    return text_tokenizer.Tokenizer(text_tokenizer.read_merges(merges))


def captions():
    if not PAIRS.exists():
        pytest.skip(f"the captions are not there ({PAIRS})")
    text = zipfile.ZipFile(PAIRS).read("labels.csv").decode()
    return [caption for row in list(csv.reader(io.StringIO(text)))[1:] for caption in row[1:]]


# ---------------------------------------------------------------- with CLIP's merges
def test_the_usual_numbers(clips):

    assert (clips.vocabulary, clips.start, clips.end, clips.context) == (49_408, 49_406, 49_407, 77)
    row = clips(["a photo of a cat."])[0].tolist()
    assert row[:9] == [49_406, 320, 1125, 539, 320, 2368, 269, 49_407, 0]
    assert len(row) == 77


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Two dogs, isn't it?", [1237, 3255, 267, 2923, 713, 585, 286]),
        ("Café naïve 日本 🙂 it's 2024!",
         [15304, 1097, 35689, 563, 39121, 19277, 361, 14860, 585, 568, 273, 271, 273, 275, 256]),
        ("&amp;lt;b&amp;gt;  they'LL\t\u3000go", [283, 321, 285, 889, 1342, 861]),
        ("<|endoftext|> x", [49407, 343]),
        ("ﬁne ½ Ⅷ ² İstanbul ΣΑΣ",
         [171, 105, 223, 1422, 33613, 158, 227, 371, 41175, 328, 16384, 11231, 139, 225, 138, 109, 139, 480]),
    ],
)  # fmt: skip
def test_numbers_of_the_papers_code(clips, text, numbers):
    """openai/CLIP's SimpleTokenizer.encode, with ftfy.fix_text replaced by the identity."""
    assert clips.encode(text) == numbers


def test_captions_as_transformers_reads_them(clips, merges):
    transformers = pytest.importorskip("transformers", reason="transformers (dev group) is not installed")
    lines = gzip.decompress(merges.read_bytes()).decode().split("\n")[1 : text_tokenizer.MERGES + 1]
    pairs = [tuple(line.split()) for line in lines]
    printed = [chr(b) for b in text_tokenizer._alphabet()[:188]] + [chr(0x100 + k) for k in range(68)]
    names = [
        *printed,
        *(c + "</w>" for c in printed),
        *("".join(p) for p in pairs),
        text_tokenizer.START,
        text_tokenizer.END,
    ]
    theirs = transformers.CLIPTokenizer(vocab={n: k for k, n in enumerate(names)}, merges=pairs)
    for caption in captions():
        assert [clips.start, *clips.encode(caption), clips.end] == theirs(caption).input_ids


def test_other_forms_of_the_file(clips, merges, tmp_path):
    lines = gzip.decompress(merges.read_bytes()).decode().split("\n")
    plain = tmp_path / "bpe_simple_vocab_16e6.txt"
    plain.write_bytes("\n".join(lines).encode())
    hugging = tmp_path / "merges.txt"  # as transformers writes it
    hugging.write_bytes("\n".join(["#version: 0.2", *lines[1 : text_tokenizer.MERGES + 1], ""]).encode())
    bare = tmp_path / "bare.txt"
    bare.write_bytes("\r\n".join(lines[1 : text_tokenizer.MERGES + 1]).encode())
    for file in (plain, hugging, bare):
        assert np.array_equal(text_tokenizer.read_merges(file), clips.merges)


def test_back_to_text(clips):
    assert clips.decode(clips.encode("Two dogs, isn't it?")) == "two dogs , isn 't it ? "
    assert clips.decode(clips.encode("日本 🙂")) == "日本 🙂 "


# ---------------------------------------------------------------- how text is cut into words
def words(tokenizer, text):
    return [part for word in tokenizer.words(text) for part in tokenizer.parts(word)]


def reference(regex, pattern, text):
    """As CLIP's code cuts, without ftfy."""
    import html

    text = html.unescape(html.unescape(text)).strip()
    return pattern.findall(regex.sub(r"\s+", " ", text).strip().lower())


def test_every_character_is_what_it_is_to_clips_pattern():
    regex = pytest.importorskip("regex", reason="regex (comes with transformers, dev group) is not installed")
    pattern, tokenizer = regex.compile(PATTERN, regex.IGNORECASE), text_tokenizer.Tokenizer()
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if unicodedata.category(character) in ("Cn", "Cs"):
            continue  # not in this Python's Unicode, or half of a pair
        text = f"a{character}b 1{character}2 !{character}!"
        assert words(tokenizer, text) == reference(regex, pattern, text), hex(number)


def test_random_texts_are_cut_as_by_clips_pattern():
    regex = pytest.importorskip("regex", reason="regex (comes with transformers, dev group) is not installed")
    pattern, tokenizer = regex.compile(PATTERN, regex.IGNORECASE), text_tokenizer.Tokenizer()
    draw = random.Random(0)
    letters = "aAbſsS'tTrReEvVmMlLdD <|>!?&;\x1c\x85\u3000é½²Ⅷ一ⅷ\u0301\u0345_- \t\nİΣςK#27"
    whole = ["<|endoftext|>", "<|STARTOFTEXT|>", "<|ſtartoftext|>", "'ſ", "'LL", "&amp;amp;", "&nbsp;"]
    for _ in range(20_000):
        parts = [draw.choice(whole if draw.random() < 0.1 else letters) for _ in range(draw.randint(0, 14))]
        text = "".join(parts)
        assert words(tokenizer, text) == reference(regex, pattern, text), ascii(text)


def test_where_it_differs_from_ftfy():
    """ftfy would repair the first, make the quote of the second straight, take the ligature apart."""
    tokenizer = text_tokenizer.Tokenizer()
    assert words(tokenizer, "cafÃ©") == ["cafã", "©"]
    assert words(tokenizer, "it\u2019s") == ["it", "\u2019", "s"]
    assert words(tokenizer, "ﬁne") == ["ﬁne"]


# ---------------------------------------------------------------- bytes alone
def test_bytes_alone():
    tokenizer: Tokenizer = text_tokenizer.Tokenizer(context=8)
    assert (tokenizer.vocabulary, tokenizer.end) == (514, 513)
    a, b = ord("a") - 0x21, ord("b") - 0x21 + 256  # the second ends its word
    assert tokenizer(["ab", "", "a b aaaaaaaa"]).tolist() == [
        [512, a, b, 513, 0, 0, 0, 0],
        [512, 513, 0, 0, 0, 0, 0, 0],
        [512, a + 256, b, a, a, a, a, 513],
    ]
    assert [tokenizer.fits(t) for t in ("abcdef", "abcdefg")] == [True, False]


def test_any_text_comes_back_but_for_case_and_space():
    tokenizer = text_tokenizer.Tokenizer()
    for text in (
        "",
        " ",
        "\x00\x7f",
        "日本 🙂",
        "\ufffd",
        "e\u0301",
        "\u202ertl",
        "\U0001f469\u200d\U0001f680",
    ):
        back = tokenizer.decode(tokenizer.encode(text))
        assert back.replace(" ", "") == "".join(text.lower().split())
    assert tokenizer.decode([255]) == "\ufffd"


# ---------------------------------------------------------------- learned
def test_the_commonest_pair_comes_first():
    merges = text_tokenizer.learned(["low low low lower", "far"], 3)
    tokenizer = text_tokenizer.Tokenizer(merges)
    assert [tokenizer.decode([512 + k]) for k in range(2)] == ["lo", "low "]
    assert tokenizer.encode("low lower")[0] == 513


def test_learned_words_become_single_numbers():
    tokenizer = text_tokenizer.Tokenizer(text_tokenizer.learned(["A dog runs.", "a Dog sits.", "once"], 1000))
    assert len(tokenizer.encode("a dog")) == 2
    assert len(tokenizer.encode("once")) == 4  # a pair that occurs but once is not joined
    assert text_tokenizer.learned(["a dog runs", "a dog"], 0).shape == (0, 2)
    assert text_tokenizer.learned([], 10).shape == (0, 2)


def test_learning_is_the_same_each_time_and_counts_as_written_out():
    texts = [f"{a}{b} {b}{a}n {a}" for a in ("an", "na", "ban") for b in ("a", "nan", "x")]
    merges = text_tokenizer.learned(texts, 40)
    assert np.array_equal(merges, text_tokenizer.learned(texts, 40))
    plain = text_tokenizer.Tokenizer()
    words_ = [plain.joined(part) for t in texts for word in plain.words(t) for part in plain.parts(word)]
    for k, pair in enumerate(merges.tolist()):
        counts: dict = {}
        for word in words_:
            for each in pairwise(word):
                counts[each] = counts.get(each, 0) + 1
        most = max(counts.values())
        assert tuple(pair) == min(each for each, n in counts.items() if n == most)
        words_ = [text_tokenizer._merged(word, tuple(pair), 512 + k) for word in words_]


# ---------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"#version: 0.2\na b\nab c d\n", "line 3: 'ab c d' does not merge two tokens"),
        (b"a b\nq zz\n", "line 2: 'q zz' does not merge"),
        (b"a b\na b\n", "line 2: 'a b' does not merge"),
        (b"\xff\xfe\n", "cannot be read as merges"),
        (b"\x1f\x8bbroken", "cannot be read as merges"),
        (b'{"a": 1}', "line 1"),
    ],
)
def test_what_is_no_file_of_merges(tmp_path, content, why):
    (tmp_path / "m.txt").write_bytes(content)
    with pytest.raises(ValueError, match=why) as error:
        text_tokenizer.read_merges(tmp_path / "m.txt")
    assert "\n" not in str(error.value)


def test_refused():
    with pytest.raises(ValueError, match="cannot be read"):
        text_tokenizer.read_merges("nowhere.txt")
    with pytest.raises(ValueError, match="context=2"):
        text_tokenizer.Tokenizer(context=2)
    for damaged in (np.array([[0, 512]]), np.array([[-1, 3]]), np.array([1, 2]), np.array([[0.5, 1.0]])):
        with pytest.raises(ValueError, match="its tokenizer's merges are damaged"):
            text_tokenizer.checked(damaged, "run")
