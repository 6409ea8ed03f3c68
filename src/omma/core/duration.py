"""Times as people write them."""

import re

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str | float) -> float:
    """ "10m", "90s", "1.5h", "2d" or plain seconds. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", str(text))
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"budget {text!r}: give a time such as 90s, 10m or 2h")
    return float(match[1]) * UNITS[match[2] or "s"]
