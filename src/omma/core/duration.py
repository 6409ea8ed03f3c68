"""Times as people write them."""

import re

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str | float) -> float:
    """ "10m", "90s", "1.5h" or "2d"; a number counts seconds. Raises ValueError for a text without a unit."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(text))
    if match is not None and isinstance(text, str) and not match[2]:
        number = text.strip()
        raise ValueError(f"budget {number!r}: say the unit, {number}s, {number}m or {number}h")
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"budget {text!r}: give a time such as 90s, 10m or 2h")
    return float(match[1]) * UNITS[match[2] or "s"]


def as_text(duration: float) -> str:
    """ "42s", "5m08s" or "2h05m" of a duration in seconds."""
    minutes, s = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{s:02d}s" if minutes else f"{s}s"
