"""What stands before all routes: who may ask, headers that restrain browsers, and what is counted."""

import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omma.serving.metrics import Metrics
from omma.serving.refusals import shown

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Guard:
    """Middleware: a browser on this machine must not be led here by a page from elsewhere.

    Such a page could reach the server under a name of its own (DNS rebinding) or post to it. So Host must be
    one of `hosts` (None: any), and what a browser says comes from another origin is refused.
    """

    def __init__(
        self, app: ASGIApp, hosts: Collection[str] | None, paths: Collection[str], metrics: Metrics
    ) -> None:
        self.app, self.hosts, self.paths, self.metrics = app, hosts, paths, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        app = self._refusal(Headers(scope=scope), scope["method"]) or self.app
        path = scope["path"] if scope["path"] in self.paths else "other"
        try:
            await app(scope, receive, guarded)
        finally:
            self.metrics.request(path, status, time.perf_counter() - start)

    def _refusal(self, headers: Headers, method: str) -> ASGIApp | None:
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            return JSONResponse({"error": f"Host {shown(host)[:100]!r} is not a name of this server"}, 421)
        origin = headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2] != host
        if method == "POST" and (foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site")):
            return JSONResponse({"error": "the request comes from a page of another site"}, 403)
        return None


def _name(host: str) -> str:
    """A Host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if ":" in host else host.lower()
