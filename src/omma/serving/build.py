"""A service from a model's name: for `omma serve`, and for other servers that run ASGI applications."""

from pathlib import Path
from typing import Any

from omma import weights
from omma.core import device as devices
from omma.core.explain import translated
from omma.evaluation.calibration import Limit, limit
from omma.serving.app import application
from omma.serving.engine import Engine
from omma.serving.limits import Limits
from omma.serving.lookup import Lookup
from omma.serving.maps import Maps
from omma.serving.service import Service
from omma.weights import Model


@translated()
def service_of(
    model: str | Path | Model,
    *,
    index: str | Path | None = None,
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
) -> Service:
    """Load a model and what else it is asked with; arguments and errors are those of `omma.serve`."""
    limits = limits or Limits()
    if not 0 <= max_wait <= limits.seconds:
        raise ValueError(f"max-wait={max_wait:g} s: must lie between 0 and the limit of {limits.seconds:g} s")
    loaded, name = weights.named(model, architecture=architecture, allow_partial=allow_partial)
    where = devices.pick_device(device)
    dtype = devices.pick_precision(precision, where)
    lookup = None if index is None else Lookup(index, loaded.digest, name, where)
    unsure = Limit(None) if loaded.classifier is None else limit(loaded.classifier, error, threshold)
    engine = Engine.of(loaded, name, where, dtype, unsure, max_batch, exact)
    return Service(engine, limits, max_wait, lookup, Maps(engine))


def application_of(model: str | Path | Model, **options: Any) -> Any:
    """An ASGI application of a model, for other servers, such as Ray Serve; options: of `service_of`.

    Such a server limits connections and slow clients by itself, and any Host may be asked for.
    """
    return application(service_of(model, **options))
