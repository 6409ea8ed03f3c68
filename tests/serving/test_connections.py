"""Clients that are slow, leave, or speak no HTTP, against a real socket."""

import asyncio
import json
import socket
import threading
import time
from dataclasses import replace

import pytest
import torch
from uploads import picture

from omma.serving import server
from omma.serving.app import application
from omma.serving.limits import Limits
from omma.serving.service import Service

GOOD = picture()


class Slow(torch.nn.Module):
    """A network that takes a while."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, x):
        time.sleep(self.seconds)
        return self.network(x)


class Running:
    """A server in a thread."""

    def __init__(self, engine, limits: Limits) -> None:
        self.network = Slow(engine.network)
        self.service = Service(replace(engine, network=self.network), limits, 0.0)
        self.bound = server.bind("127.0.0.1", 0)
        self.address = self.bound.getsockname()
        self.server = server.limited(application(self.service, ("127.0.0.1",)), limits)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([self.bound])))
        self.thread.start()
        end = time.monotonic() + 10
        while not self.server.started and time.monotonic() < end:
            time.sleep(0.01)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def running(engines, monkeypatch):
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(server.Connection._expect, "__defaults__", (0.4,))
    started: list[Running] = []

    def start(**limits) -> Running:
        started.append(Running(engines(), Limits(**limits)))
        return started[-1]

    yield start
    for each in started:
        each.end()


def request(body: bytes = GOOD, length: int | None = None, path: str = "/embed") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
    return (head + f"Content-Length: {len(body) if length is None else length}\r\n\r\n").encode() + body


def answer(client: socket.socket) -> tuple[int, dict]:
    """Status and JSON of one answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(1 << 16)
        assert part, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    size = int(next(x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length")).split(b":")[1])
    while len(body) < size:
        body += client.recv(1 << 16)
    assert body.strip(), data
    return int(head.split()[1]), json.loads(body)


def ended(client: socket.socket, within: float = 5.0) -> bool:
    """Does the server close the connection, without an answer?"""
    client.settimeout(within)
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_half_a_head_is_not_waited_for(running):
    at = running()
    with at.connect() as silent, at.connect() as slow, at.connect() as good:
        slow.sendall(b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        good.sendall(request())
        assert answer(good)[0] == 200
        good.sendall(request())  # the same connection goes on
        assert answer(good)[0] == 200
        good.sendall(b"GET /hea")
        assert ended(slow)
        assert ended(silent)
        assert ended(good)


def test_a_slow_body_is_408(running):
    at = running(body_seconds=0.3)
    with at.connect() as client:
        client.sendall(request(b"part", length=1000))
        assert answer(client) == (408, {"error": "the body did not arrive within 0.3 s"})
    assert at.service.held.now == 0


def test_an_upload_that_is_too_large_is_refused_while_it_comes(running):
    at = running(request_bytes=100_000)
    with at.connect() as client:
        client.sendall(request(b"x" * 1000, length=100_000_000))
        status, body = answer(client)
        assert (status, body["error"]) == (413, "the request is over 100,000 bytes")
        assert ended(client)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 40_000, 431),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: a\r\n" * 9_000, 431),
        (b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
    ],
    ids=["tls", "long-header", "many-headers", "two-lengths", "no-host"],
)
def test_what_is_no_http_is_refused_as_json(running, data, status):
    at = running()
    with at.connect() as client:
        client.sendall(data)
        found, body = answer(client)
        assert found == status
        assert body["error"].startswith("no valid HTTP request")
        assert ended(client)
    with at.connect() as client:
        client.sendall(request())
        assert answer(client)[0] == 200


def test_a_body_that_breaks_off_its_chunks_is_refused(running):
    at = running()
    with at.connect() as client:
        head = b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
        client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert answer(client)[0] == 400
        assert ended(client)
    assert at.service.held.now == 0


def test_too_many_connections_are_told_so(running):
    at = running(connections=2)
    with at.connect() as first, at.connect() as second:
        first.sendall(request())
        second.sendall(request())
        assert answer(first)[0] == answer(second)[0] == 200
        with at.connect() as third:
            assert answer(third)[0] == 503


def test_who_leaves_takes_no_more_of_the_model(running):
    at = running()
    at.network.seconds = 0.3
    with at.connect() as first:
        first.sendall(request())
        with at.connect() as second:
            time.sleep(0.1)
            second.sendall(request())
            time.sleep(0.1)
        assert answer(first)[0] == 200
    end = time.monotonic() + 5
    while at.service.waiting and time.monotonic() < end:
        time.sleep(0.01)
    counted = at.service.metrics._sum
    assert counted("omma_images_ended_total", outcome="left") == 1
    assert counted("omma_images_ended_total", outcome="answered") == 1
    assert counted("omma_batch_images_sum") == 1


def test_the_end_answers_what_was_accepted(running):
    at = running()
    at.network.seconds = 0.3
    with at.connect() as client, at.connect() as idle:
        client.sendall(request())
        end = time.monotonic() + 5
        while not at.service.waiting and time.monotonic() < end:
            time.sleep(0.01)
        at.server.should_exit = True
        assert answer(client)[0] == 200
        assert ended(client)
        assert ended(idle)
    at.end()
    with pytest.raises(ConnectionRefusedError):
        at.connect()


def test_addresses():
    with server.bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        assert server.address(bound) == f"http://127.0.0.1:{port}"
        bound.listen()
        with pytest.raises(ValueError, match=f"--port {port}: Address already in use"):
            server.bind("127.0.0.1", port)
    with pytest.raises(ValueError, match="--port 70000"):
        server.bind("127.0.0.1", 70_000)
    with pytest.raises(ValueError, match=r"--host no\.such\.invalid"):
        server.bind("no.such.invalid", 0)
    assert server.notes("127.0.0.1") == ()
    assert "no login" in server.notes("0.0.0.0")[0]
    assert server.own_names("0.0.0.0") is None
    assert "localhost" in (server.own_names("127.0.0.1") or ())
