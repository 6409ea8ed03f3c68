"""Damage archives, shards and array files in many ways, open them and read all of their images.

    python benchmarks/hostile_containers.py [--mutants 1000] [--seed 0] [--out hostile_containers.jsonl]

Mutants are flips of bits, cuts, numbers overwritten by extreme ones (lying lengths), and bytes moved to
another place, of zip, tar (GNU, pax, with links), shards, npz, npy and IDX. Each is opened and read in a
process of its own, which may take 10 s and 1 GiB. It passes if what comes out is images, a ValueError or an
OSError, and if each member that the damage does not touch is an image or is listed as skipped. Results are
appended to --out, so that the same command continues a run that was stopped. For Linux.
"""

import argparse
import gzip
import io
import json
import os
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from omma.core.protocols import BadImage
from omma.data.sources.collection import open_images

SECONDS, MEMORY = 10, 1 << 30
EXTREME = [0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


class Container(NamedTuple):
    """A file, and for each member the bytes that it takes to read it."""

    name: str  # of the file
    data: bytes
    members: Mapping[str, list[tuple[int, int]]] = MappingProxyType({})


# ---------------------------------------------------------------- containers
def picture(k: int) -> bytes:
    pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), ("PNG", "JPEG", "BMP")[k % 3])
    return file.getvalue()


def files() -> dict[str, bytes]:
    kinds = ("png", "jpg", "bmp")
    return {
        f"{side}/class{k % 2}/{k:02}.{kinds[k % 3]}": picture(k)
        for k in range(6)
        for side in ("train", "val")
    }


def zipped(method: int) -> Container:
    with zipfile.ZipFile(file := io.BytesIO(), "w", method) as archive:
        for name, data in files().items():
            archive.writestr(name, data)
    data = file.getvalue()
    directory = (data.index(b"PK\1\2"), len(data))  # one damage there may cost any member, and is said
    members = {}
    for info in zipfile.ZipFile(file).infolist():
        end = info.header_offset + 30 + len(info.filename) + info.compress_size
        members[info.filename] = [(info.header_offset, end), directory]
    return Container("x.zip", data, members)


def tarred(form: int, links: bool = False, long: bool = False) -> Container:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w", format=form) as archive:
        for name, data in files().items():
            info = tarfile.TarInfo(("folder/" * 20 if long else "") + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if links:
            for kind, target in ((tarfile.LNKTYPE, "train/class0/00.png"), (tarfile.SYMTYPE, "02.bmp")):
                info = tarfile.TarInfo(f"train/class0/link{kind.decode()}.png")
                info.type, info.linkname = kind, target
                archive.addfile(info)
    file.seek(0)
    members = {}
    with tarfile.open(fileobj=file) as archive:
        for info in archive:
            if info.isreg():
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                members[info.name] = [(info.offset, end)]
    return Container("x.tar", file.getvalue(), members)


def shard() -> Container:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as archive:
        for k in range(8):
            for ending, data in (
                ("png", picture(3 * k)),
                ("cls", b"%d" % (k % 2)),
                ("json", b'{"text": "a"}'),
            ):
                info = tarfile.TarInfo(f"{k:03}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        members = {
            f"x.tar/{info.name}": [(info.offset, info.offset_data + 512 * -(-info.size // 512))]
            for info in archive
        }
    return Container("shards/x.tar", file.getvalue(), members)


def arrays(save: Callable[..., None]) -> Container:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 9, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    if save is np.save:
        np.save(file, pixels)
        return Container("x.npy", file.getvalue())
    save(file, x_train=pixels, y_train=np.arange(20) % 3, x_test=pixels[:5], y_test=np.arange(5) % 3)
    return Container("x.npz", file.getvalue())


def idx(packed: bool) -> Container:
    data = struct.pack(">HBB3I", 0, 8, 3, 20, 9, 9) + bytes(range(81)) * 20
    return Container("x-images-idx3-ubyte" + ".gz" * packed, gzip.compress(data, mtime=0) if packed else data)


CONTAINERS: dict[str, Callable[[], Container]] = {
    "zip stored": lambda: zipped(zipfile.ZIP_STORED),
    "zip deflated": lambda: zipped(zipfile.ZIP_DEFLATED),
    "tar GNU": lambda: tarred(tarfile.GNU_FORMAT),
    "tar GNU, long names": lambda: tarred(tarfile.GNU_FORMAT, long=True),
    "tar pax, long names": lambda: tarred(tarfile.PAX_FORMAT, long=True),
    "tar with links": lambda: tarred(tarfile.USTAR_FORMAT, links=True),
    "shard": shard,
    "npz stored": lambda: arrays(np.savez),
    "npz deflated": lambda: arrays(np.savez_compressed),
    "npy": lambda: arrays(np.save),
    "IDX": lambda: idx(False),
    "IDX gz": lambda: idx(True),
}


# ---------------------------------------------------------------- mutants
def mutant(container: Container, rng: np.random.Generator) -> tuple[bytes, str, list[str]]:
    """Damaged bytes, the damage in words, and the members that it does not touch."""
    data, n = bytearray(container.data), len(container.data)
    # half of all damage hits a header, where it does most
    starts = [start for spans in container.members.values() for start, _ in spans] or [0]

    def somewhere() -> int:
        near = int(rng.choice(starts)) + int(rng.integers(0, 600))
        return min(near, n - 1) if rng.random() < 0.5 else int(rng.integers(0, n))

    kind = ("flip", "cut", "lie", "splice")[int(rng.integers(0, 4))]
    touched: list[tuple[int, int]] = []
    if kind == "flip":
        for _ in range(int(rng.integers(1, 5))):
            at = somewhere()
            data[at] ^= 1 << int(rng.integers(0, 8))
            touched.append((at, at + 1))
    elif kind == "cut":
        at = somewhere()
        del data[at:]
        touched.append((at, n))
    elif kind == "lie":
        at, size = somewhere(), int(rng.choice([1, 2, 4, 8, 12]))
        value = EXTREME[int(rng.integers(0, len(EXTREME)))] % 2 ** (8 * min(size, 8))
        text = (
            b"%011o\0" % (value % 2**33)
            if size == 12
            else value.to_bytes(size, str(rng.choice(["little", "big"])))
        )  # pyright: ignore
        data[at : at + size] = text
        del data[max(n, at) :]
        touched.append((at, at + size))
    else:
        source, at, size = somewhere(), somewhere(), int(rng.choice([1, 16, 512, 1024]))
        piece = data[source : source + size]
        data[at : at + len(piece)] = piece
        touched.append((at, at + len(piece)))
    intact = [
        name
        for name, spans in container.members.items()
        if not any(a < end and start < b for a, b in touched for start, end in spans)
    ]
    return bytes(data), kind, intact


def outcome(source: Path, intact: list[str], whole: str) -> tuple[str, str]:
    """What opening a source and reading all of it comes to ("ok" or what is wrong), and details.

    whole: the name by which a damaged archive is listed as such.
    """
    try:
        images = open_images(source)
    except (ValueError, OSError) as error:
        text = str(error)
        return ("ok", f"refused: {text[:150]}") if "\n" not in text else ("message of several lines", text)
    except MemoryError:
        return "memory", "opening"
    except Exception as error:
        return f"{type(error).__name__} on opening", str(error)
    listed = {name for name, _ in images.skipped}
    used = set()
    for i in range(len(images)):
        used.add(images.path(i))
        try:
            images.read(i)
        except BadImage:
            continue
        except MemoryError:
            return "memory", images.path(i)
        except Exception as error:
            return f"{type(error).__name__} on reading", f"{images.path(i)}: {error}"
    lost = [name for name in intact if name not in used | listed and not name.endswith((".cls", ".json"))]
    if lost and whole not in listed:
        return "lost unsaid", ", ".join(lost)
    return (
        "ok",
        f"{len(used)} used, {len(listed)} listed" + f", {len(lost)} intact ones lost and said" * bool(lost),
    )


def in_a_process(judge: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """The outcome in a process of its own, which may take `SECONDS` and `MEMORY`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most = used + 4 * MEMORY  # addresses; allocators reserve more than they use
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        signal.alarm(SECONDS)
        os.write(writer, json.dumps(judge()).encode()[:60_000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read()
    _, status, usage = os.wait4(child, 0)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # a child begins with its parent's pages
    if (usage.ru_maxrss - own) * 1024 > MEMORY:
        return "over 1 GiB", f"{usage.ru_maxrss / 2**20:.1f} GiB"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return ("over 10 s" if number == signal.SIGALRM else f"killed by signal {number}"), ""
    return tuple(json.loads(said)) if said else ("no outcome", "")


def mutants(seed: int, count: int) -> Iterator[tuple[str, int, Container, bytes, str, list[str]]]:
    """`count` mutants of all containers in turn."""
    made = {kind: make() for kind, make in CONTAINERS.items()}
    for number in range(count):
        kind = list(made)[number % len(made)]
        rng = np.random.default_rng((seed, number))
        yield kind, number, made[kind], *mutant(made[kind], rng)


def write(folder: Path, container: Container, data: bytes) -> Path:
    """The source to open."""
    file = folder / container.name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file.parent if file.parent != folder else file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("hostile_containers.jsonl"))
    args = parser.parse_args()
    done: dict[int, dict[str, Any]] = {}
    if args.out.exists():
        rows = [json.loads(line) for line in args.out.read_text().splitlines() if line.endswith("}")]
        done = {
            row["number"]: row for row in rows if row["seed"] == args.seed and row["number"] < args.mutants
        }
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, open(args.out, "a") as out:
        os.environ["OMMA_CACHE"] = f"{folder}/cache"
        for kind, number, container, data, damage, intact in mutants(args.seed, args.mutants):
            if number in done:
                continue
            source = write(Path(folder) / "data", container, data)
            result, detail = in_a_process(lambda: outcome(source, intact, "x.tar"))  # noqa: B023
            row = {"seed": args.seed, "number": number, "container": kind, "damage": damage, "result": result}
            done[number] = row | {"detail": detail}
            out.write(json.dumps(done[number]) + "\n")
            out.flush()
    results = Counter((row["container"], row["result"]) for row in done.values())
    for (kind, result), count in sorted(results.items()):
        print(f"{kind:22} {result:30} {count:6,}")
    failed = [row for row in done.values() if row["result"] != "ok"]
    for row in failed[:20]:
        print(
            f"{row['number']}: {row['container']}, {row['damage']}: {row['result']} ({row['detail'][:200]})"
        )
    print(f"{len(done):,} mutants, {len(failed):,} failed; {time.perf_counter() - started:.0f} s")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
