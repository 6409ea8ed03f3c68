"""Members of .tar and .zip archives and where their bytes lie; nothing is unpacked, nothing lost unsaid.

A damaged .tar is read on behind the damage, from the next header whose checksum is right.
"""

import os
import posixpath
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from omma.core.errors import line
from omma.data.sources.limits import LARGEST, in_words, is_bomb

BLOCK = tarfile.BLOCKSIZE
_LARGEST_HEADER = 1 << 20  # bytes of a long name or of a pax header
SEARCHED = 1 << 20  # bytes at a time; a multiple of BLOCK, so that no header lies across two
_SPECIAL = {tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE}
_LONG = {
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
}


class Member(NamedTuple):
    """A file of an archive. where: as `readers.Archive` defines it; reason: why it cannot be used, or ""."""

    name: str
    where: tuple[int, int, int, int, int]
    reason: str = ""


def clean(name: str) -> str:
    r"""A member's name as a relative path: \ is /, and a leading / or drive, . and .. are left out."""
    parts: list[str] = []
    for part in name.replace("\\", "/").split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", ".") and not (not parts and len(part) == 2 and part[1] == ":"):
            parts.append(part)
    return "/".join(parts)


# ---------------------------------------------------------------- zip
def zip_members(file: str) -> Iterator[Member]:
    """The files of a .zip, in the directory's order. Raises ValueError if the directory cannot be read."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise ValueError(f"{file}: not a readable zip ({line(error)}); create or download it again") from None
    starts = np.array([info.header_offset for info in infos], np.int64)
    ends = starts + 30 + np.array([info.compress_size for info in infos], np.int64)
    order = np.argsort(starts, kind="stable")
    shared = np.zeros(len(infos), bool)
    shared[order[1:]] = starts[order[1:]] < np.maximum.accumulate(ends[order])[:-1]
    for info, overlaps in zip(infos, shared.tolist(), strict=True):
        if info.filename.endswith(("/", "\\")) and not info.file_size:
            continue
        if not clean(info.filename):
            reason = "it has no name"
        elif info.flag_bits & 1:
            reason = "encrypted"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            reason = f"compression method {info.compress_type}; use deflate"
        elif overlaps:
            reason = "overlaps another member"
        elif info.file_size > LARGEST or is_bomb(info.file_size, info.compress_size):
            reason = f"unpacks to {in_words(info.file_size)}"
        else:
            reason = ""
        where = (info.header_offset, info.compress_size, info.file_size, info.compress_type, info.CRC)
        yield Member(clean(info.filename), where, reason)


# ---------------------------------------------------------------- tar
class _Header(tarfile.TarInfo):
    """A header whose claims are checked before they are followed."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)  # pyright: ignore[reportArgumentType]
        if header.size < 0 or (header.type in _LONG and header.size > _LARGEST_HEADER):
            raise tarfile.InvalidHeaderError("bad size")  # pyright: ignore[reportAttributeAccessIssue]
        return header


def tar_members(file: str) -> tuple[list[Member], list[str]]:
    """The files of an uncompressed .tar, links followed, and what is wrong with it, a line for each damage.

    Raises ValueError if it has no readable header, OSError if it cannot be accessed.
    """
    members: list[Member] = []
    links: list[tuple[int, str]] = []  # (position among the members, name of the target)
    damages: list[str] = []
    with open(file, "rb") as stream:
        end = os.fstat(stream.fileno()).st_size
        start: int | None = 0 if end else None
        while start is not None:
            stop, problem = _read_from(stream, start, end, members, links)
            start = _next_header(stream, stop + BLOCK)
            if problem:
                lost = f"; bytes {stop:,} to {start or end:,} are not read"
                damages.append(problem + lost * (stop < end))
    if not end:
        damages = ["empty"]
    if not members and damages:
        raise ValueError(f"{file}: not a readable tar ({damages[0]}); create or download it again")
    _follow(members, links)
    return members, damages


def _read_from(
    stream: IO[bytes], start: int, end: int, members: list[Member], links: list[tuple[int, str]]
) -> tuple[int, str]:
    """Append the members from `start` on; where the archive ends or is damaged, and the damage, if any."""
    stream.seek(start)
    at = data = start
    try:
        with tarfile.TarFile(fileobj=stream, tarinfo=_Header, errors="surrogateescape") as archive:
            while (header := archive.next()) is not None:
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # tarfile would keep all
                if archive.offset <= at:  # a pax header may claim a negative size
                    return at, "damaged header"
                at, data = archive.offset, header.offset_data - BLOCK
                _add(header, end, members, links)
    except RecursionError:
        return end, "headers within headers: what follows is not read"
    except (tarfile.TarError, ValueError, OverflowError, OSError, EOFError, KeyError, IndexError) as error:
        return (data, "ends within a member") if at > end else (at, f"damaged header ({line(error)})")
    stream.seek(at)
    block = stream.read(BLOCK)
    if len(block) < BLOCK:
        return end, "ends before its end-of-archive mark: more members may be missing"
    return at, "damaged header" if any(block) else ""


def _add(header: tarfile.TarInfo, end: int, members: list[Member], links: list[tuple[int, str]]) -> None:
    name, where = clean(header.name), (header.offset_data, header.size, header.size, -1, -1)
    if header.isdir():
        return
    if not name:
        members.append(Member(name, where, "it has no name"))
        return
    if header.islnk():
        links.append((len(members), clean(header.linkname)))
        reason = "link"
    elif header.issym():
        links.append((len(members), clean(posixpath.join(posixpath.dirname(name), header.linkname))))
        reason = "link"
    elif header.type in _SPECIAL:
        reason = "not a regular file"
    elif not header.isreg():
        reason = f"of unknown type {header.type!r}"
    elif header.issparse():
        reason = "sparse; repack it without --sparse"
    elif header.offset_data + header.size > end:
        reason = "cut off"
    else:
        reason = "over 1 GB" if header.size > LARGEST else ""
    members.append(Member(name, where, reason))


def _next_header(stream: IO[bytes], start: int) -> int | None:
    """Where the next header lies that is whole, from `start` on; those before POSIX are not found."""
    first = -(-start // BLOCK) * BLOCK
    stream.seek(first)
    while data := stream.read(SEARCHED):
        at = -1
        while (at := data.find(b"ustar", at + 1)) >= 0:
            block = at - 257
            if block < 0 or block % BLOCK:
                continue
            try:
                _Header.frombuf(data[block : block + BLOCK], "utf-8", "surrogateescape")
            except tarfile.TarError:
                continue
            return first + block
        first += len(data)
    return None


def _follow(members: list[Member], links: list[tuple[int, str]]) -> None:
    """Give each link the bytes of its target."""
    if not links:
        return
    targets = dict(links)
    row = {member.name: k for k, member in enumerate(members)}
    for k, target in links:
        at, seen = row.get(target), {k}
        while at is not None and at in targets and at not in seen:
            seen.add(at)
            at = row.get(targets[at])
        if at is None or at in targets:
            reason = f"a link to {target}, which is no file of the archive"
            members[k] = members[k]._replace(reason=reason)
        else:
            members[k] = members[k]._replace(where=members[at].where, reason=members[at].reason)
