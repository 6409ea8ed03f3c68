"""CLIP's byte-level BPE [Sennrich 2015, arXiv 1508.07909; Radford 2021, arXiv 2103.00020]: text to numbers.

A text is unescaped (html), cleaned of white space and lower-cased, cut into words, and each word's UTF-8
bytes are joined pair by pair in the order of the merges. Numbers: 256 bytes, 256 bytes that end a word, a
number a merge, <|startoftext|> and <|endoftext|>: 49,408 with CLIP's merges.

It gives what CLIP's own code gives without its `ftfy.fix_text`, which repairs text that was decoded wrongly
("cafÃ©" to "café"), makes curly quotes straight and takes ligatures and full-width letters apart. Here such
text stays as it is written. Which characters are letters is Python's Unicode's to say.
"""

import gzip
import html
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from omma.core.errors import line

CONTEXT = 77  # numbers that CLIP reads of a text, the first and the last included
MERGES = 49_152 - 256 - 2  # that CLIP takes from its file, which has more
START, END = "<|startoftext|>", "<|endoftext|>"
_CACHE = 500_000  # words; then it begins anew

# regex's \s, which CLIP's code uses, does not count the separators 1c to 1f as white space; Python's does
_WHITE = re.compile(r"[^\S\x1c-\x1f]+")
# matched as CLIP's pattern does: without regard to case, for which a long s is an s
_FIRST = re.compile(r"<\|[sſ]tartoftext\|>|<\|endoftext\|>|'(?:[sſtmd]|re|ve|ll)")


def _alphabet() -> list[int]:
    """Bytes in the order of their numbers: those that print in Latin-1 first."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printed + [b for b in range(256) if b not in set(printed)]


def read_merges(file: str | Path) -> Int[np.ndarray, "m 2"]:
    """The merges of a file as pairs of the numbers that they join; merge k makes number 512 + k.

    file: CLIP's own (bpe_simple_vocab_16e6.txt.gz), the same unpacked, or transformers' merges.txt: a line a
    merge, two tokens, a space between them, </w> at a word's end; the first line may tell a version. Of more
    than CLIP's 48,894 the first are taken. Raises ValueError in one line for anything else.
    """
    path = Path(file)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as merges ({line(error)}); give CLIP's bpe_simple_vocab_16e6.txt.gz"
        ) from None
    # the file writes a byte as a character that prints: itself where it does, else one from 0x100 on
    printed = [chr(b) for b in _alphabet()[:188]] + [chr(0x100 + k) for k in range(68)]
    numbers = {c: k for k, c in enumerate(printed)} | {c + "</w>": 256 + k for k, c in enumerate(printed)}
    pairs = []
    lines = text.split("\n")  # and nothing else: other separators may be tokens
    first = 1 if "#version" in lines[0] else 0
    for number, each in enumerate(lines[first:], first + 1):
        if len(pairs) == MERGES:
            break
        parts = each.split()
        if not parts and number == len(lines):
            continue  # after the last line's end
        joined = "".join(parts)
        if len(parts) != 2 or not all(part in numbers for part in parts) or joined in numbers:
            raise ValueError(
                f"{path}, line {number}: {each[:40]!r} does not merge two tokens of lines above into a new "
                "one; give CLIP's bpe_simple_vocab_16e6.txt.gz or a merges.txt of its kind"
            )
        numbers[joined] = 512 + len(pairs)
        pairs.append((numbers[parts[0]], numbers[parts[1]]))
    return np.array(pairs, np.int32).reshape(-1, 2)


def learned(texts: Iterable[str], most: int) -> Int[np.ndarray, "m 2"]:
    """Merges of the texts' own: again and again the commonest pair within words [Sennrich 2015, algorithm 1].

    Of equally common pairs the one with the lower numbers. At most so many, and none that occurs but once.
    """
    plain = Tokenizer()
    counted = Counter(part for text in texts for word in plain.words(text) for part in plain.parts(word))
    words = [list(plain.joined(part)) for part in counted]
    times = list(counted.values())
    count: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)  # words that a pair is (or was) in
    for i, word in enumerate(words):
        for pair in pairwise(word):
            count[pair] += times[i]
            where[pair].add(i)
    heap = [(-n, pair) for pair, n in count.items()]
    heapify(heap)
    found: list[tuple[int, int]] = []
    while heap and len(found) < most:
        n, pair = heappop(heap)
        if -n != count[pair]:
            continue  # it has changed since, and was put in again
        if -n < 2:
            break
        changed = set()
        for i in where.pop(pair):
            for old in pairwise(words[i]):
                count[old] -= times[i]
                changed.add(old)
            words[i] = _merged(words[i], pair, 512 + len(found))
            for new in pairwise(words[i]):
                count[new] += times[i]
                where[new].add(i)
                changed.add(new)
        for each in changed - {pair}:
            if count[each]:
                heappush(heap, (-count[each], each))
        found.append(pair)
    return np.array(found, np.int64).reshape(-1, 2)


def _merged(numbers: list[int], pair: tuple[int, int], into: int) -> list[int]:
    """One number wherever the pair stands, from the left."""
    found, i = [], 0
    while i < len(numbers):
        if tuple(numbers[i : i + 2]) == pair:
            found.append(into)
            i += 2
        else:
            found.append(numbers[i])
            i += 1
    return found


def checked(merges: Int[np.ndarray, "m 2"], source: str) -> Int[np.ndarray, "m 2"]:
    """The same as int64; ValueError where they join numbers that no merge before them makes."""
    merges = np.asarray(merges)
    known = 512 + np.arange(len(merges))[:, None] if merges.ndim == 2 and merges.shape[1] == 2 else None
    if known is None or merges.dtype.kind not in "iu" or (merges < 0).any() or (merges >= known).any():
        raise ValueError(f"{source}: its tokenizer's merges are damaged; copy it again")
    return merges.astype(np.int64)


def trimmed(tokens: Int[Tensor, "b l"], end: int) -> Int[Tensor, "b m"]:
    """Without columns that follow every row's end, to a multiple of 8: they cost time and change nothing."""
    longest = int((tokens == end).int().argmax(1).max()) + 1 if len(tokens) else 1
    return tokens[:, : -(-longest // 8) * 8]


class Tokenizer:
    """Texts to numbers and back; `protocols.Tokenizer`.

    merges: as `read_merges` gives them; none leaves the bytes, 514 numbers in all. context: numbers a text.
    origin: where the merges are from, in words.
    """

    def __init__(
        self, merges: Int[np.ndarray, "m 2"] | None = None, context: int = CONTEXT, origin: str = ""
    ) -> None:
        if context < 3:
            raise ValueError(f"context={context}: at least 3, for a start, an end and something in between")
        none = np.zeros((0, 2), np.int64)
        self.merges = none if merges is None else checked(merges, "the tokenizer")
        self.context, self.origin = context, origin
        self.start = 512 + len(self.merges)
        self.end = self.start + 1
        self.vocabulary = self.end + 1
        self._rank = {pair: k for k, pair in enumerate(map(tuple, self.merges.tolist()))}
        self._byte = {b: k for k, b in enumerate(_alphabet())}
        self._words: dict[str, tuple[int, ...]] = {}  # by what stands between white space
        # the one character that no part of CLIP's pattern matches
        self._kinds = {"\u0345": ""}

    def words(self, text: str) -> list[str]:
        """What stands between white space, lower-cased, html taken back twice as in CLIP's code."""
        text = html.unescape(html.unescape(text)).strip()
        return _WHITE.sub(" ", text).strip().lower().split(" ")

    def encode(self, text: str) -> list[int]:
        """Numbers of a text, without start and end, uncut."""
        found: list[int] = []
        for word in self.words(text):
            numbers = self._words.get(word)
            if numbers is None:
                if len(self._words) >= _CACHE:
                    self._words.clear()
                numbers = self._words[word] = tuple(n for part in self.parts(word) for n in self.joined(part))
            found += numbers
        return found

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "b l"]:
        """A row a text: start, the text, end, then zeros. A text that is too long is cut before the end."""
        rows = np.zeros((len(texts), self.context), np.int64)
        for row, text in zip(rows, texts, strict=True):
            numbers = self.encode(text)[: self.context - 2]
            row[: len(numbers) + 2] = [self.start, *numbers, self.end]
        return torch.from_numpy(rows)

    def fits(self, text: str) -> bool:
        """Does nothing of it have to be cut?"""
        return len(self.encode(text)) <= self.context - 2

    def decode(self, numbers: Sequence[int]) -> str:
        """The text of numbers, each word followed by a space; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self._bytes[n] for n in numbers).decode(errors="replace")

    @cached_property
    def _bytes(self) -> list[bytes]:
        one = [bytes([b]) for b in _alphabet()]
        known = one + [b + b" " for b in one]
        for a, b in self.merges.tolist():
            known.append(known[a] + known[b])
        return [*known, START.encode(), END.encode()]

    def _kind(self, character: str) -> str:
        kind = self._kinds.get(character)
        if kind is None:
            kind = self._kinds[character] = unicodedata.category(character)[0]
        return kind

    def parts(self, word: str) -> list[str]:
        """Letters, single digits, runs of other characters; first of all 's, 't, 're, 've, 'm, 'll, 'd."""
        found, i = [], 0
        while i < len(word):
            if match := _FIRST.match(word, i):
                found.append(match[0])
                i = match.end()
                continue
            kind = self._kind(word[i])
            end = i + 1
            if kind == "L":
                while end < len(word) and self._kind(word[end]) == "L":
                    end += 1
            elif kind not in ("N", ""):
                while end < len(word) and self._kind(word[end]) not in ("L", "N", ""):
                    end += 1
            if kind:
                found.append(word[i:end])
            i = end
        return found

    def joined(self, part: str) -> list[int]:
        """The bytes of a part, joined: always the pair whose merge comes first, wherever it stands."""
        if part in (START, END):
            return [self.start if part == START else self.end]
        numbers = [self._byte[b] for b in part.encode(errors="replace")]
        numbers[-1] += 256
        while len(numbers) > 1:
            ranks = [self._rank.get(pair, len(self._rank)) for pair in pairwise(numbers)]
            best = min(ranks)
            if best == len(self._rank):
                break
            numbers = _merged(numbers, (int(self.merges[best, 0]), int(self.merges[best, 1])), 512 + best)
        return numbers
