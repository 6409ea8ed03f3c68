"""What a run can be expected to learn, by what was measured (docs/benchmarks.md)."""

import math

from omma.core.words import count
from omma.data.sources.indexed import IndexedImages
from omma.pretraining.run import Run
from omma.pretraining.setup import Setup
from omma.weights import at_hand

FROM_SCRATCH = "34 %"  # cub50, auto, one core (docs/benchmarks.md)
PHOTOGRAPHS = 64  # pixels: images of three 8-bit channels from this side on may be photographs


def published(setup: Setup) -> list[str]:
    """A run from random weights on what may be photographs: that published weights know them better."""
    if setup.start is not None or setup.teacher is not None or not _photographs(setup.images, setup):
        return []
    names = at_hand.cached()
    there = f" (on this machine: {', '.join(names[:3])})" if names else ""
    name = names[0] if names else "hf:facebook/dinov2-small"
    return [
        "it starts from random weights; if these are photographs, published weights know more (50 bird "
        f"species, k-NN: 91 % against {FROM_SCRATCH} after ten minutes): judge them by `omma evaluate {name} "
        f"{setup.data.source.source}`, and go on from them by --init{there}"
    ]


def _photographs(images: IndexedImages, setup: Setup) -> bool:
    return images.kind == "image" and images.channels == 3 and setup.facts.shorter_side >= PHOTOGRAPHS


def few_steps(run: Run) -> list[str]:
    """A line if the run is shorter than its recipe needs to learn more than raw pixels tell."""
    least, total = run.choice.recipe.least_steps, run.position.total
    if least is None or total >= least:
        return []
    needed = run.clock.elapsed + run.clock.reserve + run.clock.pace.seconds(0, least, least)
    longer = f"--budget {max(1, math.ceil(needed / 60))}m" if run.clock.budget is not None else "a later end"
    return [
        f"{count(total, 'step')} may teach less than raw pixels tell; {least} were enough in trials "
        f"(docs/benchmarks.md): give it {longer}, or go on from published weights with --init"
    ]
