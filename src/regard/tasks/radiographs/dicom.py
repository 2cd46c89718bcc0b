"""One DICOM file as a grey image of 8 bits, as a viewer would show it.

Stored values are rescaled, windowed as the file says (the first window or table of values of interest) and inverted
where low values are bright (MONOCHROME1). Without a window the smallest value becomes black and the largest white. Of
several frames the first is taken. Only pydicom and the decoders beside it are asked: what they cannot decode is told
with the name of its transfer syntax.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regard.tasks.images.decoding import BadImageError, open_image
from regard.wording import shown

DICOM_SUFFIXES = frozenset((".dcm", ".dicom", ".dic"))
_PREAMBLE, _MAGIC = 128, b"DICM"


def is_dicom(path: Path) -> bool:
    """Whether a file is named like DICOM, or begins as one."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(_PREAMBLE + len(_MAGIC))[_PREAMBLE:] == _MAGIC
    except OSError:
        return False


def open_radiograph(path: Path, *, at_least: int = 0) -> Image.Image:
    """The grey image in a file, DICOM or any other kind.

    Args:
        path: the file.
        at_least: as in `open_image`.

    Raises:
        BadImageError: it is no image, damaged, or of a kind that cannot be decoded here.
    """
    if not path.is_file() or not is_dicom(path):
        return open_image(path, at_least=at_least).convert("L")
    return read_dicom(path)


def read_dicom(path: Path) -> Image.Image:
    """The image of a DICOM file, in mode L.

    Raises:
        BadImageError: no pixels, damaged, or a transfer syntax that cannot be decoded here.
    """
    if find_spec("pydicom") is None:
        raise BadImageError("is DICOM, which needs pydicom: pip install 'regard[medical]'")
    import pydicom

    try:
        found = pydicom.dcmread(path, force=True)
        if "PixelData" not in found:
            raise BadImageError("is DICOM without pixel data" if found else "is not a DICOM file")
        return Image.fromarray(_bytes_of(found))
    except BadImageError:
        raise
    except Exception as error:
        # a damaged file can raise anything in a decoder: no type of error is a promise of pydicom's
        raise BadImageError(f"does not decode: {_why(error, locals().get('found'))}") from None


def _why(error: Exception, found: Any) -> str:
    """The error in a line, with how the pixels are compressed."""
    told = shown(str(error) or type(error).__name__, 120)
    syntax = getattr(getattr(getattr(found, "file_meta", None), "TransferSyntaxUID", None), "name", "")
    return f"{told} (transfer syntax {shown(syntax, 80)})" if syntax else told


def _bytes_of(found: Any) -> NDArray[np.uint8]:
    """Rows and columns of grey from 0 to 255."""
    pixels = found.pixel_array
    if int(found.get("NumberOfFrames", 1) or 1) > 1:
        pixels = pixels[0]
    if int(found.get("SamplesPerPixel", 1)) == 3:
        return np.asarray(Image.fromarray(_scaled(pixels, 0, 255 if pixels.dtype == np.uint8 else None)).convert("L"))
    return _shades(found, pixels)


def _shades(found: Any, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(pixels, found)
    ends: tuple[float | None, float | None] = (None, None)
    if "VOILUTSequence" in found:
        values = apply_voi_lut(values, found)
        ends = (0, 2 ** int(found.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    elif "WindowWidth" in found and "WindowCenter" in found:
        values = apply_voi_lut(values, found)
        ends = _window_range(found)
    grey = _scaled(values, *ends)
    return 255 - grey if found.get("PhotometricInterpretation", "") == "MONOCHROME1" else grey


def _window_range(found: Any) -> tuple[float | None, float | None]:
    """What a window makes black and white: the ends of what can be stored, rescaled."""
    if "ModalityLUTSequence" in found:
        return 0, 2 ** int(found.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    bits, signed = int(found.BitsStored), int(found.PixelRepresentation) == 1
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(found.get("RescaleSlope", 1)), float(found.get("RescaleIntercept", 0))
    return ends[0] * slope + intercept, ends[1] * slope + intercept


def _scaled(values: NDArray[Any], low: float | None, high: float | None) -> NDArray[np.uint8]:
    """Values between two ends, their own where none are given, as 0 to 255."""
    numbers = np.nan_to_num(values.astype(np.float64))
    low = float(numbers.min()) if low is None else low
    high = float(numbers.max()) if high is None else high
    if high <= low:
        return np.zeros(numbers.shape, dtype=np.uint8)
    return np.rint((numbers - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
