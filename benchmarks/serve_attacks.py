"""Hostile and honest requests to `omma serve`, each with the statuses that it may have: serve.py --soak."""

import base64
import http.client
import io
import json
import random
import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hostile_images import bombs, mutant, samples
from PIL import Image

WAIT = 120.0  # seconds for an answer: the machine may be busy
GOOD, UNREAD = {200}, {422}
START = b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
BUSY = {408, 429, 503, 504}  # honest answers of a server that has too much to do


class Request(NamedTuple):
    """One exchange: `send` gives the status, 0 for a connection that the server closes."""

    kind: str
    send: Callable[[], int]
    allowed: set[int]


class Attacks:
    """Draws requests for one server, from a seed."""

    def __init__(
        self, address: tuple[str, int], photos: list[bytes], seed: int, index: bool, maps: Sequence[str]
    ) -> None:
        self.address, self.photos = address, photos
        self.random, self.seed, self.number = random.Random(seed), seed, 0
        self.files, self.bombs = samples(), bombs()
        self.polyglots = self._polyglots()
        self.draws: list[tuple[float, Callable[[], Request]]] = [
            (40, self.honest), (12, self.several), (12, self.mutated), (4, self.bomb), (3, self.polyglot),
            (4, self.noise), (4, self.torn_form), (4, self.torn_json), (2, self.wrong_type),
            (3, self.odd_path),
            (1, self.large), (1, self.endless), (2, self.head), (2, self.leaves), (1, self.pipelined),
            (1, self.foreign), (1 if maps else 0, self.explained), (6 if index else 0, self.searched),
        ]  # fmt: skip
        self.maps = maps
        self.slow_draws = [self.slow_head, self.slow_body, self.slow_reader]

    def draw(self) -> Request:
        """The next request."""
        self.number += 1
        weights = [weight for weight, _ in self.draws]
        return self.random.choices([make for _, make in self.draws], weights)[0]()

    def slow(self) -> Request:
        """One that takes half a minute."""
        return self.random.choice(self.slow_draws)()

    # ---------------------------------------------------------------- sending
    def post(self, body: bytes, kind: str, path: str | None = None, **headers: str) -> int:
        """The status of an answer, which must be JSON of one line where it refuses."""
        path = path or self.random.choice(["/predict", "/embed"])
        connection = http.client.HTTPConnection(*self.address, timeout=WAIT)
        try:
            connection.request("POST", path, body, {"Content-Type": kind, **headers})
            return checked(connection.getresponse())
        finally:
            connection.close()

    def raw(self, *parts: bytes, pause: float = 0.0, wait: float = WAIT) -> int:
        """Send bytes as they are; the status, or 0 if the server closes the connection."""
        with socket.create_connection(self.address, timeout=wait) as client:
            try:
                for part in parts:
                    client.sendall(part)
                    time.sleep(pause)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has answered, and closed
            try:
                head = client.recv(64)
            except ConnectionResetError:
                return 0
            return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else 0

    def form(self, files: list[tuple[str, bytes]]) -> tuple[bytes, str]:
        """A multipart body and its type."""
        parts = [
            f'--b0\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode()
            + data + b"\r\n" for name, data in files
        ]  # fmt: skip
        return b"".join(parts) + b"--b0--\r\n", "multipart/form-data; boundary=b0"

    def image(self, kind: str, data: bytes, allowed: set[int]) -> Request:
        """One file in one of the three forms."""
        form = self.random.randrange(3)
        if form == 0:
            return Request(kind, lambda: self.post(data, "image/png"), allowed)
        if form == 1:
            return Request(kind, lambda: self.post(*self.form([(f"{kind}.png", data)])), allowed)
        text = json.dumps({"images": [base64.b64encode(data).decode()]}).encode()
        return Request(kind, lambda: self.post(text, "application/json"), allowed)

    # ---------------------------------------------------------------- images
    def honest(self) -> Request:
        return self.image("honest", self.random.choice(self.photos), GOOD)

    def searched(self) -> Request:
        photo = self.random.choice(self.photos)
        wheres = ["", "path like '%1%'", "label = ", "((((", "path = '' or 1 = 1; drop table", "x" * 20_000]
        where = self.random.choice(wheres)
        body = json.dumps({"images": [base64.b64encode(photo).decode()], "k": 5, "where": where}).encode()
        return Request("search", lambda: self.post(body, "application/json", "/search"), GOOD | {400})

    def explained(self) -> Request:
        photo, what = self.random.choice(self.photos), self.random.choice([*self.maps, "x"])
        path = f"/explain?what={what}&format={self.random.choice(['json', 'npy', 'png'])}"
        return Request("explain", lambda: self.post(photo, "image/png", path), GOOD | {400})

    def several(self) -> Request:
        files = [(f"{i}.jpg", data) for i, data in enumerate(self.random.sample(self.photos, 4))]
        return Request("several", lambda: self.post(*self.form(files)), GOOD)

    def mutated(self) -> Request:
        _, data = mutant(self.files, self.seed, self.number)
        return self.image("mutated", data, GOOD | UNREAD | {400})  # a file of no bytes is no image

    def bomb(self) -> Request:
        name = self.random.choice(sorted(self.bombs))
        return self.image(f"bomb {name}", self.bombs[name], GOOD | UNREAD | {413})

    def polyglot(self) -> Request:
        return self.image("polyglot", self.random.choice(self.polyglots), GOOD | UNREAD)

    def noise(self) -> Request:
        return self.image("noise", self.random.randbytes(self.random.choice([1, 50, 20_000])), UNREAD)

    def _polyglots(self) -> list[bytes]:
        photo, png = self.photos[0], self.files["png"]
        Image.new("L", (1, 30_000)).save(narrow := io.BytesIO(), "PNG")
        return [
            photo + b"PK\5\6" + bytes(18),
            b"GIF89a/*" + png,
            b"%PDF-1.7\n" + photo,
            png[:8] + photo,
            photo[:2] + png,
            b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
            b"RIFF" + struct.pack("<I", 9) + b"WEBP" + photo,
            narrow.getvalue(),
        ]

    # ---------------------------------------------------------------- bodies
    def torn_form(self) -> Request:
        body, kind = self.form([("a.jpg", self.photos[0])])
        cases = [
            (body[: len(body) // 2], kind),
            (body, "multipart/form-data"),
            (body, "multipart/form-data; boundary=other"),
            (b"--b0\r\n" * 9_000, kind),
            (b"--b0\r\nContent-Disposition: form-data; name=x\r\n\r\n\r\n" * 9_000, kind),
            (b"--b0\r\n" + b"X: y\r\n" * 50_000 + b"\r\n--b0--", kind),
            (b"\r\n" * 200_000 + body, kind),
            (self.random.randbytes(5_000), kind),
            self.form([("x" * 100_000, b"1")]),
            self.form([(f"{i}.png", b"") for i in range(500)]),
        ]
        case = self.random.choice(cases)
        return Request("form", lambda: self.post(*case), {400, 413, 422} | GOOD)

    def torn_json(self) -> Request:
        cases = [b"", b"{", b"[" * 100_000, b'{"images":' + b"[]," * 9_000, b'{"images": ["\\ud800"]}',
                 b'{"images": [1e999]}', b"1" * 9_000, b'{"images": ["%s"]}' % (b"A" * 100_001),
                 b"\0" * 99]  # fmt: skip
        case = self.random.choice(cases)
        return Request("json", lambda: self.post(case, "application/json"), {400, 413, 422})

    def wrong_type(self) -> Request:
        kind = self.random.choice(["text/html", "application/x-www-form-urlencoded", "image", "é", "a" * 900])
        return Request("type", lambda: self.post(self.photos[0], kind), {415})

    def large(self) -> Request:
        """100 MB, all of which is sent."""
        head = START + b"Content-Length: 100000000\r\n\r\n"
        return Request("100 MB", lambda: self.raw(head, *[bytes(1_000_000)] * 100), {413})

    def endless(self) -> Request:
        head = START + b"Transfer-Encoding: chunked\r\n\r\n"
        chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        return Request("endless", lambda: self.raw(head, *[chunk] * 100), {413, 429})

    # ---------------------------------------------------------------- heads and connections
    def odd_path(self) -> Request:
        paths = ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.html", "//", "/\\", "/docs/x",
                 "/" + "a" * 9_000, "/predict/", "/%ff%00", "/openapi.json/.."]  # fmt: skip
        path = self.random.choice(paths)
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        return Request("path", lambda: self.raw(head), {307, 400, 404, 405})

    def head(self) -> Request:
        start = b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        cases = [
            (start + b"X: a\r\n" * 100_000, {400, 431, 0}),
            (start + b"X: " + b"a" * 1_000_000, {400, 431, 0}),
            (start + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400, 415}),
            (start + b"Content-Length: -1\r\n\r\n", {400}),
            (start + b"Content-Length: 99999999999999999999\r\nContent-Type: image/png\r\n\r\n", {400, 413}),
            (b"\x16\x03\x01" + self.random.randbytes(200) + b"\r\n\r\n", {400}),
            (b"GET / HTTP/9.9\r\n\r\n", {400, 421}),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 421}),
            (self.random.randbytes(50_000), {400, 431, 0}),
        ]
        data, allowed = self.random.choice(cases)
        return Request("head", lambda: self.raw(data), allowed)

    def leaves(self) -> Request:
        """A client that goes before its answer, or before its body has come."""
        photo = self.photos[0]
        head = START + b"Content-Length: %d\r\n\r\n" % len(photo)
        cut = self.random.choice([len(photo), len(photo) // 2, 0])

        def send() -> int:
            with socket.create_connection(self.address, timeout=WAIT) as client:
                client.sendall(head + photo[:cut])
                if self.random.random() < 0.5:  # with a reset
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return 0

        return Request("leaves", send, {0})

    def pipelined(self) -> Request:
        one = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        return Request("pipelined", lambda: self.raw(one * 200), GOOD)

    def foreign(self) -> Request:
        headers = self.random.choice([{"Host": "rebound.example"}, {"Origin": "https://x.example"}])
        return Request("foreign", lambda: self.post(self.photos[0], "image/png", **headers), {403, 421})

    def slow_head(self) -> Request:
        parts = [b"POST /embed HTTP/1.1\r\n", *[b"X: a\r\n"] * 40]
        return Request("slow head", lambda: self.raw(*parts, pause=1.0), {0})

    def slow_body(self) -> Request:
        head = START + b"Content-Length: 9999\r\n\r\n"
        return Request("slow body", lambda: self.raw(head, *[b"a"] * 40, pause=1.0), {408, 0})

    def slow_reader(self) -> Request:
        """Asks for much and reads none of it."""
        one = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

        def send() -> int:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.settimeout(WAIT)
                client.connect(self.address)
                try:
                    client.sendall(one * 2_000)
                    time.sleep(40)
                    while client.recv(1 << 16):
                        pass
                except (ConnectionError, TimeoutError):
                    pass
            return 0

        return Request("slow reader", send, {0})


def checked(answer: http.client.HTTPResponse) -> int:
    """The status; an error's body must be one line of JSON. Raises AssertionError."""
    body = answer.read()
    if answer.status != 200:
        error = json.loads(body)["error"]
        assert isinstance(error, str), body[:200]
        assert error, body[:200]
        assert "\n" not in error, error
    return answer.status


def photos(folder: str, count: int) -> list[bytes]:
    """The bytes of some images of a folder, in the order of their names; noise if it has none."""
    files = [file for file in sorted(Path(folder).rglob("*")) if file.suffix in (".jpg", ".png")][:count]
    if files:
        return [file.read_bytes() for file in files]
    rng, made = np.random.default_rng(0), []
    for _ in range(count):
        Image.fromarray(rng.integers(0, 256, (192, 256, 3), dtype=np.uint8)).save(
            file := io.BytesIO(), "JPEG"
        )
        made.append(file.getvalue())
    return made
