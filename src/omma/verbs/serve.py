"""`omma serve`: a model behind HTTP, in one process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omma import weights
from omma.core import device as devices
from omma.core.errors import need
from omma.core.explain import translated
from omma.evaluation.calibration import Limit, limit
from omma.serving.limits import Limits
from omma.weights import Model


@dataclass(frozen=True)
class Serving:
    """A server that is about to answer."""

    address: str  # http://host:port
    notes: tuple[str, ...]  # what an owner should know before others do


@dataclass(frozen=True)
class Served:
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
    max_wait: float = 0.005,
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
    threshold: when to abstain, as for predict. max_batch: images a forward pass, at most; max_wait: seconds
    that an image waits for others. exact: whether answers are those of predict and embed, bit for bit.
    limits: of requests. ready: called when the address is known and the model loaded, just before the first
    answer. Others: as for evaluate. Raises ValueError for an address that cannot be used, an index of another
    model, and where the extra `serve` is not installed.
    """
    for package in ("starlette", "uvicorn", "python_multipart", "prometheus_client"):
        need(package, "serve")
    from omma.serving import app, server
    from omma.serving.engine import Engine
    from omma.serving.lookup import Lookup
    from omma.serving.maps import Maps
    from omma.serving.service import Service

    limits = limits or Limits()
    if not 0 <= max_wait <= limits.seconds:
        raise ValueError(f"max-wait={max_wait:g} s: must lie between 0 and the limit of {limits.seconds:g} s")
    with server.bind(host, port) as bound:
        loaded, name = weights.named(model, architecture=architecture, allow_partial=allow_partial)
        where = devices.pick_device(device)
        classifier = loaded.classifier
        unsure = Limit(None) if classifier is None else limit(classifier, error, threshold)
        dtype = devices.pick_precision(precision, where)
        engine = Engine.of(loaded, name, where, dtype, unsure, max_batch, exact)
        lookup = None if index is None else Lookup(index, loaded.digest, name, where)
        service = Service(engine, limits, max_wait, lookup, Maps(engine))
        names = server.own_names(host)
        address = server.address(bound)
        bound.listen()  # from now on clients wait instead of being refused
        if ready is not None:
            notes = (*loaded.provenance.get("loaded", ()), *unsure.notes, *engine.notes, *server.notes(host))
            ready(Serving(address, notes))
        server.run(app.application(service, names), bound, limits, service.drain)
    return Served(address, service.metrics.total_requests(), service.metrics.total_images())
