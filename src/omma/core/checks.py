"""Checks of option values; each raises a one-line ValueError that names the option."""

from collections.abc import Iterable, Sequence
from typing import Any


def above_zero(config: object, *names: str) -> None:
    """Require the named options of a method to be above 0."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"method.{name}={getattr(config, name)}: must be above 0")


def at_least_zero(config: object, *names: str) -> None:
    """Require the named options of a method to be 0 or above."""
    for name in names:
        if not getattr(config, name) >= 0:
            raise ValueError(f"method.{name}={getattr(config, name)}: must be 0 (off) or above")


def within_one(config: object, *names: str) -> None:
    """Require the named options of a method to lie in [0, 1]."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"method.{name}={getattr(config, name)}: must lie in [0, 1]")


def between(config: object, *names: str) -> None:
    """Require the named options of a method to lie in (0, 1)."""
    for name in names:
        if not 0 < getattr(config, name) < 1:
            raise ValueError(f"method.{name}={getattr(config, name)}: must lie between 0 and 1")


def range_within_one(config: object, *names: str) -> None:
    """Require the named options to be ranges (low, high) within [0, 1] with high above 0."""
    for name in names:
        value = getattr(config, name)
        if len(value) != 2 or not 0 <= value[0] <= value[1] <= 1 or not value[1]:
            raise ValueError(f"method.{name}={value}: must be two shares, such as 0.1,0.5, the lower first")


def decoder(config: Any) -> None:
    """Require depth, width and heads of a pixel decoder that can be built."""
    above_zero(config, "decoder_depth", "decoder_dim", "decoder_heads")
    if config.decoder_dim % 4 or config.decoder_dim % config.decoder_heads:
        raise ValueError(
            f"method.decoder_dim={config.decoder_dim}: must be a multiple of 4 and of "
            f"decoder_heads={config.decoder_heads}"
        )


def one_of(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Require an option to have one of the given values."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose {', '.join(map(repr, choices))}")


def either(
    name: str, value: str | Sequence[str], other: str, same: str | Sequence[str] | None
) -> tuple[str, ...]:
    """Values of an option that has two names, one or several, each once; ValueError where both are given."""
    if value and same:
        raise ValueError(f"{name} and {other} are the same option: give one of them")
    found = value or same or ()
    return tuple(dict.fromkeys([found] if isinstance(found, str) else found))
