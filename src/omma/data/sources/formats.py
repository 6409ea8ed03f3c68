"""What format a file has, by its first bytes, and what to do about those that omma does not read."""

import struct

HEAD = 132  # bytes that `sniff` needs: those before and in the mark of DICOM
_MARKS = {  # of formats that omma does not read: where the bytes stand, the bytes, the format
    "a Photoshop file": ((0, b"8BPS"),),
    "SVG": ((0, b"<svg"), (0, b"<?xml")),
    "PDF": ((0, b"%PDF"),),
    "PostScript": ((0, b"%!PS"), (0, b"\xc5\xd0\xd3\xc6")),
    "JPEG XL": ((0, b"\xff\x0a"), (4, b"JXL \r\n\x87\n")),
    "JPEG XR": ((0, b"II\xbc\x01"),),
    "ICO": ((0, b"\0\0\1\0"), (0, b"\0\0\2\0")),
    "ICNS": ((0, b"icns"),),
    "OpenEXR": ((0, b"\x76\x2f\x31\x01"),),
    "Radiance HDR": ((0, b"#?RADIANCE"), (0, b"#?RGBE")),
    "FITS": ((0, b"SIMPLE  ="),),
    "HDF5": ((0, b"\x89HDF\r\n\x1a\n"),),
    "QOI": ((0, b"qoif"),),
    "DDS": ((0, b"DDS "),),
    "a GIMP file": ((0, b"gimp xcf"),),
    "DjVu": ((0, b"AT&TFORM"),),
    "a camera's raw file": (
        (8, b"CR\2"),  # Canon's, in what looks like a TIFF
        (4, b"ftypcrx "),
        (0, b"FUJIFILMCCD-RAW"),
        (0, b"IIRO"),
        (0, b"IIRS"),
        (0, b"MMOR"),
        (0, b"IIU\0"),
        (0, b"FOVb"),
    ),
    "a video": (
        *((4, b"ftyp" + brand) for brand in (b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"M4V ", b"qt  ")),
        *((4, b"ftyp" + brand) for brand in (b"3gp", b"iso5", b"iso6", b"dash", b"MSNV")),
        (4, b"moov"),
        (0, b"\x1a\x45\xdf\xa3"),
        (8, b"AVI "),
    ),
}
_REMEDIES = {
    "a video": "name it .mp4, .avi, .mov, .mkv or .webm, or extract its frames",
    "PDF": "extract its pictures as JPEG or PNG",
    "FITS": "convert it to TIFF",
    "HDF5": "convert it to .npy or TIFF",
    "OpenEXR": "convert it to float TIFF",
    "Radiance HDR": "convert it to float TIFF",
}


def kind(head: bytes) -> str | None:
    """Pillow's name of the format, or DICOM, by the first bytes; None for one that omma does not read."""
    if head[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None if head[8:11] == b"CR\2" else "TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    # text may begin with "BM" too; in a bitmap the size of the next header follows, one of these
    if head[:2] == b"BM" and head[14:18] in {struct.pack("<I", n) for n in (12, 40, 52, 56, 64, 108, 124)}:
        return "BMP"
    if head[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"PF") and head[2:3].isspace():
        return "PPM"
    if _brands(head) & {b"avif", b"avis"}:
        return "AVIF"
    if head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n" or head[:4] == b"\xff\x4f\xff\x51":
        return "JPEG2000"
    if head[128:132] == b"DICM":
        return "DICOM"
    return None


def sniff(head: bytes) -> bool:
    """Whether these first bytes (`HEAD` are enough) look like an image that `decode` reads."""
    return kind(head) is not None


def unread(head: bytes) -> str | None:
    """Name and remedy of a known format that omma does not read, by the first 132 bytes; None for others."""
    if _brands(head) & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
        return "HEIC, which omma does not read: convert it to JPEG or PNG"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in place of the file: run `git lfs pull`"
    if head[:64].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not an image: download it again"
    if head[8:12] == b"WAVE" or head[:4] in (b"fLaC", b"OggS"):
        return "a sound, not an image: commands read it as a file named .wav, .flac or .ogg (docs/sounds.md)"
    for name, marks in _MARKS.items():
        if any(head[at : at + len(mark)] == mark for at, mark in marks):
            return f"{name}, which omma does not read: {_REMEDIES.get(name, 'convert it to JPEG or PNG')}"
    return None


def _brands(head: bytes) -> set[bytes]:
    """The brands of an ISO media file (HEIC, AVIF, videos): its own and those that it is compatible with."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}
