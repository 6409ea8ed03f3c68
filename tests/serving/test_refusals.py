"""Every refusal is a clear 4xx with one line of JSON, and the server goes on."""

import base64
import io
import struct
import threading
import time
import zlib
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from uploads import picture

from omma.serving import bodies

PNG = {"content-type": "image/png"}
GOOD = picture()


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG that claims more pixels than it holds."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def refused(answer, status: int, *words: str) -> dict:
    """The JSON of a refusal, which says these words in one line."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert "\n" not in body["error"]
    assert len(body["error"]) <= 300
    for word in words:
        assert word in body["error"]
    return body


def multipart(client, *parts: bytes, boundary: str = "xx"):
    content = b"".join(b"--xx\r\n" + part + b"\r\n" for part in parts) + b"--xx--\r\n"
    return client.post(
        "/embed", content=content, headers={"content-type": f"multipart/form-data; boundary={boundary}"}
    )


# ---------------------------------------------------------------- images
@pytest.mark.parametrize(
    ("data", "word"),
    [
        (GOOD[:80], "damaged PNG"),
        (b"root:x:0:0", "not an image"),
        (bomb(), "million pixels"),
        (bomb(1, 60_000_000), "pixels"),
        (picture(height=1, width=9_000), "too narrow"),
        (b"%PDF-1.4 ...", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"", "empty file"),
    ],
    ids=["truncated", "text", "bomb", "long-bomb", "narrow", "pdf", "svg", "empty"],
)
def test_a_bad_image_is_named_with_the_reason(served, data, word):
    client = served(pixels=1_000_000)
    answer = client.post("/embed", files=[("images", ("a.png", GOOD)), ("images", ("../b\x1b.png", data))])
    body = refused(answer, 422, "b\\x1b.png: ", word)
    assert [each["name"] for each in body["images"]] == ["b\\x1b.png"]
    assert client.post("/embed", content=GOOD, headers=PNG).status_code == 200


def test_pixels_are_counted_before_decoding(served):
    client = served(pixels=2_000)
    refused(client.post("/embed", content=picture(height=45, width=45), headers=PNG), 422, "45 x 45")
    assert client.post("/embed", content=picture(height=44, width=45), headers=PNG).status_code == 200


# ---------------------------------------------------------------- bodies
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "no JSON"),
        (b"[1]", '"images"'),
        (b'{"images": 3}', '"images"'),
        (b'{"images": [3]}', "image 1: must be base64"),
        (b'{"images": [{"name": 1, "data": ""}]}', "image 1"),
        (b'{"images": ["a b"]}', "no base64"),
        (b'{"images": []}', "no image"),
        (b"[" * 500, "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b'{"images": ["' + base64.b64encode(GOOD) + b'"], "format": []}', "format=[]"),
    ],
    ids=["torn", "list", "number", "item", "name", "letters", "none", "deep", "bytes", "option"],
)
def test_bad_json(served, body, words):
    refused(served().post("/embed", content=body, headers={"content-type": "application/json"}), 400, words)


def test_a_json_of_many_values_is_refused_before_it_is_parsed(served, monkeypatch):
    monkeypatch.setattr(bodies, "json", None)
    body = b"[" + b"[]," * 5_000 + b"[]]"
    refused(
        served().post("/embed", content=body, headers={"content-type": "application/json"}), 413, "values"
    )


def test_bad_multipart(served):
    client, disposition = served(), b'Content-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    refused(multipart(client, b"no header"), 400, "multipart")
    refused(multipart(client, disposition + GOOD, boundary="yy"), 400)
    refused(multipart(client, b"X: y\r\n\r\n1"), 400, "multipart")
    refused(client.post("/embed", content=b"", headers={"content-type": "multipart/form-data"}), 400)
    refused(multipart(client, b'Content-Disposition: form-data; name="images"\r\n\r\nx'), 400, "no image")
    many = [b'Content-Disposition: form-data; name="f"\r\n\r\n1'] * 40
    refused(multipart(client, *many), 400, "fields")
    assert multipart(client, disposition + GOOD).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "", "multipart/mixed"])
def test_other_types_are_refused(served, kind):
    refused(served().post("/predict", content=GOOD, headers={"content-type": kind}), 415, "image/*")


def test_a_compressed_body_is_refused(served):
    headers = {**PNG, "content-encoding": "gzip"}
    refused(served().post("/predict", content=zlib.compress(GOOD), headers=headers), 415, "compressed")


def test_sizes_and_counts(served):
    client = served(image_bytes=len(GOOD), request_bytes=20_000, images=2)
    larger = picture(height=50, width=50)
    refused(client.post("/embed", content=larger, headers=PNG), 413, "image 1", f"{len(GOOD):,}")
    refused(client.post("/embed", content=bytes(20_001), headers=PNG), 413, "20,000 bytes")
    refused(client.post("/embed", content=iter([bytes(15_000)] * 2), headers=PNG), 413, "20,000 bytes")
    three = base64.b64encode(b"x").decode()
    refused(client.post("/embed", json={"images": [three] * 3}), 413, "3 images")
    refused(client.post("/embed", files=[("images", ("a", b"x"))] * 3), 413, "over 2 files")
    assert client.post("/embed", content=GOOD, headers=PNG).status_code == 200
    assert client.service.held.now == 0


def test_uploads_of_others_take_the_memory(served):
    client = served(request_bytes=20_000)
    client.service.held.add(79_000)
    answer = client.post("/embed", content=GOOD, headers=PNG)
    refused(answer, 429, "repeat")
    assert int(answer.headers["retry-after"]) >= 1
    client.service.held.remove(79_000)
    assert client.post("/embed", content=GOOD, headers=PNG).status_code == 200


@pytest.mark.parametrize("value", ["1", "4", "x", "-1", "9" * 5000, "2.0"])
def test_options(served, value):
    refused(served().post("/predict", content=GOOD, headers=PNG, params={"top": value}), 400, "top=")


# ---------------------------------------------------------------- paths and clients
def test_unknown_paths_and_methods(served):
    client = served()
    refused(client.get("/etc/passwd"), 404, "/docs")
    refused(client.get("/page/../../x"), 404)
    refused(client.get("/%00%0a"), 404)
    answer = client.get("/predict")
    refused(answer, 405, "POST")
    assert answer.headers["allow"] == "POST"


def test_a_page_of_another_site_cannot_use_the_server(served):
    client = served()
    refused(client.get("/model", headers={"host": "rebound.example:80"}), 421, "rebound.example")
    for headers in ({"origin": "https://x.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
        refused(client.post("/embed", content=GOOD, headers={**PNG, **headers}), 403, "another site")
    own = {**PNG, "origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}
    assert client.post("/embed", content=GOOD, headers=own).status_code == 200


def test_every_answer_restrains_browsers(served):
    client = served()
    for answer in (client.get("/"), client.get("/x"), client.post("/embed")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


# ---------------------------------------------------------------- load
class Gate(torch.nn.Module):
    """A network that waits until it may go on."""

    def __init__(self, network):
        super().__init__()
        self.network, self.open, self.begun = network, threading.Event(), threading.Event()

    def forward(self, x):
        self.begun.set()
        assert self.open.wait(20)
        return self.network(x)


@pytest.fixture
def gated(engines, served):
    """A client whose model waits, and the gate."""

    def make(**limits):
        gate = Gate(engines().network)
        engine = replace(engines(), network=gate)
        return served(engine=engine, **limits), gate

    return make


def in_thread(call):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    return thread, answers


def test_a_full_queue_refuses_with_429_and_loses_nothing(gated):
    client, gate = gated(queue=2, images=2)
    jobs = [in_thread(lambda: client.post("/embed", content=GOOD, headers=PNG)) for _ in range(2)]
    assert gate.begun.wait(10)
    end = time.monotonic() + 10
    while client.service.waiting < 2 and time.monotonic() < end:
        time.sleep(0.005)
    answer = client.post("/embed", content=GOOD, headers=PNG)
    refused(answer, 429, "2 images wait")
    assert int(answer.headers["retry-after"]) >= 1
    assert client.get("/health").json() == {"status": "ready", "waiting": 2}
    gate.open.set()
    for thread, answers in jobs:
        thread.join(10)
        assert answers[0].status_code == 200
    assert client.post("/embed", content=GOOD, headers=PNG).status_code == 200
    assert client.service.waiting == 0


def test_a_deadline_ends_in_504(gated):
    client, gate = gated(seconds=0.3)
    refused(client.post("/embed", content=GOOD, headers=PNG), 504, "0.3 s")
    gate.open.set()
    assert client.post("/embed", content=GOOD, headers=PNG).status_code == 200
    counted = client.service.metrics._sum
    assert counted("omma_images_ended_total", outcome="late") == 1
    assert counted("omma_images_accepted_total") == 2


def test_an_error_of_the_model_is_500_without_details_and_the_server_goes_on(engines, served):
    class Fails(torch.nn.Module):
        fails = True

        def forward(self, x):
            if Fails.fails:
                raise RuntimeError("secret")
            return engines().network(x)

    client = served(engine=replace(engines(), network=Fails()))
    answer = client.post("/embed", content=GOOD, headers=PNG)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    Fails.fails = False
    assert client.post("/embed", content=GOOD, headers=PNG).status_code == 200


def test_a_draining_server_is_not_ready(served):
    client = served()
    assert client.get("/health").status_code == 200
    client.service.drain()
    refused(client.get("/health"), 503, "ending")
    assert client.get("/health/live").status_code == 200


def test_the_channels_must_fit(served):
    pixels = np.zeros((40, 40, 5), np.uint8)
    tifffile.imwrite(file := io.BytesIO(), pixels, photometric="minisblack", planarconfig="contig")
    refused(served().post("/embed", files={"i": ("a.tif", file.getvalue())}), 422, "channels")
