"""The server of serve.py as a process, and its clients as another."""

import asyncio
import collections
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Bodies = list[tuple[bytes, int]]  # HTTP requests, and the images of each


# ---------------------------------------------------------------- the server
class Process:
    """`omma serve` in a process of its own."""

    def __init__(self, model: str, *options: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        words = [sys.executable, "-m", "omma", "serve", model, "--device", "cpu", *options]
        words += [] if "--port" in options else ["--port", "0"]
        environment = {**os.environ, "TMPDIR": self.folder.name}
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if " at http://" in line:
                address = line.split(" at http://")[1].split(",")[0]
                self.host, self.port = address.split(":")[0], int(address.split(":")[1])
                break
        else:
            raise SystemExit(f"the server did not begin: {self.lines}")
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout or ()), daemon=True).start()

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.host}:{self.port}{path}", timeout=60) as answer:
            return answer.read()

    def count(self, name: str) -> int:
        lines = self.get("/metrics").decode().splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith(name)))

    def status(self) -> dict[str, int]:
        """Memory in MiB, threads and open files (Linux)."""
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{self.process.pid}/status").read_text()
            found = {key: int(text.split(key + ":")[1].split()[0]) for key in ("VmRSS", "VmHWM", "Threads")}
            files = len(os.listdir(f"/proc/{self.process.pid}/fd"))
            return {
                "rss": found["VmRSS"] >> 10,
                "peak": found["VmHWM"] >> 10,
                "threads": found["Threads"],
                "files": files,
            }
        return {}

    def end(self, how: int = signal.SIGTERM) -> int:
        """The exit status, after a signal."""
        self.process.send_signal(how)
        return self.process.wait(120)


@contextlib.contextmanager
def serving(model: str, *options: str) -> Iterator[Process]:
    server = Process(model, *options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)
        server.folder.cleanup()


# ---------------------------------------------------------------- clients
def as_request(files: list[bytes], path: str) -> bytes:
    parts = [
        b'--b0\r\nContent-Disposition: form-data; name="images"; filename="%d"\r\n\r\n%s\r\n' % (i, data)
        for i, data in enumerate(files)
    ]
    body = b"".join(parts) + b"--b0--\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b0\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def _client(
    address: tuple[str, int], requests: Bodies, number: Iterator[int], rows: list[Any], keep: bool
) -> None:
    """Send requests one after another; a row of number, status, seconds, body for each."""
    reader = writer = None
    for i in number:
        start, status, body = time.perf_counter(), 0, b""
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(*address)
            assert reader is not None
            writer.write(requests[i][0])
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            status, body = int(head.split()[1]), await reader.readexactly(size)
        except (OSError, EOFError, asyncio.LimitOverrunError):
            if writer is not None:
                writer.close()
            reader = writer = None
        rows.append((i, status, time.perf_counter() - start, body if keep else b""))


def _clients(address: tuple[str, int], requests: Bodies, clients: int, pipe: Any, keep: bool) -> None:
    async def run() -> list[Any]:
        numbers, rows = iter(range(len(requests))), list[Any]()
        await asyncio.gather(*(_client(address, requests, numbers, rows, keep) for _ in range(clients)))
        return rows

    start = time.perf_counter()
    rows = asyncio.run(run())
    pipe.send((rows, time.perf_counter() - start))


class Clients:
    """A process of so many clients; `rows` waits for their answers."""

    def __init__(self, server: Process, requests: Bodies, clients: int, keep: bool = False) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(
            target=_clients, args=((server.host, server.port), requests, clients, other, keep)
        )
        self.process.start()

    def rows(self) -> tuple[list[Any], float]:
        found = self.pipe.recv()
        self.process.join()
        return found


def spread(rows: list[Any]) -> dict[str, float]:
    """Milliseconds of the requests."""
    times = sorted(1000 * row[2] for row in rows)
    return {"p50": times[len(times) // 2], "p99": times[min(len(times) - 1, int(0.99 * len(times)))]}


def statuses(rows: list[Any]) -> dict[int, int]:
    return dict(sorted(collections.Counter(row[1] for row in rows).items()))
