"""The OpenAPI description, from which the page /docs is made."""

from typing import Any

from omma.core.files import omma_version
from omma.serving.limits import Limits

_ERROR = {"$ref": "#/components/schemas/Error"}
_REFUSALS = {
    "400": "The body cannot be parsed, or an option is wrong",
    "408": "The body did not arrive in time",
    "413": "The request, an image, or the number of images is over its limit",
    "415": "The content type is not one of those listed",
    "422": "An image cannot be read; images names each, with the reason",
    "429": "The queue is full: repeat after the seconds of the head Retry-After",
    "504": "No answer in time",
}
_NAME = {"name": {"type": "string", "description": "The file's name, or image N"}}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _object(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **more}


def _images(options: dict[str, Any]) -> dict[str, Any]:
    """The three forms of a body."""
    file = {"type": "string", "format": "binary"}
    text = {"type": "string", "format": "byte", "description": "base64"}
    item = {"oneOf": [text, _object({**_NAME, "data": text}, required=["data"])]}
    form = _object(
        {"images": {"type": "array", "items": file}, **options},
        description="Files under any name, and options",
    )
    content = _object(
        {"images": {"type": "array", "items": item}, **options}, required=["images"],
        description='{"images": [...]}: base64 texts, or objects with "name" and "data" (base64)',
    )  # fmt: skip
    raw = {**file, "description": "The bytes of one image file"}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "image/*": {"schema": raw},
            **_json(content),
        },
    }


def _post(summary: str, options: dict[str, Any], answer: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An operation on images; its options may stand in the query, too."""
    query = [
        {"name": name, "in": "query", "schema": schema, "description": schema.get("description", "")}
        for name, schema in options.items()
    ]
    results = {"type": "array", "items": _object({**_NAME, **answer})}
    return {
        "post": {
            "summary": summary,
            "parameters": query,
            "requestBody": _images(options),
            "responses": {
                "200": {
                    "description": "One result an image, in order",
                    "content": _json(_object({"results": results, **more})),
                },
                **{
                    status: {"description": text, "content": _json(_ERROR)}
                    for status, text in _REFUSALS.items()
                },
            },
        }
    }


def _get(summary: str, kind: str = "application/json") -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {"200": {"description": "OK", "content": {kind: {}}}}}}


def document(limits: Limits) -> dict[str, Any]:
    """OpenAPI 3.1 of the server with these limits."""
    number, text = {"type": "number"}, {"type": "string"}
    top = {"type": "integer", "minimum": 2, "default": 2, "description": "Classes an image"}
    form = {"type": "string", "enum": ["json", "npy"], "default": "json",
            "description": "npy: one float32 array [images, dim]"}  # fmt: skip
    classes = {
        "class": text, "probability": number, "runner_up": text, "runner_up_probability": number,
        "abstain": {"type": ["boolean", "null"], "description": "Not sure enough to answer; null: not known"},
        "classes": {"type": "array", "items": text, "description": "Where an image may have several labels"},
        "probabilities": {"type": "array", "items": number},
    }  # fmt: skip
    k = {"type": "integer", "minimum": 1, "default": 10, "description": "Neighbours an image"}
    where = {"type": "string", "description": "Condition on the index's columns, such as label = 'cat'"}
    near = {"type": "array", "description": "Nearest first: the index's columns, and the cosine similarity",
            "items": _object({"path": text, "label": text, "similarity": number})}  # fmt: skip
    kind = {"type": "string", "description": "Kind of map; GET /model lists those of this model"}
    maps = {"type": "string", "enum": ["json", "npy", "png"], "default": "json",
            "description": "npy: float32 [images, height, width]; png: a picture, of one image"}  # fmt: skip
    one = {"type": "string", "description": "Class that is explained; by default the likeliest"}
    heat = {"map": {"type": "array", "items": {"type": "array", "items": number}}}
    vector = {"vector": {"type": "array", "items": number}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "omma serve",
            "version": omma_version(),
            "description": f"Images in, answers out. A request holds at most {limits.images} images of "
            f"{limits.image_bytes / 1e6:.3g} MB and {limits.pixels / 1e6:.3g} million pixels each, "
            f"{limits.request_bytes / 1e6:.3g} MB in all. An answer comes within {limits.seconds:g} s. "
            "There is no login.",
        },
        "paths": {
            "/predict": _post("Class of each image, and how sure", {"top": top}, classes, threshold=number),
            "/embed": _post(
                "Feature vector of each image", {"format": form}, vector, dim={"type": "integer"}
            ),
            "/search": _post("Nearest images of the index", {"k": k, "where": where}, {"neighbours": near}),
            "/explain": _post(
                "How much each pixel matters to the answer",
                {"what": kind, "format": maps, "class": one},
                heat,
                what=text,
            ),
            "/model": _get("What is served: model, classes, precision"),
            "/health": _get("200 when ready, 503 when the server is ending"),
            "/health/live": _get("200 while the process lives"),
            "/metrics": _get("Counters in Prometheus's format", "text/plain"),
            "/openapi.json": _get("This description"),
            "/docs": _get("This description, to read", "text/html"),
            "/": _get("A page to drop an image on", "text/html"),
        },
        "components": {
            "schemas": {
                "Error": _object(
                    {
                        "error": {"type": "string", "description": "What, and what to do"},
                        "images": {"type": "array", "items": _object({**_NAME, "error": text})},
                    },
                    required=["error"],
                )
            }
        },
    }
