"""Loops compiled by Numba (docs/adr/0010), whose code is kept on disk where nobody else can write."""

import logging
from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core.caching import NullCache

from omma.core import trust
from omma.core.errors import line

log = logging.getLogger(__name__)


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function at its first call; it releases the GIL. options: of `numba.njit`."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher: Any = njit(nogil=True, **options)(function)
        try:
            dispatcher.enable_caching()
            distrust = trust.why_not(dispatcher.stats.cache_path)
        except (RuntimeError, OSError) as error:  # no folder can be written
            distrust = line(error)
        if distrust is not None:
            log.info("Numba's code is not cached: %s", distrust)
            dispatcher._cache = NullCache()
        return dispatcher

    return decorate
