"""The images of a request: multipart files, the bytes of one image, or JSON with base64."""

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from omma.serving.limits import Limits
from omma.serving.refusals import Refused, busy, shown

CHUNK = 1 << 18  # bytes that are parsed at a time; other requests take turns
NAME = 100  # characters of a file's name that are kept
VALUES = 1_000  # that a JSON body may hold beside those of its images
FIELDS = 32  # of a form, beside its files
ACCEPTED = "multipart/form-data with files, image/* with one image's bytes, or application/json"


class Upload(NamedTuple):
    """One image as it came."""

    name: str  # for people, in one line
    data: bytes


@dataclass
class Body:
    """A request's images and its options, from the query, the form or the JSON object."""

    uploads: list[Upload]
    options: dict[str, Any] = field(default_factory=dict)


class Held:
    """Bytes of bodies in memory, of all requests together."""

    def __init__(self, most: int) -> None:
        self.most, self.now = most, 0

    def add(self, count: int) -> None:
        """Raise Refused (429) if the bodies of other requests take the memory."""
        if self.now + count > self.most:
            raise busy("the server holds as many uploads as it may: repeat the request")
        self.now += count

    def remove(self, count: int) -> None:
        self.now -= count


@asynccontextmanager
async def received(request: Request, limits: Limits, held: Held) -> AsyncIterator[Body]:
    """The request's body; its bytes count as held until the context ends.

    Raises Refused: 400 for what cannot be parsed, 408 for a body that does not arrive in time, 413 for one
    that is too large, 415 for another type, 429 where other requests take the memory.
    """
    parse = _parser(request.headers)
    size = 0

    def more(count: int) -> None:
        nonlocal size
        if size + count > limits.request_bytes:
            raise Refused(413, f"the request is over {limits.request_bytes:,} bytes")
        held.add(count)
        size += count

    try:
        try:
            async with asyncio.timeout(limits.body_seconds):
                data = await _read(request, more)
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {limits.body_seconds:g} s") from None
        except ClientDisconnect:
            raise Refused(400, "the connection was closed before the body was complete") from None
        body = await parse(data, request.headers, limits)
        _check(body, limits)
        body.options = {**dict(request.query_params), **body.options}
        yield body
    finally:
        held.remove(size)


def _parser(headers: Headers) -> Any:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "a compressed body (Content-Encoding) is not read: send it as it is")
    if kind == "multipart/form-data":
        return _multipart
    if kind == "application/json":
        return _json
    if kind.startswith("image/") or kind == "application/octet-stream":
        return _raw
    raise Refused(415, f"content type {kind[:NAME] or 'missing'}: send {ACCEPTED}")


async def _read(request: Request, more: Any) -> bytes:
    claimed = request.headers.get("content-length")
    counted = 0
    if claimed is not None:  # refused before a byte of it is read; h11 holds the client to what it claims
        more(int(claimed))
        counted = int(claimed)
    parts, arrived = [], 0
    async for chunk in request.stream():
        arrived += len(chunk)
        if arrived > counted:
            more(arrived - counted)
            counted = arrived
        parts.append(chunk)
    return b"".join(parts)


def _check(body: Body, limits: Limits) -> None:
    if not body.uploads:
        raise Refused(400, f"the request has no image: send {ACCEPTED}")
    if len(body.uploads) > limits.images:
        raise Refused(413, f"{len(body.uploads)} images: a request may hold {limits.images}")
    for upload in body.uploads:
        if len(upload.data) > limits.image_bytes:
            raise Refused(413, f"{upload.name}: over {limits.image_bytes:,} bytes")


def _named(name: str | None, number: int) -> str:
    """A client's name for its file, without folders; numbers count from 1."""
    name = shown((name or "").replace("\\", "/").rpartition("/")[2])[:NAME]
    return name or f"image {number}"


# ---------------------------------------------------------------- forms
async def _raw(data: bytes, headers: Headers, limits: Limits) -> Body:
    return Body([Upload("image 1", data)] if data else [])


class _InMemory(MultiPartParser):
    """Writes no file to disk: the body is in memory already."""

    spool_max_size = 1 << 62


async def _multipart(data: bytes, headers: Headers, limits: Limits) -> Body:
    async def chunks() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]
            await asyncio.sleep(0)
        yield b""

    try:
        parser = _InMemory(
            headers, chunks(), max_files=limits.images, max_fields=FIELDS, max_part_size=1 << 16
        )
        form = await parser.parse()
    except MultiPartException as error:
        too_many = "Too many files" in error.message
        why = f"over {limits.images} files in a request" if too_many else f"multipart: {error.message}"
        raise Refused(413 if too_many else 400, why) from None
    except (ValueError, KeyError, UnicodeError) as error:
        raise Refused(400, f"multipart: {error}") from None
    uploads, options = [], {}
    async with _closing(form):
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                uploads.append(Upload(_named(value.filename, len(uploads) + 1), await value.read()))
            else:
                options[name] = value
    return Body(uploads, options)


@asynccontextmanager
async def _closing(form: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await form.close()


async def _json(data: bytes, headers: Headers, limits: Limits) -> Body:
    structure = sum(data.count(sign) for sign in (b"[", b"{", b",", b":"))
    if structure > 8 * limits.images + VALUES:  # a list takes twenty times the memory of its text
        raise Refused(413, "the JSON holds too many values")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise Refused(400, 'the JSON must be an object with "images": a list of base64 texts')
    uploads = [_decoded(item, number) for number, item in enumerate(content["images"], 1)]
    return Body(uploads, {name: value for name, value in content.items() if name != "images"})


def _decoded(item: Any, number: int) -> Upload:
    name, text = (item.get("name"), item.get("data")) if isinstance(item, dict) else (None, item)
    if not isinstance(text, str) or not (name is None or isinstance(name, str)):
        raise Refused(400, f'image {number}: must be base64, or an object with "data" (base64) and "name"')
    if text.startswith("data:"):
        text = text.partition(",")[2]
    name = _named(name, number)
    try:
        return Upload(name, base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"{name}: no base64: {error}") from None
