"""The routes: what is asked over HTTP, and how answers look as JSON."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from omma.core.device import precision_name, return_memory
from omma.core.files import omma_version
from omma.serving import openapi, pages
from omma.serving.bodies import Body, received
from omma.serving.guard import Guard
from omma.serving.refusals import Refused, shown
from omma.serving.service import Service
from omma.weights import answers

TRIM_SECONDS = 20.0
MOST = 1_000  # classes, or neighbours, that a request may ask for


def application(service: Service, hosts: tuple[str, ...] | None = None) -> ASGIApp:
    """The ASGI application of a service, which it starts and closes.

    hosts: names that a request's Host may have; None: any (a server that others reach by names of their own).
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        trimming = asyncio.create_task(_trim())
        try:
            yield
        finally:
            trimming.cancel()
            service.close()

    routes = Routes(service)
    app = Starlette(
        routes=[Route(path, getattr(routes, name), methods=[method]) for path, method, name in PATHS],
        exception_handlers={Refused: _refused, HTTPException: _unknown, Exception: _mistake},
        lifespan=lifespan,
    )
    return Guard(app, hosts, {path for path, _, _ in PATHS}, service.metrics)


PATHS = (
    ("/", "GET", "page"),
    ("/page.css", "GET", "style"),
    ("/page.js", "GET", "script"),
    ("/docs", "GET", "docs"),
    ("/openapi.json", "GET", "description"),
    ("/health", "GET", "health"),
    ("/health/live", "GET", "live"),
    ("/metrics", "GET", "metrics"),
    ("/model", "GET", "model"),
    ("/predict", "POST", "predict"),
    ("/embed", "POST", "embed"),
    ("/search", "POST", "search"),
    ("/explain", "POST", "explain"),
)


async def _trim() -> None:
    """Give memory back at times: one client's large images would take it for good."""
    while True:
        await asyncio.sleep(TRIM_SECONDS)
        await asyncio.to_thread(return_memory)


class Routes:
    """One method a path."""

    def __init__(self, service: Service) -> None:
        self.service, self.engine = service, service.engine

    # ---------------------------------------------------------------- what there is
    async def page(self, request: Request) -> Response:
        return pages.answer("page.html")

    async def style(self, request: Request) -> Response:
        return pages.answer("page.css")

    async def script(self, request: Request) -> Response:
        return pages.answer("page.js")

    async def docs(self, request: Request) -> Response:
        return pages.docs(openapi.document(self.service.limits))

    async def description(self, request: Request) -> Response:
        return JSONResponse(openapi.document(self.service.limits))

    async def live(self, request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def health(self, request: Request) -> Response:
        if self.service.draining:
            raise Refused(503, "the server is ending")
        return JSONResponse({"status": "ready", "waiting": self.service.waiting})

    async def metrics(self, request: Request) -> Response:
        return Response(self.service.metrics.text(), media_type=self.service.metrics.TYPE)

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._facts())

    # ---------------------------------------------------------------- what is computed
    async def predict(self, request: Request) -> Response:
        """Rows as those of `omma predict`, one an image, with `name` for its path."""
        classifier, threshold = self.engine.classifier, self.engine.unsure.threshold
        if classifier is None:
            raise Refused(
                404, f"{self.engine.name} has no classifier: POST /embed, or serve a model that has one"
            )
        self.service.admit()

        async def rows(body: Body) -> Response:
            top = number(body.options, "top", 2, 2, min(MOST, max(len(classifier.classes), 2)))
            found = await self.service.answers(body.uploads)
            columns = answers.columns(
                classifier, np.stack([np.asarray(a.probabilities) for a in found]), top, threshold
            )
            results = [
                {"name": upload.name, **{key: values[i] for key, values in columns.items()}}
                for i, upload in enumerate(body.uploads)
            ]
            return JSONResponse({"threshold": threshold, "results": results})

        return await self._computed(request, rows)

    async def embed(self, request: Request) -> Response:
        """Vectors as those of `omma embed`; format=npy gives them as one array [n, d]."""
        self.service.admit()

        async def rows(body: Body) -> Response:
            form = choice(body.options, "format", ("json", "npy"))
            found = await self.service.answers(body.uploads)
            if form == "npy":
                return _array(np.stack([answer.vector for answer in found]))
            results = [
                {"name": upload.name, "vector": answer.vector.tolist()}
                for upload, answer in zip(body.uploads, found)
            ]
            return JSONResponse({"dim": len(found[0].vector), "results": results})

        return await self._computed(request, rows)

    async def search(self, request: Request) -> Response:
        """The nearest images of the index, by cosine similarity."""
        lookup = self.service.lookup
        if lookup is None:
            raise Refused(404, "there is no index to search: start the server with --index INDEX")
        self.service.admit()

        async def rows(body: Body) -> Response:
            k = number(body.options, "k", 10, 1, MOST)
            where = text(body.options, "where")
            found = await self.service.answers(body.uploads)
            near = await self.service.aside(lambda: lookup([each.vector for each in found], k, where))
            results = [{"name": upload.name, "neighbours": rows} for upload, rows in zip(body.uploads, near)]
            return JSONResponse({"results": results})

        return await self._computed(request, rows)

    async def explain(self, request: Request) -> Response:
        """A map for each image: format=json (nested lists), npy (float32 [n, h, w]), png (one image)."""
        maps = self.service.maps
        if maps is None or not maps.kinds:
            raise Refused(404, "this server draws no maps")
        self.service.admit()

        async def drawn(body: Body) -> Response:
            what = choice(body.options, "what", maps.kinds)
            form = choice(body.options, "format", ("json", "npy", "png"))
            class_name = text(body.options, "class")
            if form == "png" and len(body.uploads) > 1:
                raise Refused(400, f"format=png: needs one image, and there are {len(body.uploads)}")
            images = await self.service.decoded(body.uploads)
            found = await self.service.drawn([maps.of(image, what, class_name) for image in images])
            if form == "png":
                picture = await self.service.aside(lambda: maps.drawn(images[0], found[0]))
                return Response(picture, media_type="image/png")
            if form == "npy":
                return _array(np.stack(found))
            results = [
                {"name": upload.name, "map": [[float(f"{v:.4g}") for v in row] for row in values.tolist()]}
                for upload, values in zip(body.uploads, found)
            ]
            return JSONResponse({"what": what, "results": results})

        return await self._computed(request, drawn)

    # ---------------------------------------------------------------- inside
    async def _computed(self, request: Request, work: Callable[[Body], Awaitable[Response]]) -> Response:
        service = self.service
        async with received(request, service.limits, service.held) as body:
            images = len(body.uploads)
            return await service.within_limits(images, lambda: work(body), lambda: _left(request))

    def _facts(self) -> dict[str, Any]:
        engine = self.engine
        classifier = engine.classifier
        return {
            "model": engine.name,
            "digest": engine.model.digest,
            "omma": omma_version(),
            "dim": engine.model.encoder.dim,
            "image_size": engine.model.preprocess.size,
            "channels": engine.model.preprocess.channels,
            "device": engine.device.type,
            "precision": precision_name(engine.precision),
            "batch_sizes": list(engine.sizes),
            "same_as_commands": engine.same,
            "classes": None if classifier is None else list(classifier.classes),
            "multi_label": classifier is not None and classifier.multi_label,
            "calibrated": classifier is not None and classifier.calibration.images > 0,
            "threshold": engine.unsure.threshold,
            "index": None if self.service.lookup is None else len(self.service.lookup.index),
            "maps": [] if self.service.maps is None else list(self.service.maps.kinds),
        }


async def _left(request: Request) -> None:
    """Ends when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def number(options: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    """A whole number among a request's options. Raises Refused (400)."""
    value = options.get(name, default)
    try:
        chosen = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
    except ValueError:
        chosen = None
    if chosen is None or not least <= chosen <= most:
        raise Refused(400, f"{name}={str(value)[:40]}: must be a whole number from {least} to {most}")
    return chosen


def choice(options: Mapping[str, Any], name: str, among: tuple[str, ...]) -> str:
    """One of some words, the first by default. Raises Refused (400)."""
    value = options.get(name, among[0])
    if value not in among:
        raise Refused(400, f"{name}={str(value)[:40]}: must be one of {', '.join(among)}")
    return value


def text(options: Mapping[str, Any], name: str) -> str | None:
    """A text, or None. Raises Refused (400)."""
    value = options.get(name)
    if not isinstance(value, str | None):
        raise Refused(400, f"{name}={str(value)[:40]}: must be a text")
    return value or None


def _array(values: np.ndarray) -> Response:
    """An array as an .npy file."""
    np.save(buffer := io.BytesIO(), values)
    return Response(buffer.getvalue(), media_type="application/x-npy")


# ---------------------------------------------------------------- refusals
async def _refused(request: Request, error: Any) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


async def _unknown(request: Request, error: Any) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == 404:
        why = f"no such path: {shown(request.url.path)[:100]}; GET /docs lists those that there are"
    elif error.status_code == 405:
        method, allowed = shown(request.method)[:20], headers.get("Allow", "another")
        why = f"{method} is not for {request.url.path}: use {allowed}"
    else:
        why = shown(str(error.detail))
    return JSONResponse({"error": why}, error.status_code, headers)


async def _mistake(request: Request, error: Any) -> Response:
    return JSONResponse({"error": "the server failed on this request; its log says how"}, 500)
