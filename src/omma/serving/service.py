"""From uploads to answers: admission, decoding in threads, the model's batches, deadlines."""

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from omma.core.device import cores
from omma.core.errors import exhausted
from omma.core.protocols import BadImage
from omma.serving.batching import Batcher
from omma.serving.bodies import Held, Upload
from omma.serving.engine import Answer, Engine, network_input
from omma.serving.limits import Limits
from omma.serving.lookup import Lookup
from omma.serving.maps import Maps
from omma.serving.metrics import Metrics
from omma.serving.refusals import Refused, busy, shown

MAPS = 8  # images that may wait for their maps
DECODERS = 8  # threads at most: each may take some hundred megabytes for a large image


class Service:
    """Answers requests; every one that is accepted gets an answer, or a refusal that says why not."""

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        wait: float = 0.005,
        lookup: Lookup | None = None,
        maps: Maps | None = None,
    ) -> None:
        self.engine, self.limits, self.lookup, self.maps = engine, limits, lookup, maps
        self.metrics, self.held = Metrics(), Held(limits.held_bytes)
        self.waiting = 0  # images accepted and not answered
        self.draining = False  # no longer ready: the server is about to end
        self.metrics.watch_queue(lambda: self.waiting)
        threads = torch.get_num_threads()  # the bits of an answer may depend on it
        self.batcher = Batcher(self._run, engine.most, wait, begin=lambda: torch.set_num_threads(threads))
        # maps take seconds: with a thread and a copy of the model of their own they delay no other answers
        self.explainer = Batcher(self._draw, 1, 0.0, begin=lambda: torch.set_num_threads(threads))
        self.explaining = 0
        self.decoders = ThreadPoolExecutor(min(cores(), DECODERS), "omma-decode")

    def start(self) -> None:
        self.batcher.start()
        self.explainer.start()

    def drain(self) -> None:
        """Say that the end is near: /health answers 503 from now on."""
        self.draining = True

    def close(self) -> None:
        """Finish what was accepted, and end the threads."""
        self.draining = True
        self.decoders.shutdown()
        self.batcher.close()
        self.explainer.close()

    def admit(self, images: int = 1) -> None:
        """Raise Refused (429) if the queue has no room for so many images."""
        if self.waiting + images > self.limits.queue:
            seconds = math.ceil(self.waiting * self.metrics.mean)
            raise busy(f"{self.waiting} images wait for the model: repeat the request later", seconds)

    async def answers(self, uploads: Sequence[Upload]) -> list[Answer]:
        """The model's answers, in order.

        Raises Refused: 422 for images that cannot be read, with the name of each, 429 where the queue is
        full, 504 where time runs out. If the task is cancelled, what has not begun is dropped.
        """
        tensors = await self.decoded(uploads)
        return await self._in_time([self.batcher.submit(tensor) for tensor in tensors])

    async def drawn(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        """What these functions return, which run on the thread of maps. Raises Refused (429) if many wait."""
        if self.explaining + len(jobs) > max(MAPS, len(jobs)):
            raise busy(f"{self.explaining} images wait for their maps: repeat the request later")
        self.explaining += len(jobs)
        try:
            return await self._in_time([self.explainer.submit(job) for job in jobs])
        finally:
            self.explaining -= len(jobs)

    async def decoded(self, uploads: Sequence[Upload]) -> list[torch.Tensor]:
        """The network's inputs, in order; errors as for `answers`."""
        preprocess, pixels = self.engine.model.preprocess, self.limits.pixels
        futures = [self.decoders.submit(network_input, upload.data, preprocess, pixels) for upload in uploads]
        found = await self._in_time(futures, errors=True)
        bad = []
        for upload, result in zip(uploads, found):
            if isinstance(result, BadImage):
                bad.append({"name": upload.name, "error": shown(str(result))})
            elif isinstance(result, BaseException):
                if exhausted(result):
                    raise busy(f"{upload.name}: no memory is left to decode it") from result
                raise result
        if bad:
            raise Refused(422, f"{bad[0]['name']}: {bad[0]['error']}", images=bad)
        return found

    async def aside(self, function: Callable[[], Any]) -> Any:
        """What the function returns, which runs beside the model."""
        return (await self._in_time([self.decoders.submit(function)]))[0]

    # ---------------------------------------------------------------- inside
    async def _in_time(self, futures: Sequence[Future[Any]], errors: bool = False) -> list[Any]:
        """The futures' results; what has not begun is cancelled if time runs out, or the client leaves."""
        waited = [asyncio.wrap_future(future) for future in futures]
        try:
            return await asyncio.gather(*waited, return_exceptions=errors)
        finally:
            for each in waited:
                each.cancel()

    def _draw(self, jobs: Sequence[Callable[[], Any]]) -> Sequence[Any]:
        return [job() for job in jobs]

    def _run(self, images: Sequence[torch.Tensor]) -> Sequence[Answer]:
        with self.metrics.batch(len(images)):
            return self.engine(images)

    # ---------------------------------------------------------------- one request
    async def within_limits(self, images: int, work: Callable[[], Any], gone: Callable[[], Any]) -> Any:
        """Take so many images into the queue, do the work before the deadline, unless the client leaves.

        gone: makes a coroutine that ends when the client has left.
        """
        self.admit(images)
        self.waiting += images
        self.metrics.accepted.inc(images)
        outcome = "refused"
        task, left = asyncio.ensure_future(work()), asyncio.ensure_future(gone())
        try:
            await asyncio.wait({task, left}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                result = task.result()
                outcome = "answered"
                return result
            outcome = "left" if left.done() else "late"
            if left.done():
                raise Refused(499, "the client has left")
            raise Refused(504, f"no answer within {self.limits.seconds:g} s: repeat the request later")
        finally:
            self.waiting -= images
            self.metrics.ended.labels(outcome).inc(images)
            for each in (task, left):
                each.cancel()
            await asyncio.gather(task, left, return_exceptions=True)
