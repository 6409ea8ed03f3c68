"""What the server counts, in Prometheus's text format."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server; nothing leaves the process but by GET /metrics."""

    TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time, open files
        self.requests = Counter("omma_requests", "Requests answered", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "omma_request_seconds", "From a request's head to its answer", ["path"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.accepted = Counter("omma_images_accepted", "Images taken into the queue", registry=registry)
        self.ended = Counter(
            "omma_images_ended", "Accepted images by outcome: answered, refused, late, left (the client)",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.waiting = Gauge("omma_images_waiting", "Images accepted and not answered", registry=registry)
        self.batches = Histogram("omma_batch_images", "Images a batch", buckets=SIZES, registry=registry)
        self.model = Histogram(
            "omma_model_seconds", "Of the model, by batch", buckets=SECONDS, registry=registry
        )
        self.mean = 0.0  # seconds of the model an image, lately

    def total_requests(self) -> int:
        """Requests that were answered, whatever the status."""
        return self._sum("omma_requests_total")

    def total_images(self) -> int:
        """Images that were answered."""
        return self._sum("omma_images_ended_total", outcome="answered")

    def _sum(self, name: str, **labels: str) -> int:
        samples = (sample for metric in self.registry.collect() for sample in metric.samples)
        return int(sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items()))

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def watch_queue(self, waiting: Callable[[], float]) -> None:
        self.waiting.set_function(waiting)

    @contextmanager
    def batch(self, images: int) -> Iterator[None]:
        """Measure one batch of the model."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self.batches.observe(images)
            self.model.observe(seconds)
            lately = seconds / images
            self.mean = lately if self.mean == 0 else 0.9 * self.mean + 0.1 * lately

    def request(self, path: str, status: int, seconds: float) -> None:
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)
