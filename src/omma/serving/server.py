"""uvicorn with limits on slow clients, and an end that finishes what was accepted."""

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from omma.serving.guard import LOOPBACK
from omma.serving.limits import Limits

HEAD_SECONDS = 20.0  # in which a request's head must arrive, and an answer be read
IDLE_SECONDS = 15  # after which a connection without a request is closed
HEAD_BYTES = 32 << 10  # of a request's head
LINGER = 5.0  # seconds beyond a request's limits that the end waits for


class Connection(H11Protocol):
    """One client's connection, which it cannot hold open by being slow.

    uvicorn limits the time between requests only: a client that sends half a head, or reads no answer, would
    keep its connection for ever.
    """

    limits: Limits
    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._answer(503, "too many connections: repeat the request later")
            return
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        super().data_received(data)
        if self.cycle is not cycle and not self.cycle.response_complete:
            self._expect(None)  # a request has begun; the application limits the time of its body

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:
            self._expect()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect(None)

    def send_400_response(self, msg: str) -> None:
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:  # its body is damaged
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        self._answer(status, f"no valid HTTP request: {str(error)[:200] if error else msg}")

    def _answer(self, status: int, why: str) -> None:
        """Refuse what never becomes a request, and close."""
        body = json.dumps({"error": why}).encode()
        headers = [
            ("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close"),
        ]  # fmt: skip
        with contextlib.suppress(h11.LocalProtocolError):  # the connection is past answering
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._expect()

    def _expect(self, seconds: float | None = HEAD_SECONDS) -> None:
        """End the connection unless something happens within so many seconds; None: wait for nothing."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)


class Server(uvicorn.Server):
    """A server whose end by a signal is a success: what was accepted is answered, the exit status is 0."""

    draining: Callable[[], None]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.draining()
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens for nobody yet, so that the address is known before the model is loaded.

    Raises ValueError for a host or port that cannot be used.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port}: must lie between 0 and 65535; 0 takes a free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--host {host}: no address of this machine ({error})") from None
    bound = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        why = error.strerror or str(error)
        raise ValueError(f"--host {host} --port {port}: {why}; choose another, or --port 0") from None
    return bound


def is_local(host: str) -> bool:
    """Can only this machine reach the server?"""
    return host in LOOPBACK or host.startswith("127.")


def own_names(host: str) -> tuple[str, ...] | None:
    """The names that a request's Host may have: of a local server a few, of others any (None)."""
    return (*LOOPBACK, host) if is_local(host) else None


def address(bound: socket.socket) -> str:
    """The URL of a socket."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def notes(host: str) -> tuple[str, ...]:
    """A warning where others can reach the server."""
    if is_local(host):
        return ()
    return (
        f"--host {host}: whoever reaches this machine can use the model, there is no login, no encryption; "
        "put a proxy with both before it",
    )


def limited(app: ASGIApp, limits: Limits, draining: Callable[[], None] = lambda: None) -> Server:
    """A server of the application with these limits; `draining` is called when a signal ends it."""
    protocol = type("LimitedConnection", (Connection,), {"limits": limits})
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its clients' mistakes would fill the log
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=int(limits.seconds + limits.body_seconds + LINGER),
        h11_max_incomplete_event_size=HEAD_BYTES,
        backlog=min(limits.connections, 128),
    )
    server = Server(config)
    server.draining = draining
    return server


def run(app: ASGIApp, bound: socket.socket, limits: Limits, draining: Callable[[], None]) -> None:
    """Serve on the socket until SIGINT or SIGTERM; then `draining` is called, and what was accepted ends."""
    try:
        with warnings.catch_warnings():
            # what clients send must not fill the log
            warnings.filterwarnings("ignore", module=r"(PIL|tifffile)\b")
            asyncio.run(limited(app, limits, draining).serve(sockets=[bound]))
    finally:
        bound.close()
