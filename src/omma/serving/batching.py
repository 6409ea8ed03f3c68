"""One thread runs the model, on the images of several requests at once."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Job:
    item: Any
    future: Future[Any] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Collects items for up to `wait` seconds, or `most` of them, and gives them to `run` in order.

    run: the results of some items, one for each. A future that is cancelled before its batch begins costs
    nothing. An error of `run` is that of all futures of its batch; the thread goes on.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Any]], Sequence[Any]],
        most: int,
        wait: float,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.run, self.most, self.wait = run, most, wait
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._begin = begin
        self._thread = threading.Thread(target=self._work, name="omma-model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, item: Any) -> Future[Any]:
        """The result of one item, later."""
        job = _Job(item)
        with self._changed:
            if self._closed:
                raise RuntimeError("the server has ended")
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    # ---------------------------------------------------------------- the thread
    def _work(self) -> None:
        self._begin()
        while jobs := self._next():
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if not jobs:
                continue
            try:
                items = [job.item for job in jobs]
                results = self.run(items)
                assert len(results) == len(jobs)
            except BaseException as error:
                for job in jobs:
                    job.future.set_exception(error)
            else:
                for job, result in zip(jobs, results, strict=True):
                    job.future.set_result(result)

    def _next(self) -> list[_Job]:
        """The jobs of the next batch; none at the end."""
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return []
                self._changed.wait()
            end = self._jobs[0].arrived + self.wait
            while len(self._jobs) < self.most and (left := end - time.monotonic()) > 0 and not self._closed:
                self._changed.wait(left)
            return [self._jobs.popleft() for _ in range(min(self.most, len(self._jobs)))]
