"""Damaged and lying image files through omma's decoder: each must give an image or one BadImage.

    python benchmarks/hostile_images.py [--count 10000] [--seed 0] [--out hostile_images.jsonl]

Mutants of every format and kind that omma reads (flipped bits, cuts, lying lengths, repeated and spliced
parts), and handmade bombs, are decoded in another process. Failures are: another exception than BadImage, a
process that ends, over 10 s of processor time, over 1 GiB of memory beyond what the process had. A line for
each is appended to --out; the same command goes on after the last one. Prints the counts.
"""

import argparse
import collections
import io
import json
import multiprocessing
import struct
import sys
import time
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import tifffile
from PIL import Image

SECONDS, BYTES = 10.0, 1 << 30
WAIT = 60.0  # seconds of wall time after which a decoder hangs
ZSTD = int(PIL.__version__.split(".")[0]) >= 13  # whether Pillow writes it in a TIFF


# ---------------------------------------------------------------- files
def samples() -> dict[str, bytes]:
    """One honest file of every kind."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48))
    grey = np.array(image.convert("L"))
    sixteen = grey.astype(np.uint16) * 257

    def pillow(kind: str, image: Image.Image = image, **options: Any) -> bytes:
        image.save(file := io.BytesIO(), kind, **options)
        return file.getvalue()

    def tiff(values: np.ndarray, **options: Any) -> bytes:
        tifffile.imwrite(file := io.BytesIO(), values, **options)
        return file.getvalue()

    rows = b"".join(bytes([y % 5]) + rng.bytes(48 * 6) for y in range(48))
    exif = Image.Exif()
    exif[274] = 6
    colours = np.array(image)
    files = {
        "jpeg": pillow("JPEG", exif=exif),
        "jpeg-progressive": pillow("JPEG", progressive=True),
        "jpeg-cmyk": pillow("JPEG", image.convert("CMYK")),
        "jpeg-grey": pillow("JPEG", image.convert("L")),
        "png": pillow("PNG", exif=exif),
        "png-palette": pillow("PNG", image.convert("P"), transparency=0),
        "png-alpha": pillow("PNG", image.convert("RGBA")),
        "png-16": pillow("PNG", Image.fromarray(sixteen)),
        "png-16-colours": _png(48, _chunk(b"IDAT", zlib.compress(rows)), bits=16),
        "png-16-interlaced": _png(8, _chunk(b"IDAT", zlib.compress(bytes(999))), bits=16, interlaced=1),
        "png-animated": pillow("PNG", save_all=True, append_images=[image.rotate(180)]),
        "webp": pillow("WEBP"),
        "webp-lossless": pillow("WEBP", lossless=True, exif=exif),
        "webp-animated": pillow("WEBP", save_all=True, append_images=[image.rotate(180)]),
        "gif": pillow("GIF"),
        "gif-animated": pillow("GIF", save_all=True, append_images=[image.rotate(180)]),
        "bmp": pillow("BMP"),
        "bmp-palette": pillow("BMP", image.convert("P")),
        "ppm": pillow("PPM"),
        "pgm-16": b"P5 64 48 4095\n" + (sixteen >> 4).astype(">u2").tobytes(),
        "ppm-text": b"P3 8 6 255\n" + b" ".join(b"%d" % value for value in colours[::8, ::8].ravel()),
        "jp2": pillow("JPEG2000"),
        "j2k": pillow("JPEG2000", no_jp2=True, tile_size=(32, 32)),
        "avif": pillow("AVIF", speed=10),
        "tiff": tiff(colours, photometric="rgb"),
        "tiff-palette": pillow("TIFF", image.convert("P")),
        "tiff-cmyk": pillow("TIFF", image.convert("CMYK")),
        "tiff-bilevel": pillow("TIFF", image.convert("1"), compression="group4"),
        "tiff-jpeg": pillow("TIFF", compression="jpeg"),
        "tiff-lzw": pillow("TIFF", compression="tiff_lzw", tiffinfo={317: 2}),
        "tiff-packbits": pillow("TIFF", compression="packbits"),
        **({"tiff-zstd": pillow("TIFF", compression="zstd")} if ZSTD else {}),
        "tiff-big": tiff(sixteen, bigtiff=True, byteorder=">"),
        "tiff-tiled": tiff(colours, photometric="rgb", tile=(16, 16), compression="zlib", predictor=True),
        "tiff-planar": tiff(colours.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        "tiff-float": tiff(grey.astype(np.float32), compression="lzma"),
        "tiff-pages": tiff(np.stack([sixteen] * 5), compression="zlib"),
        "tiff-imagej": tiff(np.stack([sixteen] * 5), imagej=True),
        "tiff-ome": tiff(np.stack([sixteen] * 5), ome=True),
        "tiff-white-is-zero": tiff(sixteen, photometric="miniswhite"),
    }
    with tifffile.TiffWriter(file := io.BytesIO()) as writer:
        writer.write(colours[::4, ::4], photometric="rgb", subfiletype=1, subifds=1)
        writer.write(colours, photometric="rgb", compression="zlib")
    return files | {"tiff-preview": file.getvalue()}


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png(side: int, *chunks: bytes, colour: int = 2, bits: int = 8, interlaced: int = 0) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


def _zeros(mebibytes: int) -> bytes:
    """A zlib stream of zeros."""
    deflate = zlib.compressobj(9)
    start = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    end = b"\x03\0" + struct.pack(">HH", (mebibytes << 20) % 65521, 1)  # an empty block and the checksum
    return start + block * (mebibytes - 1) + end


def _changed(data: bytes, changes: dict[bytes, bytes]) -> bytes:
    for old, new in changes.items():
        assert old in data
        data = data.replace(old, new)
    return data


def _flat(kind: str, side: int, mode: str = "RGB", **options: Any) -> bytes:
    Image.new(mode, (side, side)).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def _tiled(tags: dict[int, int], inner: bytes) -> bytes:
    """A TIFF with one tile of 64 x 64, some of its tags changed, and the tile's data replaced."""
    entries = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: 64, 323: 64, 324: 0, 325: len(inner)}
    entries |= tags
    entries[324] = 8 + 2 + 12 * len(entries) + 4
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + inner


def bombs() -> dict[str, bytes]:
    """Small files that claim, or inflate to, far more than they hold."""
    gif = _flat("GIF", 16, "P")
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + (16_000 - 1).to_bytes(3, "little") * 2
    progressive = _flat("JPEG", 3_000, progressive=True)
    scan, frame = progressive.index(b"\xff\xda"), progressive.index(b"\xff\xc2")
    wide = progressive[: frame + 5] + struct.pack(">HH", 20_000, 20_000) + progressive[frame + 9 :]
    pixels = _chunk(b"IDAT", _zeros(1))
    return {
        "png-wide": _png(60_000, pixels),
        "png-large": _png(9_600, _chunk(b"IDAT", _zeros(300))),
        "png-overfull": _png(64, _chunk(b"IDAT", _zeros(2_000))),
        "png-text": _png(8, *[_chunk(b"zTXt", b"key\0\0" + _zeros(1_000))] * 3, pixels),
        "png-profile": _png(8, _chunk(b"iCCP", b"a\0\0" + _zeros(1_000)), pixels),
        "png-16": _png(6_200, _chunk(b"IDAT", _zeros(640)), bits=16),
        "gif-wide": gif[:6] + struct.pack("<HH", 60_000, 60_000) + gif[10:],
        "gif-frame": _changed(gif, {struct.pack("<HH", 16, 16): struct.pack("<HH", 9_500, 9_500)}),
        "webp-canvas": b"RIFF" + struct.pack("<I", len(webp)) + webp,
        "webp-flat": _flat("WEBP", 3_000, lossless=True, method=0),
        "jpeg2000-wide": _changed(
            _flat("JPEG2000", 64), {struct.pack(">II", 64, 64): struct.pack(">II", 30_000, 30_000)}
        ),
        "jpeg2000-large": _changed(
            _flat("JPEG2000", 64), {struct.pack(">II", 64, 64): struct.pack(">II", 5_600, 5_600)}
        ),
        "jpeg-scans": progressive[:scan] + progressive[scan : scan + 12] * 3_000 + progressive[scan:],
        "jpeg-progressive": wide,
        "jpeg-large": _flat("JPEG", 13_000),
        "tiff-tile-wide": _tiled({322: 60_000, 323: 60_000}, _zeros(1)),
        "tiff-tile-overfull": _tiled({}, _zeros(3_000)),
        "tiff-image-wide": _tiled({256: 60_000, 257: 60_000}, _zeros(1)),
        "tiff-image-large": _tiled({256: 12_000, 257: 12_000, 322: 12_000, 323: 12_000}, _zeros(140)),
        "tiff-palette": _tiled({262: 3, 322: 30_000, 323: 30_000}, _zeros(900)),
        "tiff-lzw": _flat("TIFF", 3_000, compression="tiff_lzw"),
        "tiff-group4": _flat("TIFF", 7_000, "1", compression="group4"),
        "bmp-wide": _changed(
            _flat("BMP", 64), {struct.pack("<ii", 64, 64): struct.pack("<ii", 60_000, 60_000)}
        ),
        "ppm-wide": b"P6 60000 60000 255\n" + bytes(999),
        "ppm-text": b"P3 9000 9000 255\n" + b"0 " * 999,
    }


def mutant(files: dict[str, bytes], seed: int, number: int) -> tuple[str, bytes]:
    """The kind of file that mutant `number` was made of, and its bytes."""
    rng = np.random.default_rng([seed, number])
    names = sorted(files)
    name = names[number % len(names)]
    data = bytearray(files[name])
    changes: list[Callable[[], None]] = []

    def somewhere(near: int = 0) -> int:
        # half of the changes fall into the headers
        return int(rng.integers(4, min(len(data), near) if near and rng.random() < 0.5 else len(data)))

    def flip() -> None:
        data[somewhere(120)] ^= 1 << int(rng.integers(8))

    def length() -> None:
        form = ("<H", ">H", "<I", ">I")[rng.integers(4)]
        most = (1 << 8 * struct.calcsize(form)) - 1
        value = int(rng.choice([0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, most, rng.integers(most)]))
        packed = struct.pack(form, min(value, most))
        at = somewhere(200)
        data[at : at + len(packed)] = packed

    def splice() -> None:
        other = files[names[rng.integers(len(names))]]
        start = int(rng.integers(len(other)))
        data[somewhere() :] = other[start:]

    def repeat() -> None:
        at = somewhere()
        data[at:at] = data[at : at + int(rng.integers(1, 64))] * int(rng.integers(1, 200))

    def cut() -> None:
        del data[somewhere() :]

    def noise() -> None:
        at = somewhere(120)
        data[at : at + 8] = rng.bytes(8)

    changes = [flip, flip, length, length, splice, repeat, cut, noise]
    for _ in range(int(rng.integers(1, 5))):
        if len(data) > 8:
            changes[rng.integers(len(changes))]()
    return name, bytes(data)


# ---------------------------------------------------------------- decoding
def _peak() -> int:
    """Bytes of the largest resident memory since `_reset`; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def _reset() -> int:
    """Begin to measure the peak anew; bytes in use now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return _peak()


def work(pipe: Connection) -> None:
    """Decode what comes through the pipe; answer with the result, its seconds and its bytes."""
    from omma.core.protocols import BadImage
    from omma.data.sources.decode import decode, plain_jpeg, sniff

    pipe.send("ready")
    while True:
        try:
            data, options = pipe.recv()
        except EOFError:  # the campaign is over
            return
        before, start = _reset(), time.process_time()
        try:
            sniff(data[:64])
            plain_jpeg(data)
            result = f"image of {decode(data, **options).dtype}"
        except BadImage as error:
            result = "BadImage" if "\n" not in str(error) else f"two lines: {error}"
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        pipe.send((result, time.process_time() - start, _peak() - before))


class Decoder:
    """A process that decodes, started again when one ends or hangs."""

    def __init__(self) -> None:
        self.process: Any = None

    def __call__(self, data: bytes, **options: Any) -> dict[str, Any]:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=work, args=(other,), daemon=True)
            self.process.start()
            other.close()
            self.pipe.recv()  # imports done: a busy machine takes its time
        try:
            self.pipe.send((data, options))
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


def failed(row: dict[str, Any]) -> bool:
    """Whether a mutant did what none may."""
    right = row["result"] == "BadImage" or row["result"].startswith("image of ")
    return not right or row["seconds"] > SECONDS or row["mib"] > BYTES >> 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("hostile_images.jsonl"))
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    rows = [row for row in rows if row["seed"] == args.seed]
    done = {(row["kind"], row["number"]) for row in rows}
    files, decoder = samples(), Decoder()
    with args.out.open("a") as out:

        def record(kind: str, number: int, name: str, data: bytes) -> None:
            options = {"channels": 3, "at_least": 16} if number % 2 else {}
            row = {"seed": args.seed, "kind": kind, "number": number, "name": name, "bytes": len(data)}
            row |= decoder(data, **options)
            rows.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
            if failed(row):
                print(row, file=sys.stderr)

        for number, (name, data) in enumerate(bombs().items()):
            if ("bomb", number) not in done:
                record("bomb", number, name, data)
        for number in range(args.count):
            if ("mutant", number) not in done:
                record("mutant", number, *mutant(files, args.seed, number))
    outcomes = collections.Counter(row["result"].split(" of ")[0] for row in rows)
    slow, large = (max(rows, key=lambda row, by=by: row[by]) for by in ("seconds", "mib"))
    print(f"{len(rows):,} files, seed {args.seed}: {dict(outcomes)}; {sum(map(failed, rows))} failures")
    print(f"slowest {slow['name']}: {slow['seconds']} s; largest {large['name']}: {large['mib']} MiB")


if __name__ == "__main__":
    main()
