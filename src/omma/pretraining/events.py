"""What a run reports while it goes on, and at its end."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omma.core.notebook import Displayed
from omma.pretraining import health, retention
from omma.pretraining.choose import Choice
from omma.train.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Plan(Displayed):
    """What the run is going to do, reported before it starts."""

    images: str
    used: int
    skipped: int
    choice: Choice
    parameters: int
    views: tuple[str, ...]
    device: str
    precision: str
    images_per_second: float
    steps: int
    seconds: float
    peak_memory: int
    out: Path
    resumed_at: int
    notes: tuple[str, ...]

    def displayed(self) -> Mapping[str, Any]:
        """What the command prints of it, in short."""
        choice = self.choice
        return {
            "images": self.images,
            "method": choice.method,
            "model": f"{choice.model} at {choice.image_size} px",
            "batch": choice.recipe.batch,
            "steps": self.steps,
            "seconds": self.seconds,
            "out": self.out,
            "notes": self.notes,
        }


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One step done."""

    step: int
    total: int
    loss: float
    images_per_second: float
    seconds_left: float
    waiting: float  # share of the time spent waiting for data


@dataclass(frozen=True, kw_only=True)
class Read:
    """A reading of health."""

    step: int
    verdict: health.Verdict
    knn: float | None  # online k-NN top-1, where labels exist
    retained: retention.Retention | None = None  # against the start, in a run that starts from weights


@dataclass(frozen=True)
class Note:
    """A line for the user."""

    text: str


@dataclass(frozen=True)
class Stage:
    """What is going on outside of training, and how many images of how many are done, if they are counted."""

    text: str
    done: int = 0
    total: int = 0


Event = Stage | Plan | Progress | Read | Note | Profile


@dataclass(frozen=True, kw_only=True)
class Result(Displayed):
    """What became of the run."""

    out: Path
    steps: int
    seconds: float
    verdict: health.Verdict | None
    stopped_by: int | None = None  # the signal, if it was stopped before its end
