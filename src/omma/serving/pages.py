"""The page to drop an image on, and the list of endpoints: files of this folder, nothing from elsewhere."""

from html import escape
from importlib.resources import files
from typing import Any

from starlette.responses import Response

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def answer(name: str) -> Response:
    """One of the page's files."""
    text = (files("omma.serving") / "page" / name).read_text(encoding="utf-8")
    return Response(text, media_type=f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8")


def docs(document: dict[str, Any]) -> Response:
    """The OpenAPI description as a page."""
    operations = [
        (path, method.upper(), operation)
        for path, each in document["paths"].items()
        for method, operation in each.items()
    ]
    post = next(operation for _, method, operation in operations if method == "POST")
    kinds = post["requestBody"]["content"].items()
    bodies = [(kind, each["schema"]["description"]) for kind, each in kinds]
    statuses = [(status, each["description"]) for status, each in post["responses"].items()]
    info = document["info"]
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(info['title'])}: endpoints</title>\n"
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="/page.css">\n</head>\n<body>\n<main>\n'
        f'<header><p class="brand">omma</p><h1>Endpoints</h1></header><p>{escape(info["description"])}</p>'
        '<p><a href="/openapi.json">openapi.json</a> is the same for programs; '
        '<a href="/">drop an image here</a>.</p>',
        *(_operation(*each) for each in operations),
        "<section><h2>Bodies and answers of POST</h2>",
        _table("Content type", "Body", bodies),
        _table("Status", "When", statuses),
        "</section>\n</main>\n</body>\n</html>\n",
    ]
    return Response("".join(parts), media_type="text/html; charset=utf-8")


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [f"<section><h2><code>{method} {escape(path)}</code></h2><p>{escape(operation['summary'])}</p>"]
    if parameters := operation.get("parameters"):
        rows = []
        for each in parameters:
            default = each["schema"].get("default")
            rows.append((each["name"], each["description"] + (f"; {default} by default" if default else "")))
        parts.append(_table("Option", "In the query, the form, or the JSON object", rows))
    return "".join(parts) + "</section>"


def _table(first: str, second: str, rows: list[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th scope=row>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in rows)
    head = f"<thead><tr><th scope=col>{first}</th><th scope=col>{second}</th></tr></thead>"
    return f"<table>{head}<tbody>{body}</tbody></table>"
