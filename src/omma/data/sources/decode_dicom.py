"""DICOM: the first frame of a file by pydicom (the extra `dicom`), in the units that the file states."""

import importlib
import io
import logging
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from omma.core.errors import install_command, line, need
from omma.core.protocols import BadImage, Inaccessible
from omma.data.sources.decode_pillow import limit

ENDINGS = (".dcm", ".dicom")
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # the whole file is deflated, to any size
_COST = 40  # bytes a pixel and sample: pydicom's copies, and the rescaling in float64
_START = 132  # of the tags: after 128 free bytes and DICM


@cache
def _module() -> Any:
    warnings.filterwarnings("ignore", module="pydicom")  # it reports every oddity of a file
    logging.getLogger("pydicom").addHandler(logging.NullHandler())
    pydicom = need("pydicom", "dicom")
    importlib.import_module("pydicom.pixels")
    return pydicom


def _pydicom() -> Any:
    try:
        return _module()
    except ValueError as error:
        raise Inaccessible(f"DICOM: {line(error)}") from None


def dicom(data: bytes) -> np.ndarray:
    """[h, w, c] of the first frame: uint8 or uint16 as stored, or float32 after rescaling and if signed.

    Rescale slope and intercept, or the modality's table, are applied; MONOCHROME1 is inverted, palettes and
    YBR become RGB [DICOM PS3.3, C.7.6.3 and C.11.1]. Windows (VOI) are for viewers and are not.
    """
    pydicom = _pydicom()
    if _DEFLATED in data[: _START + 12 + int.from_bytes(data[_START + 8 : _START + 12], "little")]:
        raise BadImage("a deflated DICOM file: save it without")
    file = pydicom.dcmread(io.BytesIO(data))
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & {*file.dir("Pixel")}:
        raise BadImage("a DICOM file without an image")
    samples = int(file.SamplesPerPixel)
    limit(int(file.Rows), int(file.Columns), _COST * samples, "DICOM")
    values = _frame(pydicom, file)
    values = values.reshape(int(file.Rows), int(file.Columns), -1)
    space = file.PhotometricInterpretation
    if space == "PALETTE COLOR":
        return pydicom.pixels.apply_color_lut(values[..., 0], file)
    if int(file.BitsAllocated) == 1:
        values = values.astype(bool)
    if space == "MONOCHROME1":
        values = _inverted(values, int(file.BitsStored))
    if samples > 1:
        return values
    plain = float(file.get("RescaleSlope", 1)) == 1 and float(file.get("RescaleIntercept", 0)) == 0
    if plain and "ModalityLUTSequence" not in file:
        return values
    return pydicom.pixels.apply_modality_lut(values, file).astype(np.float32)


def _frame(pydicom: Any, file: Any) -> np.ndarray:
    """The stored values of the first frame."""
    try:
        return pydicom.pixels.pixel_array(file, index=0)
    except (RuntimeError, NotImplementedError) as error:
        syntax = file.file_meta.TransferSyntaxUID
        if not getattr(syntax, "is_compressed", False) or "missing" not in str(error):
            raise
        remedy = install_command(package="python-gdcm")
        raise BadImage(f"DICOM compressed by {syntax.name}: `{remedy}`, or save it uncompressed") from None


def _inverted(values: np.ndarray, bits: int) -> np.ndarray:
    """Stored values whose white is black, within the range of their bits."""
    if values.dtype == bool:
        return ~values
    if values.dtype.kind == "f":
        return -values
    return ~values if values.dtype.kind == "i" else ((1 << bits) - 1 - values).astype(values.dtype)


def may_be(path: str) -> bool:
    """Whether a file may be DICOM by its name: devices often give it no ending."""
    name = path.rpartition("/")[2].lower()
    return name.endswith(ENDINGS) or "." not in name


def notes(contents: Iterable[bytes]) -> list[str]:
    """A line on files with several frames, of which the first is read, among these."""
    number = several = 0
    for data in contents:
        if data[128:132] != b"DICM":
            continue
        number += 1
        try:
            tags = _pydicom().dcmread(io.BytesIO(data), stop_before_pixels=True)
            several += int(tags.get("NumberOfFrames") or 1) > 1
        except Exception:  # decoding says what is wrong with it
            continue
    if not several:
        return []
    return [f"{several} of {number} DICOM files hold several frames: the first of each is read"]
