"""Where the time of a step goes: some steps of a run, phase by phase, and the machine's upper limit.

The loop announces each phase (`Stopwatch.to`). Within the forward pass, hooks on all modules attribute time:
to the student for modules of the trained encoder, to the teacher for other backbones, to heads and decoders
for the remaining modules, and to the loss for what no module computes. Methods need no code for it. Phases do
not overlap: each lasts until the next begins, so they add up to the whole step.
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

WARM_UPS = 8  # steps before the first timed one: `budget.trial` may have made their batches already
STEPS = 20  # timed steps


class Phase(StrEnum):
    """The phases of a step, in their order."""

    WAIT = "wait for data"
    VIEWS = "views"
    STUDENT = "student forward"
    TEACHER = "teacher forward"
    HEADS = "heads, decoders"
    LOSS = "loss, rest of forward"  # what no module computes: masks, targets, positions, the loss
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"  # including schedules, clipping, and reading loss and metrics
    AFTER = "moving averages"  # the method's `after_step`
    REST = "readings, saving"  # what the run does between steps


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The measurements: means over the timed steps."""

    parts: Mapping[Phase, float]  # seconds a step, by phase
    steps: Sequence[float]  # seconds of each timed step
    images: int  # a step, over all processes
    flops: int  # operations of a step in this process (`ops.cost.Flops`)
    limit: float  # operations a second of this machine's fastest matrix product
    peak_memory: int  # bytes, of the whole process
    device: str
    precision: str

    @property
    def seconds(self) -> float:
        """Seconds a step."""
        return sum(self.parts.values())

    @property
    def working(self) -> float:
        """Seconds a step without readings and saving, which not every step has."""
        return self.seconds - self.parts[Phase.REST]

    @property
    def images_per_second(self) -> float:
        return self.images / self.working

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.working

    @property
    def share(self) -> float:
        """Operations a second, as a share of the machine's limit."""
        return self.flops_per_second / self.limit

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": 1,
            "parts": {
                str(phase): {"ms": 1000 * seconds, "share": seconds / self.seconds}
                for phase, seconds in self.parts.items()
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
    """Receives the phases of a run; this base class ignores them."""

    def begin(self, left: int) -> None:
        """A step begins, the first of `left` remaining ones."""

    def to(self, phase: Phase) -> None:
        """A phase begins. `Phase.LOSS` starts the whole forward pass, which hooks then subdivide."""

    def close(self) -> None:
        """There is no further step."""

    def pop_profile(self, images: int) -> Profile | None:
        """The profile once it is complete, and only once; `images`: a step, over all processes."""
        return None


OFF = Stopwatch()


class Profiler(Stopwatch):
    """Times up to 20 steps after 8, or the second half of a shorter run, and then removes its hooks.

    Operations are counted in the last step before the timed ones, which slows that step down. On NVIDIA GPUs
    phases are marked by events, without synchronising. On Apple's GPUs each phase is waited for, so timed
    steps take longer than others.
    """

    def __init__(self, method: Method, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.phases = phases_by_module(method)
        self.reported = False
        self._warm_ups = self._window = 0
        self._begun = 0
        self._counting = self._timing = self._over = False
        self._flops: Flops = Flops()
        self._entered = False
        self._stack: list[Phase] = []  # of the modules being called; empty outside the forward pass
        self._marks: list[tuple[Any, Phase, int]] = []  # time, the phase that begins, its step
        self._hooks: list[Any] = []

    # ---------------------------------------------------------------- called by the run
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
        self.to(Phase.OPTIMIZER)

    def to(self, phase: Phase) -> None:
        if self._counting:
            self._count(phase in (Phase.LOSS, Phase.BACKWARD))
        if self._timing:
            self._stack = [phase] if phase is Phase.LOSS else []
            self._mark(phase)

    def close(self) -> None:
        if self._timing:
            self._mark(Phase.REST)
        self._count(False)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._counting = self._timing = False
        self._over = True

    def pop_profile(self, images: int) -> Profile | None:
        """As in the base class; takes a second to measure the machine's limit."""
        if not self._over or self.reported or not self._marks:
            return None
        self.reported = True
        machine.synchronise(self.device)
        phases, steps = dict.fromkeys(Phase, 0.0), [0.0] * (self._marks[-1][2] + 1)
        for (start, phase, step), (end, _, _) in zip(self._marks, self._marks[1:], strict=False):
            seconds = end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
            phases[phase] += seconds
            steps[step] += seconds
        return Profile(
            parts={phase: seconds / len(steps) for phase, seconds in phases.items()},
            steps=steps,
            images=images,
            flops=self._flops.total,
            peak_memory=machine.peak_memory(self.device),  # read before best_product allocates
            limit=machine.best_product(self.device, self.dtype),
            device=str(self.device),
            precision=machine.precision_name(self.dtype),
        )

    # ---------------------------------------------------------------- called by the modules
    def _enter(self, module: nn.Module, inputs: Any) -> None:
        if self._stack:
            phase = self.phases.get(id(module), self._stack[-1])
            if phase is not self._stack[-1]:
                self._mark(phase)
            self._stack.append(phase)

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if len(self._stack) > 1:
            phase = self._stack.pop()
            if phase is not self._stack[-1]:
                self._mark(self._stack[-1])

    # ---------------------------------------------------------------- inside
    def _mark(self, phase: Phase) -> None:
        now: Any
        if self.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record(torch.cuda.current_stream(self.device))
        else:
            machine.synchronise(self.device)
            now = perf_counter()
        self._marks.append((now, phase, self._begun - self._warm_ups - 1))

    def _count(self, on: bool) -> None:
        """Switch the counting of operations on or off."""
        if on and not self._entered:
            self._flops.__enter__()
        elif self._entered and not on:
            self._flops.__exit__(None, None, None)
        self._entered = on


def phases_by_module(method: Method) -> dict[int, Phase]:
    """The phase that each module's time belongs to, by the module's id.

    A module that contains a backbone other than the student belongs to the teacher with all its submodules.
    """
    student = {id(module) for module in method.encoder.modules()}
    phases = {id(module): Phase.HEADS for module in method.modules()}
    for module in method.modules():
        within = list(module.modules())
        if module is not method and any(isinstance(m, Backbone) and id(m) not in student for m in within):
            phases |= {id(m): Phase.TEACHER for m in within}
    return {**phases, **dict.fromkeys(student, Phase.STUDENT), id(method): Phase.LOSS}
