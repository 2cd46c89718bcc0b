"""DICOM files made by tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_dicom(path: Path, pixels: np.ndarray | None, *, bits: int = 12, kind: str = "MONOCHROME2", **more) -> Path:
    """A file with these stored values; `more` are further elements, and `syntax` how it says to be compressed."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = more.pop("syntax", ExplicitVRLittleEndian)
    made = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.Modality, made.PatientName = "DX", "Tiny^Dicom"
    if pixels is not None:
        colour = pixels.ndim == 3 and pixels.shape[-1] == 3
        made.SamplesPerPixel, made.PhotometricInterpretation = 3 if colour else 1, kind
        if colour:
            made.PlanarConfiguration = 0
        rows = pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:]
        made.Rows, made.Columns = rows
        if pixels.ndim == 3 and not colour:
            made.NumberOfFrames = len(pixels)
        made.BitsAllocated = 8 * pixels.dtype.itemsize
        made.BitsStored = min(bits, made.BitsAllocated)
        made.HighBit = made.BitsStored - 1
        made.PixelRepresentation = int(pixels.dtype.kind == "i")
        content = pixels.tobytes()
        made.PixelData = encapsulate([content]) if UID(meta.TransferSyntaxUID).is_compressed else content
        made["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    for name, value in more.items():
        setattr(made, name, value)
    made.save_as(path, enforce_file_format=True)
    return path
