from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny_dicom import write_dicom

from regard.tasks.images.decoding import BadImageError
from regard.tasks.radiographs.dicom import is_dicom, open_radiograph, read_dicom

pytest.importorskip("pydicom")

VALUES = np.array([[0, 100, 200, 300, 400], [500, 600, 700, 800, 900], [1000, 1100, 1200, 1300, 4095]], dtype=np.uint16)


def grey(path) -> np.ndarray:
    image = open_radiograph(path)
    assert image.mode == "L"
    return np.asarray(image).astype(int)


def test_without_a_window_the_smallest_is_black_and_the_largest_white(tmp_path) -> None:
    found = grey(write_dicom(tmp_path / "a.dcm", VALUES))
    assert found.shape == (3, 5)
    assert (abs(found - VALUES / 4095 * 255) <= 0.51).all()


def test_low_values_may_be_bright(tmp_path) -> None:
    plain, inverted = (
        grey(write_dicom(tmp_path / f"{kind}.dcm", VALUES, kind=kind)) for kind in ("MONOCHROME2", "MONOCHROME1")
    )
    assert (plain + inverted == 255).all()


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (2.0, -100.0)])
def test_windows_are_of_rescaled_values(tmp_path, slope: float, intercept: float) -> None:
    window = {"WindowCenter": 800, "WindowWidth": 400, "RescaleSlope": slope, "RescaleIntercept": intercept}
    found = grey(write_dicom(tmp_path / "a.dcm", VALUES, **window))
    # the linear function of the standard, C.11.2.1.2.1
    expected = (((slope * VALUES + intercept) - 799.5) / 399 + 0.5).clip(0, 1) * 255
    assert (abs(found - expected) <= 0.51).all()
    assert {0, 255} <= set(found.flatten().tolist())


def test_a_window_that_no_value_fills_does_not_stretch_them(tmp_path) -> None:
    found = grey(write_dicom(tmp_path / "a.dcm", VALUES[:1], WindowCenter=1000, WindowWidth=2000))
    assert found.min() > -1
    assert found.max() == round((400 - 999.5) / 1999 * 255 + 127.5)


def test_signed_values_and_several_frames_and_windows(tmp_path) -> None:
    signed = VALUES.astype(np.int16) - 1000
    found = grey(
        write_dicom(
            tmp_path / "a.dcm", np.stack([signed, 0 * signed]), bits=16, WindowCenter=[0, 9], WindowWidth=[500, 2]
        )
    )
    expected = ((signed + 0.5) / 499 + 0.5).clip(0, 1) * 255
    assert (abs(found - expected) <= 0.51).all()


def test_tables_of_interest_and_colours_are_read(tmp_path) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], [257 * (255 - value // 16) for value in range(4096)]
    table["LUTData"].VR = "US"
    found = grey(write_dicom(tmp_path / "a.dcm", VALUES, VOILUTSequence=Sequence([table])))
    assert (abs(found - (255 - VALUES // 16)) <= 1).all()
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    found = grey(write_dicom(tmp_path / "b.dcm", colours, bits=8, kind="RGB"))
    assert (found == np.asarray(Image.fromarray(colours).convert("L"))).all()


def test_other_images_are_opened_as_ever_but_grey(tmp_path) -> None:
    Image.new("RGB", (5, 3), (200, 10, 10)).save(tmp_path / "a.png")
    assert open_radiograph(tmp_path / "a.png").mode == "L"
    deep = (VALUES * 16).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert (abs(grey(tmp_path / "deep.png") - deep / 257) <= 0.51).all()
    assert not is_dicom(tmp_path / "a.png")
    assert is_dicom(write_dicom(tmp_path / "no suffix", VALUES))
    assert not is_dicom(tmp_path / "nowhere")
    with pytest.raises(BadImageError):
        open_radiograph(tmp_path / "nowhere.dcm")


def test_what_cannot_be_read_is_one_line(tmp_path) -> None:
    cases = {
        "empty": (write_dicom(tmp_path / "empty.dcm", None), "is DICOM without pixel data"),
        "short": (write_dicom(tmp_path / "short.dcm", VALUES, Rows=300), "does not decode: .*"),
        "odd": (
            write_dicom(tmp_path / "odd.dcm", VALUES, syntax="1.2.840.10008.1.2.4.102"),
            r"does not decode: .*\(transfer syntax MPEG-4",
        ),
    }
    (tmp_path / "none.dcm").write_bytes(b"not DICOM at all, but long enough to be looked at" * 9)
    cases["none"] = (tmp_path / "none.dcm", "is not a DICOM file|does not decode|without pixel data")
    for path, message in cases.values():
        with pytest.raises(BadImageError, match=message) as told:
            read_dicom(path)
        assert "\n" not in str(told.value)
        assert len(str(told.value)) < 260


def test_a_missing_library_is_named(tmp_path, monkeypatch) -> None:
    path = write_dicom(tmp_path / "a.dcm", VALUES)
    monkeypatch.setattr("regard.tasks.radiographs.dicom.find_spec", lambda name: None)
    with pytest.raises(BadImageError, match="needs pydicom"):
        open_radiograph(path)
