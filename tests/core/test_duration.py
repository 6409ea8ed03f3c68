"""Times as people write them."""

import pytest

from omma.core.duration import as_text, seconds


@pytest.mark.parametrize(
    ("text", "expected"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2d", 172_800), (45, 45), (30.0, 30)]
)
def test_duration(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-5m", "ten", "5 weeks", "10mm"])
def test_nonsense_is_refused(text):
    with pytest.raises(ValueError, match="budget"):
        seconds(text)


@pytest.mark.parametrize(
    ("duration", "text"),
    [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (308, "5m08s"), (3599.6, "1h00m"), (7500, "2h05m")],
)
def test_a_duration_in_words(duration, text):
    assert as_text(duration) == text
