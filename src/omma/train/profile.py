"""Where the time of a step goes: some steps of a run, part by part, and what the machine could do at most.

The loop says what it is about to do (`Stopwatch.to`); within the forward pass it is told by hooks on all
modules which of them works: those of the trained encoder are the student, other backbones the teacher, what
is left heads and decoders, and what no module computes is the loss and the rest. Methods know nothing of it.
Time is exclusive: a part lasts until the next begins, so the parts are the whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from omma.core import device as machine
from omma.core.protocols import Backbone, Method
from omma.ops.cost import Flops

WARM_UPS = 8  # steps before the first that is timed: their batches may be made already (`budget.trial`)
STEPS = 20  # that are timed


class Part(StrEnum):
    """What a step consists of, in its order."""

    WAIT = "wait for data"
    VIEWS = "views"
    STUDENT = "student forward"
    TEACHER = "teacher forward"
    HEADS = "heads, decoders"
    LOSS = "loss, rest of forward"  # what no module computes: masks, targets, positions, the loss
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"  # with schedules, clipping, and reading the step's figures
    AFTER = "moving averages"  # the method's `after_step`
    REST = "readings, saving"  # what the run does between steps


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What was found, on average over the steps that were timed."""

    parts: Mapping[Part, float]  # seconds a step
    steps: Sequence[float]  # seconds of each of them, whole
    images: int  # a step, over all processes
    flops: int  # operations of a step in this process (`ops.cost.Flops`)
    limit: float  # operations a second of this machine's best product
    peak_memory: int  # bytes, of the process so far
    device: str
    precision: str

    @property
    def seconds(self) -> float:
        """Of a step, whole."""
        return sum(self.parts.values())

    @property
    def working(self) -> float:
        """Seconds of a step without what the run does between steps, which not every step has."""
        return self.seconds - self.parts[Part.REST]

    @property
    def images_per_second(self) -> float:
        return self.images / self.working

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.working

    @property
    def share(self) -> float:
        """Of what the machine could do at most."""
        return self.flops_per_second / self.limit

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": 1,
            "parts": {
                str(part): {"ms": 1000 * seconds, "share": seconds / self.seconds}
                for part, seconds in self.parts.items()
            },
            "step_ms": [1000 * seconds for seconds in self.steps],
            "images": self.images,
            "images_per_second": self.images_per_second,
            "flops": self.flops,
            "flops_per_second": self.flops_per_second,
            "limit_flops_per_second": self.limit,
            "share_of_limit": self.share,
            "peak_memory": self.peak_memory,
            "device": self.device,
            "precision": self.precision,
            "torch": torch.__version__,
        }


class Stopwatch:
    """Is told by a run what it is about to do; this one takes no notice."""

    def begin(self, left: int) -> None:
        """A step begins; it and those after it are `left`."""

    def to(self, part: Part) -> None:
        """From now on it is this part's time. `Part.LOSS` is the forward pass, whatever is called in it."""

    def close(self) -> None:
        """There is no further step."""

    def taken(self, images: int) -> Profile | None:
        """What was found, once it is known, and only once; `images`: a step, over all processes."""
        return None


OFF = Stopwatch()


class Profiler(Stopwatch):
    """Times up to 20 steps after 8, or the latter half of a shorter run, and then takes its hooks off.

    The operations of the last step before them are counted, which takes time. On a GPU of NVIDIA's, events
    are put between what is computed, and nothing is waited for. On Apple's each part is waited for, so that
    the steps that are timed take longer than the others.
    """

    def __init__(self, method: Method, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.places = places(method)
        self.told = False
        self._warm_ups = self._window = 0
        self._begun = 0
        self._counting = self._timing = self._over = False
        self._flops: Flops = Flops()
        self._entered = False
        self._stack: list[Part] = []  # of modules at work; empty outside the forward pass
        self._marks: list[tuple[Any, Part, int]] = []  # when, what begins then, in which step
        self._hooks: list[Any] = []

    # ---------------------------------------------------------------- what the run says
    def begin(self, left: int) -> None:
        if self._over:
            return
        if self._begun == 0:
            self._warm_ups = max(1, min(WARM_UPS, left // 2))
            self._window = min(STEPS, left - self._warm_ups)
        timed = self._begun - self._warm_ups
        if timed == self._window:
            self.close()
            return
        self._counting = timed == -1
        if timed == 0:
            self._timing = True
            self._hooks = [
                register_module_forward_pre_hook(self._enter),
                register_module_forward_hook(self._leave, always_call=True),
            ]
        self._begun += 1
        self.to(Part.OPTIMIZER)

    def to(self, part: Part) -> None:
        if self._counting:
            self._count(part in (Part.LOSS, Part.BACKWARD))
        if self._timing:
            self._stack = [part] if part is Part.LOSS else []
            self._mark(part)

    def close(self) -> None:
        if self._timing:
            self._mark(Part.REST)
        self._count(False)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._counting = self._timing = False
        self._over = True

    def taken(self, images: int) -> Profile | None:
        """Measures for a second what the machine can do."""
        if not self._over or self.told or not self._marks:
            return None
        self.told = True
        machine.synchronise(self.device)
        parts, steps = dict.fromkeys(Part, 0.0), [0.0] * (self._marks[-1][2] + 1)
        for (start, part, step), (end, _, _) in zip(self._marks, self._marks[1:], strict=False):
            seconds = end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
            parts[part] += seconds
            steps[step] += seconds
        return Profile(
            parts={part: seconds / len(steps) for part, seconds in parts.items()},
            steps=steps,
            images=images,
            flops=self._flops.total,
            peak_memory=machine.peak_memory(self.device),  # before the largest product
            limit=machine.best_product(self.device, self.dtype),
            device=str(self.device),
            precision=machine.precision_name(self.dtype),
        )

    # ---------------------------------------------------------------- what the modules say
    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if self._stack:
            part = self.places.get(id(module), self._stack[-1])
            if part is not self._stack[-1]:
                self._mark(part)
            self._stack.append(part)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if len(self._stack) > 1:
            part = self._stack.pop()
            if part is not self._stack[-1]:
                self._mark(self._stack[-1])

    # ---------------------------------------------------------------- inside
    def _mark(self, part: Part) -> None:
        now: Any
        if self.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record(torch.cuda.current_stream(self.device))
        else:
            machine.synchronise(self.device)
            now = perf_counter()
        self._marks.append((now, part, self._begun - self._warm_ups - 1))

    def _count(self, wanted: bool) -> None:
        """Let operations be counted, or no longer."""
        if wanted and not self._entered:
            self._flops.__enter__()
        elif self._entered and not wanted:
            self._flops.__exit__(None, None, None)
        self._entered = wanted


def places(method: Method) -> dict[int, Part]:
    """Whose time each module's is, by its id.

    What holds a backbone that is not the student's belongs to the teacher with all that is in it.
    """
    student = {id(module) for module in method.encoder.modules()}
    found = {id(module): Part.HEADS for module in method.modules()}
    for module in method.modules():
        within = list(module.modules())
        if module is not method and any(isinstance(m, Backbone) and id(m) not in student for m in within):
            found |= {id(m): Part.TEACHER for m in within}
    return {**found, **dict.fromkeys(student, Part.STUDENT), id(method): Part.LOSS}
