"""Damaged and hostile files of weights through `omma.load`: each gives a model or one line, and runs no code.

    python benchmarks/hostile_weights.py [--count 1500] [--seed 0] [--out hostile_weights.jsonl]

Handmade attacks (code in every place of a pickle, bombs, lying headers, archives that point elsewhere) and
seeded mutants of every form that omma reads: files of torch.save (both formats), TorchScript, .npz,
.safetensors, shards, run folders, folders of transformers and timm. Mutants have code or foreign names put
into their pickles, fields of their JSON or header changed, or their bytes. All code that they carry writes a
marker file. Each is loaded, and embeds one image, in another process. Failures are: another exception than
ValueError or OSError, a message that is not one printable line, a process that ends, over 10 s of processor
time, over 1 GiB of memory beyond what the process had, a marker file. A line for each is appended to --out;
the same command goes on after the last one. Prints the counts. For Linux.
"""

import argparse
import collections
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from weights_attacks import attacks, calls, with_call
from weights_honest import Files, samples
from weights_mutants import mutant

from omma import weights
from omma.core.errors import message

SECONDS, BYTES = 10.0, 1 << 30
WAIT = 60.0  # seconds of wall time after which a process hangs
MOST_MESSAGE = 1000  # characters
HEADROOM = 5 << 30  # address space of a process beyond its own


def attempt(path: Path) -> str:
    """The outcome of loading a model and of embedding an image: "loaded", "refused", or what must not be."""
    try:
        model = weights.load(path)
        model.embed([torch.zeros(3, 8, 8, dtype=torch.uint8)])
        lines = list(model.provenance.get("loaded", ()))
    except (ValueError, OSError) as error:
        lines = [str(error)]
        result = "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {message(error)[:300]}"
    else:
        result = "loaded"
    for text in lines:
        if text != message(ValueError(text)) or len(text) > MOST_MESSAGE:
            return f"no printable line: {text[:300]!r} ({len(text)} characters)"
    return result


def write(folder: Path, files: Files) -> Path:
    """Write the files; returns the path of the model."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in files.items():
        if name:
            (folder / name).write_bytes(data)
    return folder if "" in files else folder / next(iter(files))


def _status(field: str) -> int:
    """Bytes of VmHWM (the largest resident memory since `_reset`) or of VmSize."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) << 10


def work(pipe: Connection, folder: str) -> None:
    """Load what lies at the paths that come through the pipe; answer with outcome, seconds and bytes."""
    os.chdir(folder)
    attempt(Path(pipe.recv()))  # imports what is imported once
    pipe.send(None)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + HEADROOM,) * 2)
    while path := pipe.recv():
        Path("/proc/self/clear_refs").write_text("5")
        before, start = _status("VmHWM"), time.process_time()
        result = attempt(Path(path))
        pipe.send((result, time.process_time() - start, _status("VmHWM") - before))


class Loader:
    """A process that loads models, started again when one ends or hangs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, None
        self.honest = write(folder / "honest", samples()["timm"])

    def __call__(self, path: Path) -> dict[str, Any]:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=work, args=(other, str(self.folder)), daemon=True)
            self.process.start()
            other.close()
            self.pipe.send(str(self.honest))
            self.pipe.recv()
        try:
            self.pipe.send(str(path))
            if self.pipe.poll(WAIT):
                result, seconds, used = self.pipe.recv()
                return {"result": result, "seconds": round(seconds, 2), "mib": used >> 20}
            result = "hangs"
        except (EOFError, OSError):
            result = "the process ended"
        self.process.kill()
        self.process.join()
        self.process = None
        return {"result": result, "seconds": WAIT, "mib": 0}

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.pipe.send(None)
            self.process.join()


def failed(row: dict[str, Any]) -> bool:
    """Whether a file did what none may."""
    right = row["result"] in ("loaded", "refused") and not row["ran"]
    return not right or row["seconds"] > SECONDS or row["mib"] > BYTES >> 20


def is_live(marker: Path) -> bool:
    """Whether the code in these files writes the marker in a reader without restrictions."""
    code = with_call(calls(marker)[0])
    subprocess.run([sys.executable, "-c", f"import pickle; pickle.loads({code!r})"], check=True)
    written = marker.exists()
    marker.unlink(missing_ok=True)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("hostile_weights.jsonl"))
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    rows = [row for row in rows if row["seed"] == args.seed]
    done = {(row["kind"], row["number"]) for row in rows}
    with tempfile.TemporaryDirectory() as scratch, args.out.open("a") as out:
        marker, folder = Path(scratch) / "marker", Path(scratch) / "work"
        folder.mkdir()
        assert is_live(marker), "the code in these files is meant to work"
        loader, honest, codes = Loader(folder), samples(), calls(marker)

        def record(kind: str, number: int, name: str, files: Files) -> None:
            row = {"seed": args.seed, "kind": kind, "number": number, "name": name}
            row |= loader(write(folder / "case", files))
            row["ran"] = marker.exists()
            marker.unlink(missing_ok=True)
            rows.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
            if failed(row):
                print(row, file=sys.stderr, flush=True)

        for number, (name, files) in enumerate(honest.items()):
            if ("honest", number) not in done:
                record("honest", number, name, files)
        if any(row["result"] != "loaded" for row in rows if row["kind"] == "honest"):
            loader.close()
            sys.exit("an honest file is not loaded")
        for number, (name, files) in enumerate(attacks(marker).items()):
            if ("attack", number) not in done:
                record("attack", number, name, files)
        for number in range(args.count):
            if ("mutant", number) not in done:
                record("mutant", number, *mutant(honest, codes, args.seed, number))
        loader.close()
    for kind in ("attack", "mutant"):
        own = [row for row in rows if row["kind"] == kind]
        outcomes = dict(collections.Counter(row["result"] for row in own if not failed(row)))
        print(f"{len(own):,} {kind}s, seed {args.seed}: {outcomes}; {sum(map(failed, own))} failures")
    slow, large = (max(rows, key=lambda row, by=by: row[by]) for by in ("seconds", "mib"))
    print(f"slowest {slow['name']}: {slow['seconds']} s; largest {large['name']}: {large['mib']} MiB")
    print(f"files whose code ran: {sum(row['ran'] for row in rows)}")


if __name__ == "__main__":
    main()
