"""Words for numbers, names and lists."""

from collections.abc import Sequence


def count(number: int, thing: str, plural: str | None = None) -> str:
    """ "1 image", "2 images", "1,200 images"; plural: of words that take more than an s."""
    return f"{number:,} {thing if number == 1 else plural or thing + 's'}"


def class_words(name: str) -> str:
    """The name of a class as people write it: underscores become spaces."""
    return name.replace("_", " ").strip()


def enumerated(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
