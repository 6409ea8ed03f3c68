"""CLIP's tokenizer: numbers of CLIP's own code, its pattern, oddities of Unicode, merges that are learned."""

import csv
import gzip
import io
import pickle
import random
import sys
import unicodedata
import zipfile
from collections import Counter
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
    printed = [chr(b) for b in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144))]
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
def pieces(text):
    cut = text_tokenizer._SPLIT.pre_tokenize_str(text_tokenizer.clean(text))
    return [piece for piece, _ in cut]


def reference(regex, pattern, text):
    """As CLIP's code cuts, without ftfy."""
    import html

    text = html.unescape(html.unescape(text)).strip()
    return pattern.findall(regex.sub(r"\s+", " ", text).strip().lower())


@pytest.mark.parametrize("step", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_every_character_is_what_it_is_to_clips_pattern(step):
    """Of long runs of one kind, ideographs, syllables and private use, each `step`-th."""
    regex = pytest.importorskip("regex", reason="regex (comes with transformers, dev group) is not installed")
    pattern = regex.compile(PATTERN, regex.IGNORECASE)
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        category = unicodedata.category(character)
        if category in ("Cn", "Cs"):
            continue  # unassigned in this Python's Unicode, or half of a surrogate pair
        if category in ("Lo", "Co") and number >= 0x3400 and number % step:
            continue
        text = f"a{character}b 1{character}2 !{character}!"
        assert pieces(text) == reference(regex, pattern, text), hex(number)


def test_random_texts_are_cut_as_by_clips_pattern():
    regex = pytest.importorskip("regex", reason="regex (comes with transformers, dev group) is not installed")
    pattern = regex.compile(PATTERN, regex.IGNORECASE)
    draw = random.Random(0)
    letters = "aAbſsS'tTrReEvVmMlLdD <|>!?&;\x1c\x85\u3000é½²Ⅷ一ⅷ\u0301\u0345_- \t\nİΣςK#27"
    whole = ["<|endoftext|>", "<|STARTOFTEXT|>", "<|ſtartoftext|>", "'ſ", "'LL", "&amp;amp;", "&nbsp;"]
    for _ in range(5_000):
        chosen = [draw.choice(whole if draw.random() < 0.1 else letters) for _ in range(draw.randint(0, 14))]
        text = "".join(chosen)
        assert pieces(text) == reference(regex, pattern, text), ascii(text)


def test_where_it_differs_from_ftfy():
    """ftfy would repair the first, make the quote of the second straight, take the ligature apart."""
    assert pieces("cafÃ©") == ["cafã", "©"]
    assert pieces("it\u2019s") == ["it", "\u2019", "s"]
    assert pieces("ﬁne") == ["ﬁne"]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("cafÃ©", "café"),
        ("it\u2019s", "it's"),
        ("ﬁne", "fine"),
        ("\uff21\uff22\uff11", "ab1"),
        ("&EACUTE;t&eacute;", "été"),
        ("plain", "plain"),
    ],
)
def test_repaired_as_clips_code_does(text, cleaned):
    ftfy = pytest.importorskip("ftfy", reason="ftfy (dev group) is not installed")
    assert text_tokenizer.clean(text, repaired=True) == cleaned
    assert text_tokenizer.clean(text, repaired=True) == text_tokenizer.clean(ftfy.fix_text(text))
    tokenizer = text_tokenizer.Tokenizer(repaired=True)
    assert tokenizer.encode(text) == text_tokenizer.Tokenizer().encode(cleaned)
    assert tokenizer.unrepaired([text]) == []


def test_what_only_ftfy_would_repair_is_said(monkeypatch):
    tokenizer = text_tokenizer.Tokenizer(repaired=True)
    monkeypatch.setattr(text_tokenizer, "_ftfy", lambda: None)
    (line,) = tokenizer.unrepaired(["a dog", "it\u2019s", "R&D", "two\tdogs\n"])
    assert line.startswith("2 of 4 texts")
    assert "hf" in line
    assert tokenizer.unrepaired(["a dog", "it's"]) == []
    assert text_tokenizer.Tokenizer().unrepaired(["it\u2019s"]) == []  # which never repairs
    assert tokenizer.encode("it\u2019s") == text_tokenizer.Tokenizer().encode("it\u2019s")


def test_whatever_ftfy_changes_is_counted():
    """The characters that `unrepaired` counts are all that ftfy changes, white space apart."""
    ftfy = pytest.importorskip("ftfy", reason="ftfy (dev group) is not installed")
    for number in (*range(0x3000), *range(0xFB00, 0xFB07), *range(0xFF00, 0x10000)):
        text = f"a{chr(number)}b"
        if " ".join(ftfy.fix_text(text).split()) != " ".join(text.split()):
            assert text_tokenizer._REPAIRABLE.search(text), hex(number)


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
    corpus = [plain.encode(piece) for text in texts for piece in pieces(text)]
    for k, pair in enumerate(merges.tolist()):
        counts = Counter(each for piece in corpus for each in pairwise(piece))
        most = max(counts.values())
        assert tuple(pair) == min(each for each, n in counts.items() if n == most)
        corpus = [merged(piece, tuple(pair), 512 + k) for piece in corpus]


def merged(ids, pair, into):
    """One id wherever the pair stands, from the left."""
    out, i = [], 0
    while i < len(ids):
        match = tuple(ids[i : i + 2]) == pair
        out.append(into if match else ids[i])
        i += 2 if match else 1
    return out


# ---------------------------------------------------------------- golden
TEXTS = [
    "a photo of a cat. a photo of the cat's hat",
    "the cats that sat; a dog's photo, isn't it?",
    "der Kaffee, das Café, naïve cafés 2024 20 24",
    "日本 日本語 🙂🙂 🙂 aaaa aaaaaa !!! !!!!",
    "photos of cats and dogs and hats",
]
LEARNED = [
    (64, 64), (66, 64), (71, 78), (79, 514), (515, 83), (0, 0), (64, 339), (78, 325), (83, 71), (83, 338),
    (172, 253), (516, 334), (522, 247), (6, 338), (64, 77), (64, 320), (67, 78), (69, 127), (98, 162),
    (162, 245), (512, 527), (513, 339), (513, 521), (513, 529), (520, 324), (524, 480), (526, 323),
    (530, 250), (531, 539),
]  # fmt: skip


def test_merges_learned_by_version_0_1():
    """A run resumes only with the tokenizer that it began with."""
    assert text_tokenizer.learned(TEXTS, 60).tolist() == [list(pair) for pair in LEARNED]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("a photo of a cat's hat.", [320, 523, 519, 320, 533, 525, 71, 518, 269]),
        ("Café NAÏVE 日本語 🙂🙂!",
         [535, 358, 77, 64, 127, 107, 85, 324, 540, 105, 164, 103, 508, 524, 224, 524, 224, 256]),
        ("isn't it? they'LL 2024",
         [72, 82, 333, 6, 339, 72, 339, 286, 520, 68, 344, 6, 75, 331, 273, 271, 273, 275]),
        ("&amp;lt;b&amp;gt;  the\t\u3000cats", [283, 321, 285, 536, 534]),
        ("<|endoftext|> a!<|endoftext|>",
         [542, 320, 0, 27, 347, 68, 77, 528, 69, 83, 68, 87, 339, 91, 285]),
        ("ΣΑΣ İ ﬁ ½ \ud800 \x1c a\u0345b",
         [139, 225, 138, 109, 139, 480, 328, 136, 485, 171, 105, 479, 126, 377, 286, 472, 320, 321]),
        ("aaaaaaa !!!!!!!", [512, 512, 512, 320, 517, 517, 517, 256]),
        ("photo" * 6, [516, 78, 516, 78, 516, 78, 516, 78, 516, 78, 523]),
    ],
)  # fmt: skip
def test_ids_of_version_0_1(text, ids):
    """Lower merges come first wherever they stand; version 0.1 is what trained today's runs."""
    tokenizer = text_tokenizer.Tokenizer(np.array(LEARNED))
    assert tokenizer.encode(text) == ids
    row = tokenizer([text * 20])[0].tolist()
    assert len(row) == 77
    full = tokenizer.encode(text * 20)[:75]
    assert row == [541, *full, 542] + [0] * (75 - len(full))


def test_a_tokenizer_can_be_sent_to_another_process():
    tokenizer = text_tokenizer.Tokenizer(np.array(LEARNED), 16, "here")
    other = pickle.loads(pickle.dumps(tokenizer))
    assert other(TEXTS).tolist() == tokenizer(TEXTS).tolist()
    assert (other.merges.tolist(), other.origin) == (tokenizer.merges.tolist(), "here")


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
    twice = np.array([[0, 1], [1, 2], [512, 2], [0, 513]])  # one token by two ways
    for damaged in (
        np.array([[0, 512]]),
        np.array([[-1, 3]]),
        np.array([1, 2]),
        np.array([[0.5, 1.0]]),
        twice,
    ):
        with pytest.raises(ValueError, match="its tokenizer's merges are damaged"):
            text_tokenizer.checked(damaged, "run")
