"""A run that waits for its data is told what would help: a rule."""

from dataclasses import dataclass

SHARE = 0.2  # of the time, beyond which waiting is worth a word ...
STEPS = 50  # ... after so many steps: the first ones wait for the workers to start
LARGER = 2  # times the side that the views need: reading such images takes time for nothing


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """What the images of a run come from, and who prepares them."""

    in_memory: bool  # all decoded, their views cut in the training process
    decodes: bool  # is an image decoded whenever it is read? Not from arrays or a cache
    workers: int
    cores: int  # that this process may count as its own
    busy: int  # of them, with training itself
    side: int  # pixels of the images' shorter side, median ...
    enough: int  # ... and those that the views need


def remedy(waited: float, steps: int, feeding: Feeding) -> str | None:
    """What to tell a run that waited for the share `waited` of its time over so many steps; None if nothing.

    None, too, where nothing is waited for but the views' own arithmetic in this process.
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
