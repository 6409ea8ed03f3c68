"""DICOM files, written by pydicom: units, photometric interpretations, frames, and what cannot be read."""

import io
import sys

import numpy as np
import pytest

from omma.core.protocols import BadImage, Inaccessible
from omma.data.sources import collection, decode_dicom
from omma.data.sources.decode import decode

STORED = np.random.default_rng(0).integers(0, 4096, (6, 8), dtype=np.uint16)


def written(values: np.ndarray, syntax: str = "1.2.840.10008.1.2.1", **tags) -> bytes:
    """A DICOM file of values [h, w], [h, w, 3] or [frames, h, w]."""
    pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = UID(syntax)
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    meta.MediaStorageSOPInstanceUID = generate_uid()
    out = io.BytesIO()
    file = FileDataset(out, {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    colour = values.ndim == 3 and values.shape[-1] == 3
    file.SamplesPerPixel = 3 if colour else 1
    file.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        file.PlanarConfiguration = 0
    file.Rows, file.Columns = values.shape[:2] if colour else values.shape[-2:]
    if values.ndim == 3 and not colour:
        file.NumberOfFrames = len(values)
    file.BitsAllocated = 8 * values.itemsize
    file.BitsStored = 12 if values.dtype == np.uint16 else 8 * values.itemsize
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(values.dtype.kind == "i")
    file.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(out, enforce_file_format=True)
    return out.getvalue()


def test_stored_values_stay():
    got = decode(written(STORED))
    assert got.dtype == np.uint16
    assert np.array_equal(got[..., 0], STORED)


def test_rescaled_to_hounsfield_units():
    got = decode(written(STORED, RescaleSlope="2", RescaleIntercept="-1024"))
    assert got.dtype == np.float32
    assert np.array_equal(got[..., 0], STORED * 2.0 - 1024)


def test_signed_values_are_floats():
    signed = STORED.astype(np.int16) - 2000
    assert np.array_equal(decode(written(signed))[..., 0], signed)


@pytest.mark.parametrize(("slope", "intercept"), [("1", "0"), ("2", "-5")])
def test_monochrome1_is_inverted(slope, intercept):
    tags = {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": slope, "RescaleIntercept": intercept}
    got = decode(written(STORED, **tags))[..., 0]
    assert np.array_equal(got, (4095 - STORED) * float(slope) + float(intercept))


def test_colour():
    pixels = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert np.array_equal(decode(written(pixels)), pixels)


def test_run_length_encoding():
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.dcmread(io.BytesIO(written(STORED)))
    file.compress(pydicom.uid.RLELossless)
    out = io.BytesIO()
    file.save_as(out)
    assert np.array_equal(decode(out.getvalue())[..., 0], STORED)


def test_first_of_several_frames(tmp_path):
    frames = np.stack([STORED, STORED[::-1]])
    (tmp_path / "film.dcm").write_bytes(written(frames))
    (tmp_path / "IM0001").write_bytes(written(STORED))  # as devices name them
    images = collection.open_images(tmp_path)
    assert [images.path(i) for i in range(2)] == ["IM0001", "film.dcm"]
    assert all(np.array_equal(images.read(i)[..., 0], STORED) for i in range(2))
    assert "1 of 2 DICOM files hold several frames: the first of each is read" in images.notes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-40], "damaged DICOM"),
        (lambda data: data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"), "deflated"),
        (lambda data: data[:132], "damaged DICOM|without an image"),
    ],
    ids=["cut", "deflated", "empty"],
)
def test_refused_in_a_line(change, words):
    with pytest.raises(BadImage, match=words) as error:
        decode(change(written(STORED)))
    assert "\n" not in str(error.value)


def test_a_compression_without_its_plugin():
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.dcmread(io.BytesIO(written(STORED)))
    file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1  # by plugins that omma does not bring
    file.PixelData = pydicom.encaps.encapsulate([bytes(64)])
    file["PixelData"].VR = "OB"
    out = io.BytesIO()
    file.save_as(out)
    with pytest.raises(
        BadImage, match=r"DICOM compressed by JPEG Lossless.*python-gdcm|damaged DICOM"
    ) as error:
        decode(out.getvalue())
    assert "\n" not in str(error.value)


def test_without_pydicom(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    decode_dicom._module.cache_clear()
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(40))
    with pytest.raises(Inaccessible, match=r"pydicom is not installed: .*dicom"):
        decode((tmp_path / "a.dcm").read_bytes())
    with pytest.raises(ValueError, match=r"pydicom is not installed: .*dicom") as error:
        collection.open_images(tmp_path)
    assert "\n" not in str(error.value)
    decode_dicom._module.cache_clear()
