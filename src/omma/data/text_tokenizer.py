"""CLIP's byte-level BPE [Sennrich 2015, arXiv 1508.07909; Radford 2021, arXiv 2103.00020], by `tokenizers`.

A text is cleaned (HTML entities, white space, case) and cut into pieces: words, digits, runs of punctuation.
The UTF-8 bytes of each piece are merged pair by pair in the order of the merges. Token ids: 256 bytes, 256
bytes that end a piece, one id per merge, <|startoftext|> and <|endoftext|>: 49,408 with CLIP's merges.

The ids equal those of CLIP's own code. It begins with `ftfy.fix_text`, which repairs wrongly decoded text
("cafÃ©" to "café"), straightens curly quotes and splits ligatures and full-width letters: a tokenizer that is
`repaired` does so where ftfy is installed. Which characters are letters or digits is decided by the Unicode
version of `tokenizers`.
"""

import functools
import gzip
import html
import importlib
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from jaxtyping import Int
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from omma.core.errors import install_command, line

CONTEXT = 77  # ids per text in CLIP, start and end included
MERGES = 49_152 - 256 - 2  # that CLIP takes from its file, which has more
START, END = "<|startoftext|>", "<|endoftext|>"

# regex's \s, which CLIP's code uses, does not count the separators 1c to 1f as white space; Python's does
_WHITE = re.compile(r"[^\S\x1c-\x1f]+")
# CLIP's pattern ignores case: a long s counts as an s, and U+0345, whose capital is a letter, matches nothing
_PIECE = r"<\|[sſ]tartoftext\|>|<\|endoftext\|>|'(?:[sſtmd]|re|ve|ll)|\p{L}+|\p{N}|[^ \p{L}\p{N}" + "\u0345]+"
_SPLIT = pre_tokenizers.Split(tokenizers.Regex(_PIECE), "removed", invert=True)
_SUFFIX = " "  # marks the byte that ends a piece; CLIP's files write </w>, which a text may contain
# what ftfy may change: all but printable ASCII characters and white space, and HTML's entities
_REPAIRABLE = re.compile(r"[^\t\n\r -~]|&")


@functools.cache
def _ftfy() -> Any:
    """The module; None where it is not installed."""
    try:
        return importlib.import_module("ftfy")
    except ImportError:
        return None


def clean(text: str, repaired: bool = False) -> str:
    """Unescape HTML (twice, as CLIP's code does), lower the case, separate words by single spaces.

    repaired: first repair the text by ftfy, where it is installed.
    """
    if repaired and (ftfy := _ftfy()) is not None:
        text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text)).strip()
    text = _WHITE.sub(" ", text).strip().lower()
    return text.encode(errors="replace").decode()  # a lone surrogate becomes a question mark


def _bytes() -> list[str]:
    """The 512 tokens before the first merge: a printable character for each byte, then with the suffix."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return alphabet + [character + _SUFFIX for character in alphabet]


def _tokens(merges: Int[np.ndarray, "m 2"]) -> list[str]:
    """The token of each id below `Tokenizer.start`."""
    tokens = _bytes()
    for left, right in merges.tolist():
        tokens.append(tokens[left] + tokens[right])
    return tokens


def _engine(model: models.BPE) -> tokenizers.Tokenizer:
    """The library's tokenizer of cleaned texts, with CLIP's way of cutting them into pieces."""
    engine = tokenizers.Tokenizer(model)
    engine.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [_SPLIT, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return engine


def read_merges(file: str | Path) -> Int[np.ndarray, "m 2"]:
    """Read a file of merges as pairs of the ids that they join; merge k makes id 512 + k.

    file: CLIP's own (bpe_simple_vocab_16e6.txt.gz), the same unpacked, or transformers' merges.txt: one merge
    per line, two tokens separated by a space, </w> at the end of a piece; the first line may hold a version.
    Merges beyond CLIP's 48,894 are ignored. Raises ValueError in one line for anything else.
    """
    path = Path(file)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read as merges ({line(error)}); give CLIP's bpe_simple_vocab_16e6.txt.gz"
        ) from None
    ids = {token.replace(_SUFFIX, "</w>"): id for id, token in enumerate(_bytes())}
    merges = []
    lines = text.split("\n")  # not splitlines: other separators may be tokens
    first = 1 if "#version" in lines[0] else 0
    for number, each in enumerate(lines[first:], first + 1):
        if len(merges) == MERGES:
            break
        pair = each.split()
        if not pair and number == len(lines):
            continue  # the file ends with a line break
        joined = "".join(pair)
        if len(pair) != 2 or not all(token in ids for token in pair) or joined in ids:
            raise ValueError(
                f"{path}, line {number}: {each[:40]!r} does not merge two tokens of lines above into a new "
                "one; give CLIP's bpe_simple_vocab_16e6.txt.gz or a merges.txt of its kind"
            )
        ids[joined] = 512 + len(merges)
        merges.append((ids[pair[0]], ids[pair[1]]))
    return np.array(merges, np.int32).reshape(-1, 2)


def learned(texts: Iterable[str], most: int, repaired: bool = False) -> Int[np.ndarray, "m 2"]:
    """Learn up to `most` merges: repeatedly the most frequent pair within pieces [Sennrich 2015, alg. 1].

    Of equally frequent pairs the one with the lowest ids comes first. A pair that occurs once is not merged.
    """
    base = _bytes()
    trainer = trainers.BpeTrainer(
        vocab_size=len(base) + most,
        min_frequency=2,
        end_of_word_suffix=_SUFFIX,
        special_tokens=base,  # so that the ids of bytes, by which ties are broken, do not depend on the texts
        show_progress=False,
    )
    engine = _engine(models.BPE(end_of_word_suffix=_SUFFIX))
    engine.train_from_iterator((clean(text, repaired) for text in texts), trainer)
    model = json.loads(engine.to_str())["model"]
    ids = model["vocab"]
    return np.array([(ids[a], ids[b]) for a, b in model["merges"]], np.int64).reshape(-1, 2)


def checked(merges: Int[np.ndarray, "m 2"], source: str) -> Int[np.ndarray, "m 2"]:
    """Merges as int64; ValueError unless each joins ids of earlier ones into a new token."""
    merges = np.asarray(merges)
    shaped = merges.ndim == 2 and merges.shape[1] == 2 and merges.dtype.kind in "iu"
    valid = shaped and (merges >= 0).all() and (merges < 512 + np.arange(len(merges))[:, None]).all()
    if not valid or len(set(tokens := _tokens(merges))) < len(tokens):
        raise ValueError(f"{source}: its tokenizer's merges are damaged; copy it again")
    return merges.astype(np.int64)


def trimmed(tokens: Int[Tensor, "b l"], end: int) -> Int[Tensor, "b m"]:
    """Drop columns behind the longest text's end, to a multiple of 8: they cost time and change nothing."""
    longest = int((tokens == end).int().argmax(1).max()) + 1 if len(tokens) else 1
    return tokens[:, : -(-longest // 8) * 8]


class Tokenizer:
    """Texts to token ids and back; `protocols.Tokenizer`.

    merges: as `read_merges` returns them; None: bytes alone, a vocabulary of 514. context: ids per text.
    origin: where the merges come from, in words. repaired: texts are repaired by ftfy first, as CLIP's code
    does; without ftfy they are read as they are, and `unrepaired` says so.
    """

    def __init__(
        self,
        merges: Int[np.ndarray, "m 2"] | None = None,
        context: int = CONTEXT,
        origin: str = "",
        repaired: bool = False,
    ) -> None:
        if context < 3:
            raise ValueError(f"context={context}: at least 3, for a start, an end and something in between")
        self.merges = checked(np.zeros((0, 2), np.int64) if merges is None else merges, "the tokenizer")
        self.context, self.origin, self.repaired = context, origin, repaired
        self.start = 512 + len(self.merges)
        self.end = self.start + 1
        self.vocabulary = self.end + 1
        tokens = _tokens(self.merges)
        pairs = [(tokens[left], tokens[right]) for left, right in self.merges.tolist()]
        ids = {token: id for id, token in enumerate([*tokens, START, END])}
        self._engine = _engine(models.BPE(vocab=ids, merges=pairs, end_of_word_suffix=_SUFFIX))
        self._engine.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
            [decoders.Replace(_SUFFIX, "\u0120"), decoders.ByteLevel()]  # which writes a space as U+0120
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without start and end, not truncated."""
        text = clean(text, self.repaired)
        if START not in text and END not in text:
            return self._engine.encode(text, add_special_tokens=False).ids
        # a text may spell out start or end, which are single ids where they are pieces of their own
        special = {START: [self.start], END: [self.end]}
        ids: list[int] = []
        for piece, _ in _SPLIT.pre_tokenize_str(text):
            ids += special.get(piece) or self._engine.encode(piece, add_special_tokens=False).ids
        return ids

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "b l"]:
        """One row per text: start, the text truncated to fit, end, then zeros."""
        rows = np.zeros((len(texts), self.context), np.int64)
        for row, text in zip(rows, texts, strict=True):
            ids = self.encode(text)[: self.context - 2]
            row[: len(ids) + 2] = [self.start, *ids, self.end]
        return torch.from_numpy(rows)

    def fits(self, text: str) -> bool:
        """Whether the text fits into the context without truncation."""
        return len(self.encode(text)) <= self.context - 2

    def unrepaired(self, texts: Sequence[str]) -> list[str]:
        """A line about texts that ftfy might change, where they should be repaired and it is missing."""
        if not self.repaired or _ftfy() is not None:
            return []
        concerned = sum(_REPAIRABLE.search(text) is not None for text in texts)
        return [
            f"{concerned:,} of {len(texts):,} texts have characters that CLIP's code repairs with ftfy, "
            f"which is not installed: they may be read as other tokens ({install_command('hf')} brings it)"
        ] * bool(concerned)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, each piece followed by a space; bytes that are not valid UTF-8 become U+FFFD."""
        return self._engine.decode(list(ids), skip_special_tokens=False)
