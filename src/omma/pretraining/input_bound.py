"""Is a run bound by its input, and what would help? A rule."""

from dataclasses import dataclass

SHARE = 0.2  # of the time spent waiting, above which the user hears of it ...
STEPS = 50  # ... after so many steps: the first ones wait for the workers to start
LARGER = 2  # times the side that the views need, above which decoding whole images wastes time


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """Where the images of a run come from, and what prepares them."""

    in_memory: bool  # all decoded, their views cut in the training process
    decodes: bool  # is an image decoded whenever it is read? Not from arrays or a cache
    workers: int
    cores: int  # of this process
    busy: int  # of them, with training itself
    side: int  # pixels of the images' shorter side, median
    enough: int  # pixels of it that the views need


def remedy(waited: float, steps: int, feeding: Feeding) -> str | None:
    """Advice for a run that spent the share `waited` of its time waiting, over so many steps.

    None if it waited little, or only for the views' own arithmetic in this process.
    """
    f = feeding
    if waited <= SHARE or steps < STEPS or f.in_memory:
        return None
    ways = []
    most = max(f.cores - f.busy, 1)
    if f.workers < most:
        ways.append(f"repeat the command with --workers {most} (now {f.workers}), for cores are free")
    if f.decodes:
        too_large = f" ({f.side} px along the shorter side, {f.enough} suffice)" * (
            f.side >= LARGER * f.enough
        )
        ways.append(f"begin the next run with --cache, which decodes each image once{too_large}")
    if not ways:
        ways.append("all cores are busy with views: take fewer or smaller ones, or a machine with more cores")
    return f"{waited:.0%} of the time went into waiting for data; " + ", or ".join(ways)
