"""Loops compiled by Numba (docs/adr/0010), whose code is kept on disk where nobody else can write.

Numba is an extra, `fast`: where it is missing, callers have a slower way, or say that they need it.
"""

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import Any

from omma.core import trust
from omma.core.errors import line

log = logging.getLogger(__name__)


@functools.cache
def compiles() -> bool:
    """Is Numba installed? Importing it takes half a second, which this does not."""
    return importlib.util.find_spec("numba") is not None


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function at its first call; it releases the GIL. options: of `numba.njit`."""
    from numba import njit
    from numba.core.caching import NullCache

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
