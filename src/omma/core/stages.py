"""Parts of a run whose views are smaller, as the command line names them."""

import itertools


def resolution_of(text: str) -> tuple[tuple[float, float], ...]:
    """`Recipe.resolution` of SCALE@SHARE,... or `full` (none).

    .5@.6 halves the views' sides in the first .6 of the run. Raises ValueError for anything else.
    """
    if text == "full":
        return ()
    try:
        parts = [part.split("@") for part in text.split(",")]
        stages = tuple((float(until), float(scale)) for scale, until in parts)
    except ValueError:
        stages = ()
    shares = [0.0, *(until for until, _ in stages), 1.0]
    rising = all(before < after for before, after in itertools.pairwise(shares))
    if not stages or not rising or not all(0 < scale <= 1 for _, scale in stages):
        raise ValueError(
            f"--resolution {text}: give SCALE@SHARE, such as .5@.5,.75@.8 (scales above 0 and at most 1; "
            "shares of the run that rise, below 1), or full"
        )
    return stages
