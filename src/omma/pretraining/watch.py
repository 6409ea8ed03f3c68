"""What watches a run: readings now and then, and what is made of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from omma.core.protocols import Clock, Extras, Images, Method
from omma.pretraining import retention
from omma.pretraining.events import Read
from omma.pretraining.health import Verdict
from omma.pretraining.monitor import Monitor
from omma.train import fsdp
from omma.train.loop import Position

READINGS = 20  # over a run, if they are cheap enough


class Seen(NamedTuple):
    """One reading."""

    verdict: Verdict
    line: Mapping[str, Any]  # for metrics.jsonl, with its `event`
    event: Read


class Watch(Protocol):
    """Reads a run. Its state lies in checkpoints: a resumed run sees what an uninterrupted one does."""

    @property
    def sample(self) -> Images:
        """The images that are read, and shown in the report."""
        ...

    def notes(self) -> list[str]:
        """For the user, before the run starts."""
        ...

    def begun(self) -> bool:
        """Was anything read before?"""
        ...

    def due(self, position: Position, cheap: bool) -> bool:
        """Is a reading due after the step just done? cheap: do readings take a small share of the time?"""
        ...

    def read(self, method: Method, clock: Clock, recent: Sequence[Mapping[str, float]]) -> Seen:
        """Read now; recent: metrics of the steps since the last reading. All processes call, and agree."""
        ...

    def over(self) -> str:
        """Why training may end before its time; "" if it may not."""
        ...

    def finish(self, method: Method) -> Extras:
        """Let the method be what is exported; what is saved beside its encoder."""
        ...

    def state(self) -> dict[str, Any]:
        """In plain values, for a checkpoint."""
        ...

    def restore(self, state: Mapping[str, Any], changed: bool) -> None:
        """The inverse of `state`; changed: are the images others by now?"""
        ...


def ends_part(position: Position, times: int) -> bool:
    """Does the step just done end one of `times` equal parts of the run?"""
    part = position.total / min(times, position.total)
    return position.step >= position.total or int(position.step / part) > int((position.step - 1) / part)


class Health:
    """Watches what an encoder learns without labels."""

    def __init__(self, monitor: Monitor, dtype: torch.dtype) -> None:
        self.monitor, self.dtype = monitor, dtype

    @property
    def sample(self) -> Images:
        """The images that are read, and shown in the report."""
        return self.monitor.sample

    def notes(self) -> list[str]:
        """What labels are read for, and what remains unknown without them."""
        labels, notes = self.monitor.labels is not None, []
        if labels and not self.monitor.held_out:
            others = "all others" if self.monitor.groups is None else "all others of other groups"
            notes.append(f"k-NN is read on training images too: each is classified by {others}")
        if not labels and self.monitor.continued:
            notes.append(retention.UNTOLD)
        return notes

    def begun(self) -> bool:
        """Was anything read before?"""
        return bool(self.monitor.readings)

    def due(self, position: Position, cheap: bool) -> bool:
        """At the end, and 20 times before if readings are cheap."""
        return position.step >= position.total or (ends_part(position, READINGS) and cheap)

    def read(self, method: Method, clock: Clock, recent: Sequence[Mapping[str, float]]) -> Seen:
        """Health, k-NN and what is retained of the weights that the run started from."""
        seen = self.monitor.read(self._encoder(method), clock, recent)
        values = {k: v for k, v in dataclasses.asdict(seen.reading).items() if v is not None}
        line = {"event": "health", "step": clock.step, **values}
        line |= {"verdict": seen.verdict.level, "state": seen.verdict.state, "text": str(seen.verdict)}
        line |= {} if seen.knn is None else {"online_knn_top1": seen.knn}
        line |= {} if seen.retained is None else seen.retained.metrics()
        event = Read(step=clock.step, verdict=seen.verdict, knn=seen.knn, retained=seen.retained)
        return Seen(seen.verdict, line, event)

    def _encoder(self, method: Method) -> torch.nn.Module:
        """The exported encoder, or one that computes as its sharded blocks do."""
        encoder = method.export_encoder()
        if fsdp.sharded(encoder) and self.dtype != torch.float32:
            return fsdp.CastEncoder(encoder, self.dtype)
        return encoder

    def over(self) -> str:
        """Never."""
        return ""

    def finish(self, method: Method) -> Extras:
        """The method's own, as training left them."""
        return method.extras()

    def state(self) -> dict[str, Any]:
        """All readings so far."""
        return self.monitor.state()

    def restore(self, state: Mapping[str, Any], changed: bool) -> None:
        """The inverse of `state`; nothing is compared with a start on other images."""
        self.monitor.restore(state)
        if changed:
            self.monitor.start = None
