"""Words for numbers."""


def count(number: int, thing: str, plural: str | None = None) -> str:
    """ "1 image", "2 images", "1,200 images"; plural: of words that take more than an s."""
    return f"{number:,} {thing if number == 1 else plural or thing + 's'}"
