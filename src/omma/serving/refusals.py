"""Requests that are refused: a status, and one line that says why, as JSON."""

from collections.abc import Mapping
from typing import Any

from omma.core.errors import printable

LONGEST = 300  # characters of a message


class Refused(Exception):
    """Raised anywhere while a request is handled; details: further keys of the JSON beside "error"."""

    def __init__(
        self, status: int, why: str, *, headers: Mapping[str, str] | None = None, **details: Any
    ) -> None:
        super().__init__(why)
        self.status, self.headers = status, dict(headers or {})
        self.body = {"error": shown(why), **details}


def shown(text: str) -> str:
    """A text of a client's, or of a decoder's about its bytes, in one line that steers no terminal."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def busy(why: str, seconds: int = 1) -> Refused:
    """429: the client may repeat the same request after so many seconds."""
    return Refused(429, why, headers={"Retry-After": str(max(1, seconds))})
