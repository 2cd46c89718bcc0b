from __future__ import annotations

import gzip
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from volume_files import affine, oblique, write

from regard.errors import UserError
from regard.tasks.volumes.reading import BadVolumeError, check_grids, named, open_channels, open_file, stem

SAMPLES = Path(nibabel.__file__).parent / "tests" / "data"


def test_a_volume_is_read_in_parts(tmp_path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    stored = open_file(write(tmp_path / "a.nii.gz", values, oblique()))
    assert (stored.grid.shape, stored.channels) == ((5, 6, 7), 1)
    np.testing.assert_allclose(stored.grid.affine, oblique(), atol=1e-6)
    assert np.array_equal(stored.part(0, 3), values[None, :, :, :3])
    assert np.array_equal(stored.part(3, 7), values[None, :, :, 3:])


def test_a_fourth_axis_is_channels_and_scaling_is_applied(tmp_path) -> None:
    values = np.arange(5 * 4 * 3 * 2, dtype=np.int16).reshape(5, 4, 3, 2)
    image = nibabel.Nifti1Image(values, affine())
    image.header.set_slope_inter(2.0, 5.0)
    nibabel.save(image, tmp_path / "a.nii")
    stored = open_file(tmp_path / "a.nii")
    assert stored.channels == 2
    assert np.array_equal(stored.part(0, 3), np.moveaxis(values * 2 + 5, -1, 0))


@pytest.mark.parametrize(
    ("name", "shape", "channels"),
    [("anatomical.nii", (33, 41, 25), 1), ("functional.nii", (17, 21, 3), 20), ("example4d.nii.gz", (128, 96, 24), 2)],
)
def test_nibabels_own_samples_are_read(name, shape, channels) -> None:
    if not (SAMPLES / name).is_file():
        pytest.skip(f"this nibabel carries no {name}")
    stored = open_file(SAMPLES / name)
    assert (stored.grid.shape, stored.channels) == (shape, channels)
    part = stored.part(0, shape[2])
    expected = np.asarray(nibabel.load(SAMPLES / name).dataobj, dtype=np.float32).reshape(*shape, channels)
    assert np.array_equal(part, np.moveaxis(expected, -1, 0))


def test_slices_have_the_axes_of_a_volume(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (7, 5, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "b.png")
    colour, grey = open_file(tmp_path / "a.tif"), open_file(tmp_path / "b.png")
    assert (colour.grid.shape, colour.channels, grey.channels) == ((5, 7, 1), 3, 1)
    assert colour.part(0, 1)[2, 4, 6, 0] == pixels[6, 4, 2]
    assert grey.part(0, 1)[0, 4, 6, 0] == pixels[6, 4, 0]


def damaged(folder: Path) -> dict[str, Path]:
    """Files that are none, by what is wrong."""
    good = write(folder / "good.nii.gz", np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    content = good.read_bytes()
    made = {
        "truncated": content[: len(content) // 2],
        "header only": gzip.compress(gzip.decompress(content)[:348]),
        "short header": gzip.compress(gzip.decompress(content)[:100]),
        "text": b"hello",
        "empty": b"",
    }
    for name, bad in made.items():
        (folder / f"{name}.nii.gz").write_bytes(bad)
    paths = {name: folder / f"{name}.nii.gz" for name in made}
    values = np.ones((5, 6, 7), dtype=np.float32)
    values[1, 2, 3], values[2, 2, 2] = np.nan, np.inf
    paths["nan"] = write(folder / "nan.nii.gz", values)
    paths["five axes"] = write(folder / "five.nii.gz", np.ones((2, 2, 2, 2, 2), dtype=np.uint8))
    paths["two axes"] = write(folder / "two.nii.gz", np.ones((4, 5), dtype=np.uint8))
    paths["complex"] = write(folder / "complex.nii.gz", np.ones((2, 2, 2), dtype=np.complex64))
    header = nibabel.Nifti1Image(np.ones((3, 3, 3), dtype=np.uint8), None)
    header.header["srow_x"], header.header["sform_code"], header.header["qform_code"] = (0, 0, 0, 0), 1, 0
    nibabel.save(header, folder / "singular.nii")
    raw = bytearray((folder / "singular.nii").read_bytes())
    raw[280:296] = bytes(16)
    (folder / "singular.nii").write_bytes(raw)
    paths["singular"] = folder / "singular.nii"
    paths["folder"] = folder
    paths["missing"] = folder / "none.nii.gz"
    return paths


TOLD = {
    "truncated": "truncated or damaged",
    "header only": "truncated or damaged",
    "short header": "no NIfTI file, or a damaged one",
    "text": "no NIfTI file, or a damaged one",
    "empty": "no NIfTI file, or a damaged one",
    "nan": "2 voxels that are no finite numbers",
    "five axes": r"shape \(2, 2, 2, 2, 2\)",
    "two axes": "third axis of length 1",
    "complex": "type complex64",
    "singular": "singular",
    "folder": "is no file",
    "missing": "is not there",
}


@pytest.mark.parametrize("kind", TOLD)
def test_a_bad_volume_is_named_with_what_is_wrong(kind, tmp_path) -> None:
    path = damaged(tmp_path)[kind]
    with pytest.raises(UserError, match=TOLD[kind]) as caught:
        named(path, lambda: open_file(path).part(0, open_file(path).grid.shape[2]))
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_picture_is_named(tmp_path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(BadVolumeError, match=r"image|decode"):
        open_file(path)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.full((3, 3, 3), 0.5, dtype=np.float32), "no whole numbers"),
        (np.full((3, 3, 3), np.nan, dtype=np.float32), "no whole numbers"),
        (np.full((3, 3, 3), -1, dtype=np.int16), "labels from -1"),
        (np.full((3, 3, 3), 300, dtype=np.int16), "to 300"),
        (np.ones((3, 3, 3, 2), dtype=np.uint8), "2 channels, a mask has one"),
    ],
    ids=["fractions", "nan", "negative", "large", "4-D"],
)
def test_what_is_no_mask_is_refused(values, told, tmp_path) -> None:
    path = write(tmp_path / "m.nii.gz", values)
    with pytest.raises(UserError, match=told):
        named(path, open_file(path).labels)


def test_labels_stored_as_floats_are_whole_numbers(tmp_path) -> None:
    values = np.array([[[0.0, 1.0, 4.0]]], dtype=np.float32)
    assert open_file(write(tmp_path / "m.nii.gz", values)).labels().tolist() == [[[0, 1, 4]]]


def test_channels_must_lie_at_the_same_places(tmp_path) -> None:
    values = np.ones((3, 4, 5), dtype=np.float32)
    one = write(tmp_path / "one.nii.gz", values)
    other = write(tmp_path / "other.nii.gz", values, affine(origin=(0.0, 0.0, 0.0)))
    large = write(tmp_path / "large.nii.gz", np.ones((3, 4, 6), dtype=np.float32))
    four = write(tmp_path / "four.nii.gz", np.ones((3, 4, 5, 2), dtype=np.float32))
    assert len(open_channels([one, one], channels=2)) == 2
    with pytest.raises(UserError, match=r"other.nii.gz and .*one.nii.gz have different affines"):
        open_channels([one, other])
    with pytest.raises(UserError, match=r"large.nii.gz has shape \(3, 4, 6\) and .*one.nii.gz \(3, 4, 5\)"):
        open_channels([one, large])
    with pytest.raises(UserError, match=r"four.nii.gz is a 4-D volume \(2\), and the network takes 1"):
        open_channels([four], channels=1)
    with pytest.raises(UserError, match=r"one.nii.gz is 1 channel \(1\), and the network takes 4"):
        open_channels([one], channels=4)
    with pytest.raises(UserError, match=r"four.nii.gz has 2 channels"):
        open_channels([one, four])
    check_grids(open_file(one), open_file(one))


def test_names_without_the_format() -> None:
    assert [stem(Path(name)) for name in ("a.nii.gz", "b.nii", "c.d.png", "E.NII.GZ")] == ["a", "b", "c.d", "E"]
    assert named(Path("x"), partial(int, "3")) == 3
