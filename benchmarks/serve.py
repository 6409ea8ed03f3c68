"""`omma serve` under load, at overload, when it is ended or killed, and for an hour of hostile requests.

    python benchmarks/serve.py MODEL IMAGES [--rounds 7] [--requests 200] [--clients 16] [--json FILE]
    python benchmarks/serve.py MODEL IMAGES --soak 60 [--rate 6] [--seed 0]

The server is a process of its own, and so are its clients; they use 127.0.0.1 alone, and every loop is
bounded. Without --soak:

- equal: --requests requests of 1 to 4 images from --clients clients, each vector beside that of `omma embed`.
- alone, load: seconds of a request (p50, p99) of one client, and of --clients of them, and images/s; in turn
  with the model called directly in another process, in batches of the commands' size (Model.embed).
- overload: a queue of 8 images and 32 clients: every request has an answer, 200 or 429, and the server's
  counts agree.
- end, kill: SIGTERM under load answers what was accepted, with exit status 0; after SIGKILL nothing is left
  in the folder for temporary files, and a new server takes the same port.

--soak: minutes of honest and hostile requests (serve_attacks.py) at --rate a second, each with the statuses
that it may have; memory, threads and open files of the server every minute; every minute one photo's vector
must have the same bits as at first. An unexpected status, an answer that is no JSON, or a server that ends
is a failure: exit status 1.
"""

import argparse
import collections
import io
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import machine
from serve_clients import Clients, as_request, serving, spread, statuses


# ---------------------------------------------------------------- measurements
def equal(args: argparse.Namespace, photos: list[bytes]) -> dict[str, Any]:
    """Vectors over HTTP beside those of the command."""
    import pyarrow.parquet as pq

    rng = np.random.default_rng(args.seed)
    groups = [rng.choice(len(photos), rng.integers(1, 5)).tolist() for _ in range(args.requests)]
    with tempfile.TemporaryDirectory() as folder:
        for i, data in enumerate(photos):
            Path(folder, f"{i:05}.jpg").write_bytes(data)
        out = Path(folder, "e.parquet")
        words = [
            "embed",
            args.model,
            folder,
            "--out",
            str(out),
            "--device",
            "cpu",
            "--precision",
            args.precision,
        ]
        subprocess.run([sys.executable, "-m", "omma", *words], check=True, stdout=subprocess.DEVNULL)
        table = pq.read_table(out)
    names = {path: i for i, path in enumerate(table["path"].to_pylist())}
    vectors = np.stack(table["vector"].to_numpy())
    requests = [(as_request([photos[i] for i in group], "/embed?format=npy"), len(group)) for group in groups]
    with serving(args.model, "--precision", args.precision) as server:
        rows, _ = Clients(server, requests, args.clients, keep=True).rows()
        batches = server.count("omma_batch_images_count")
        notes = server.lines
    different = 0
    for i, status, _, body in rows:
        expected = vectors[[names[f"{k:05}.jpg"] for k in groups[i]]]
        different += status != 200 or not np.array_equal(np.load(io.BytesIO(body)), expected)
    images = sum(map(len, groups))
    return {
        "requests": len(rows),
        "images": images,
        "batches": batches,
        "different": different,
        "notes": notes,
    }


def load(args: argparse.Namespace, photos: list[bytes]) -> dict[str, Any]:
    """Seconds and images/s, in turn with the model called directly."""
    import torch

    from omma import weights
    from omma.core.device import PRECISIONS
    from omma.features.extract import batch_size

    model = weights.load(args.model)
    size = batch_size(model.preprocess, torch.device("cpu"))
    model = model.to(PRECISIONS[args.precision])
    several = [photos[i % len(photos)] for i in range(args.requests)]
    requests = [(as_request([data], "/embed?format=npy"), 1) for data in several]
    lone = requests[: max(20, args.requests // 8)]
    result: dict[str, list[Any]] = collections.defaultdict(list)
    with serving(args.model, "--precision", args.precision, *args.option) as server:
        for turn in range(args.rounds + 1):
            rows, seconds = Clients(server, lone, 1).rows()
            alone = spread(rows)
            rows, seconds = Clients(server, requests, args.clients).rows()
            start = time.perf_counter()
            model.embed(several, size, 2)
            direct = time.perf_counter() - start
            start = time.perf_counter()
            for data in several[:20]:
                model.embed([data], 1, 1)
            direct_lone = (time.perf_counter() - start) / 20
            if turn == 0:
                continue  # warm-up
            result["alone_ms"].append(alone)
            result["load_ms"].append(spread(rows))
            result["statuses"].append(statuses(rows))
            result["images_per_second"].append(args.requests / seconds)
            result["direct_images_per_second"].append(args.requests / direct)
            result["direct_lone_ms"].append(1000 * direct_lone)
            result["share_of_direct"].append(direct / seconds)
        notes, status = server.lines, server.status()
    medians: dict[str, Any] = {
        key: statistics.median(values) for key, values in result.items() if isinstance(values[0], float)
    }
    for key in ("alone_ms", "load_ms"):
        medians[key] = {p: statistics.median(row[p] for row in result[key]) for p in ("p50", "p99")}
    return {"median": medians, "rounds": dict(result), "batch": size, "notes": notes, "server": status}


def overload(args: argparse.Namespace, photos: list[bytes]) -> dict[str, Any]:
    """More requests than the queue holds."""
    requests = [(as_request([photos[i % len(photos)]], "/embed?format=npy"), 1) for i in range(args.requests)]
    with serving(args.model, "--precision", args.precision, "--queue", "8", "--images", "4") as server:
        rows, seconds = Clients(server, requests, 32).rows()
        accepted = server.count("omma_images_accepted_total")
        answered = server.count('omma_images_ended_total{outcome="answered"}')
    found = statuses(rows)
    good = [row for row in rows if row[1] == 200]
    lost = len(requests) - found.get(200, 0) - found.get(429, 0)
    return {
        "statuses": found, "accepted": accepted, "answered": answered, "lost": lost,
        "ms_of_answers": spread(good), "images_per_second": len(good) / seconds,
    }  # fmt: skip


def endings(args: argparse.Namespace, photos: list[bytes]) -> dict[str, Any]:
    """SIGTERM and SIGKILL under load."""
    requests = [(as_request([photos[i % len(photos)]], "/embed?format=npy"), 1) for i in range(args.requests)]
    with serving(args.model, "--precision", args.precision) as server:
        clients = Clients(server, requests, 8)
        time.sleep(1.5)
        accepted = server.count("omma_images_accepted_total")
        status = server.end()
        rows, _ = clients.rows()
        last = server.lines[-1] if server.lines else ""
        port = server.port
    ended = {
        "exit_status": status,
        "accepted_before": accepted,
        "statuses": statuses(rows),
        "last_line": last,
    }
    with serving(args.model, "--precision", args.precision, "--port", str(port)) as server:
        clients = Clients(server, requests, 8)
        time.sleep(1.5)
        status = server.end(signal.SIGKILL)
        rows, _ = clients.rows()
        left = sorted(os.listdir(server.folder.name))
    killed = {"exit_status": status, "statuses": statuses(rows), "left": left}
    with serving(args.model, "--precision", args.precision, "--port", str(port)) as server:
        killed["same_port_again"] = json.loads(server.get("/health"))["status"]
    return {"end": ended, "kill": killed}


# ---------------------------------------------------------------- soak
def soak(args: argparse.Namespace, photos: list[bytes]) -> int:
    """Minutes of mixed requests; the exit status."""
    from serve_attacks import BUSY, Attacks, Request

    counts: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    failures: list[str] = []

    def one(request: Request) -> None:
        try:
            status = request.send()
        except Exception as error:
            failures.append(f"{request.kind}: {type(error).__name__}: {error}"[:300])
            counts[request.kind][-1] += 1
            return
        counts[request.kind][status] += 1
        if status not in request.allowed | BUSY:
            failures.append(f"{request.kind}: status {status}")

    with serving(args.model, "--precision", args.precision, "--body-seconds", "15", *args.option) as server:
        facts = json.loads(server.get("/model"))
        maps = [name for name in facts["maps"] if name != "occlusion"]  # it takes hundreds of forward passes
        attacks = Attacks((server.host, server.port), photos, args.seed, facts["index"] is not None, maps)
        canary = as_request([photos[0]], "/embed?format=npy"), 1
        first, threads = None, list[threading.Thread]()
        start = time.monotonic()
        end, minute, sent = start + 60 * args.soak, start, 0
        while (now := time.monotonic()) < end and server.process.poll() is None:
            if now >= minute:
                rows, _ = Clients(server, [canary], 1, keep=True).rows()
                first = first or rows[0][3]
                if rows[0][1] != 200 or rows[0][3] != first:
                    failures.append(f"the canary's answer changed: status {rows[0][1]}")
                line = {
                    "minute": round((now - start) / 60, 1),
                    "sent": sent,
                    "failures": len(failures),
                    **server.status(),
                }
                print(json.dumps(line), flush=True)
                threads.append(threading.Thread(target=one, args=(attacks.slow(),), daemon=True))
                threads[-1].start()
                minute += 60
            threads = [thread for thread in threads if thread.is_alive()]
            if len(threads) < args.clients:
                threads.append(threading.Thread(target=one, args=(attacks.draw(),), daemon=True))
                threads[-1].start()
                sent += 1
            time.sleep(max(0.0, start + (sent + 1) / args.rate - time.monotonic()) if sent else 0.01)
        for thread in threads:
            thread.join(150)
        failures += ["a request has no answer" for thread in threads if thread.is_alive()]
        crashed = server.process.poll() is not None
        status = None if crashed else server.status()
        exit_status = server.process.returncode if crashed else server.end()
        left = sorted(os.listdir(server.folder.name))
    total = collections.Counter[int]()
    for counter in counts.values():
        total.update(counter)
    result = {
        "sent": sent, "statuses": dict(sorted(total.items())), "failures": failures[:50], "crashed": crashed,
        "exit_status": exit_status, "left": left, "server": status, "log": server.lines[-20:],
        "kinds": {kind: dict(counter) for kind, counter in sorted(counts.items())},
    }  # fmt: skip
    print(json.dumps(result, indent=1), flush=True)
    return int(bool(failures or crashed or exit_status or left))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("images", help="a folder of JPEG or PNG files")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--photos", type=int, default=100, help="images that are sent")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--only", nargs="+", choices=("equal", "load", "overload", "endings"))
    parser.add_argument("--option", type=shlex.split, default=[], help="for omma serve: --option=--no-exact")
    parser.add_argument("--soak", type=float, help="minutes")
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second of --soak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from serve_attacks import photos as read

    photos = read(args.images, args.photos)
    if args.soak is not None:
        return soak(args, photos)
    measures: dict[str, Callable[..., Any]] = {
        "equal": equal,
        "load": load,
        "overload": overload,
        "endings": endings,
    }
    result: dict[str, Any] = {"machine": machine(), "model": args.model, "precision": args.precision}
    for name in args.only or measures:
        result[name] = measures[name](args, photos)
        print(
            name, json.dumps({k: v for k, v in result[name].items() if k != "rounds"}, indent=1), flush=True
        )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
