"""Ctrl-C, SIGTERM and a closed terminal as a request to stop after the current step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Stop:
    """The signal that asked to stop; false while there was none."""

    signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into `Stop`; a second one acts as usual.

    A signal that is ignored stays so (`nohup`).

    Outside the main thread, where signals cannot be caught, this does nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows lacks one
    handlers = {s: signal.getsignal(s) for s in (getattr(signal, name) for name in names)}
    previous = {s: handler for s, handler in handlers.items() if handler != signal.SIG_IGN}

    def ask(number: int, frame: object) -> None:
        stop.signal = number
        for s, handler in previous.items():
            signal.signal(s, handler)

    for s in previous:
        signal.signal(s, ask)
    try:
        yield stop
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
