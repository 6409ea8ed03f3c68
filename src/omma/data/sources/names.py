"""What name and first bytes of a file say: is it an image, a sound or a video; how to show the name."""

import errno
from collections.abc import Callable

from omma.core.errors import exhausted, line
from omma.core.protocols import BadImage, Inaccessible
from omma.data.sources.formats import sniff, unread

IMAGES = frozenset(
    "jpg jpeg jpe jfif png webp gif bmp dib tif tiff ppm pgm pbm pnm pfm avif jp2 j2k dcm dicom".split()  # noqa: SIM905
)  # images by their names alone; decoding detects a wrong name
SOUNDS = frozenset("wav wave flac mp3 ogg oga opus".split())  # noqa: SIM905  # sounds by their names alone
VIDEOS = frozenset("mp4 m4v avi mov mkv webm".split())  # noqa: SIM905  # videos by their names alone
OTHERS = frozenset(
    "txt csv tsv json jsonl xml yaml yml md html py log cls pdf npy npz parquet zip tar gz".split()  # noqa: SIM905
)  # never opened; a file with any other extension is an image if its first bytes say so
NO_IMAGE = "not an image"
VIDEO = "a video beside images: give it, or a table that names it, as the source"
PACKED_VIDEO = "a video in an archive: unpack it"
NO_TEXT = "its name is not valid UTF-8"


def is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def why_not(name: str, head: Callable[[], bytes]) -> str | None:
    """Why a file is neither image nor sound; None if it may be one, which decoding decides."""
    if not is_text(name):
        return NO_TEXT
    extension = name.rpartition(".")[2].lower()
    if extension in IMAGES or extension in SOUNDS:
        return None
    if extension in VIDEOS:
        return VIDEO
    if extension in OTHERS:
        return NO_IMAGE
    try:
        start = head()
        return None if sniff(start) else unread(start) or NO_IMAGE
    except OSError as error:
        return no_access(error)
    except BadImage as error:
        return str(error)


def is_sound(path: str) -> bool:
    """Whether a file's name is that of a sound."""
    return path.rpartition(".")[2].lower() in SOUNDS


def is_video(path: str) -> bool:
    """Whether a file's name is that of a video."""
    return path.rpartition(".")[2].lower() in VIDEOS


def is_text(name: str) -> bool:
    """Whether a name can be encoded; bytes that are not valid UTF-8 cannot."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A file's name with the bytes that are not valid UTF-8 written out."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # of Windows
        return name.encode("utf-8", "backslashreplace").decode()


def inaccessible(error: Exception) -> Inaccessible:
    """What an error of access means for an image; raises the error itself if the machine is exhausted."""
    if exhausted(error):
        raise error
    return Inaccessible((getattr(error, "strerror", None) or line(error)).lower())


def no_access(error: OSError) -> str:
    """Why something was left out: for ever where the error is about its name, else only this time."""
    about_names = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR)
    if error.errno in about_names:
        return (error.strerror or line(error)).lower()
    return str(inaccessible(error))
