"""`omma serve`: a model behind HTTP, in one process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omma.core.errors import need
from omma.core.explain import translated
from omma.core.notebook import Displayed
from omma.serving.limits import Limits
from omma.weights import Model


@dataclass(frozen=True)
class Serving:
    """A server that is about to answer."""

    address: str  # http://host:port
    notes: tuple[str, ...]  # what an owner should know before others do


@dataclass(frozen=True)
class Served(Displayed):
    """What a server did until it was ended."""

    address: str
    requests: int
    images: int  # that were answered


@translated()
def serve(
    model: str | Path | Model,
    *,
    index: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    error: float | None = None,
    threshold: float | None = None,
    max_batch: int | None = None,
    max_wait: float = 5.0,
    exact: bool = True,
    limits: Limits | None = None,
    device: str = "auto",
    precision: str = "auto",
    architecture: str | None = None,
    allow_partial: bool = False,
    ready: Callable[[Serving], None] | None = None,
) -> Served:
    """Answer POST /predict, /embed, /search and /explain until SIGINT or SIGTERM; then finish, and return.

    index: a folder that omma index wrote with the same model, for /search. port: 0 takes a free one. error,
    threshold: when to abstain, as for predict. max_batch: images a forward pass, at most; max_wait: milliseconds
    that an image waits for others. exact: whether answers are those of predict and embed, bit for bit.
    limits: of requests. ready: called when the address is known and the model loaded, just before the first
    answer. Others: as for evaluate. Raises ValueError for an address that cannot be used, an index of another
    model, and where the extra `serve` is not installed.
    """
    for package in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
        need(package, "serve")
    from omma.serving import app, build, server

    limits = limits or Limits()
    with server.bind(host, port) as bound:
        service = build.service_of(
            model, index=index, error=error, threshold=threshold, max_batch=max_batch, max_wait=max_wait / 1000,
            exact=exact, limits=limits, device=device, precision=precision, architecture=architecture,
            allow_partial=allow_partial,
        )  # fmt: skip
        names = server.own_names(host)
        address = server.address(bound)
        bound.listen()  # from now on clients wait instead of being refused
        if ready is not None:
            engine = service.engine
            loaded = engine.model.provenance.get("loaded", ())
            notes = (*loaded, *engine.unsure.notes, *engine.notes, *server.notes(host))
            ready(Serving(address, notes))
        server.run(app.application(service, names), bound, limits, service.drain)
    return Served(address, service.metrics.total_requests(), service.metrics.total_images())
