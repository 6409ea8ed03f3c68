"""Replaced by its owner."""


def index() -> None:
    """Not there yet."""
