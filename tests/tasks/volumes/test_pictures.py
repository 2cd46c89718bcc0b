from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from volume_files import affine, oblique

from regard.tasks.volumes.grids import Grid
from regard.tasks.volumes.pictures import COLOURS, legend_of, scene
from regard.tasks.volumes.regions import BRATS, Region

LESION = (Region("lesion", (1,)),)


def pixels(png: bytes):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def coloured(png: bytes):
    """Where a picture is not grey."""
    picture = pixels(png)
    return np.ptp(picture, axis=-1) > 40


@pytest.mark.parametrize(
    ("order", "signs"), [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1)), ((1, 2, 0), (1, -1, -1))], ids=str
)
def test_views_go_through_the_lesion_and_show_it_where_it_is(order, signs) -> None:
    """A box right, in front and above of the middle: its colour must be left, above the middle in every view."""
    native = Grid((20, 24, 28), affine(order, signs, spacing=(2.0, 2.0, 2.0)))
    canonical = native.canonical()
    labels = np.zeros(canonical.shape, dtype=np.uint8)
    x, y, z = (int(0.75 * side) for side in canonical.shape)
    labels[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = 1
    from regard.tasks.volumes.grids import carry

    values = np.random.default_rng(0).normal(size=native.shape).astype(np.float32)
    made = scene(values, native, carry(labels[None], canonical, native, order=0)[0], native, LESION)
    assert all(abs(found - wanted) <= 1 for found, wanted in zip(made.focus(), (x, y, z), strict=True))
    for (title, png), axis in zip(made.views(), (2, 1, 0), strict=True):
        number = made.focus()[axis]
        assert f"slice {number + 1} of {canonical.shape[axis]}" in title
        where = np.argwhere(coloured(png))
        height, width = pixels(png).shape[:2]
        assert len(where)
        row, column = where.mean(axis=0)
        assert row < 0.4 * height
        assert column < 0.4 * width


def test_views_have_the_proportions_of_the_body() -> None:
    native = Grid((10, 20, 5), affine(spacing=(4.0, 1.0, 6.0)))
    made = scene(np.zeros(native.shape), native, np.zeros(native.shape, dtype=np.uint8), native, LESION)
    sizes = [pixels(png).shape[:2] for _, png in made.views()]
    for (height, width), (tall, wide) in zip(sizes, [(20, 40), (30, 40), (30, 20)], strict=True):
        assert height / width == pytest.approx(tall / wide, rel=0.02)
    assert made.focus() == (5, 10, 2)


def test_labels_of_another_grid_are_placed() -> None:
    fine, coarse = Grid((20, 20, 20), oblique()), Grid((20, 20, 20), oblique()).coarser((2, 2, 2))
    labels = np.zeros((20, 20, 20), dtype=np.uint8)
    labels[4:8, 10:14, 12:16] = 1
    made = scene(np.zeros(coarse.shape, dtype=np.float32), coarse, labels, fine, LESION)
    assert made.labels.shape == made.values.shape
    assert 4 <= int(made.labels.sum()) <= 16


def test_truth_is_an_outline_and_decides_where_to_look() -> None:
    native = Grid((16, 16, 16), np.eye(4))
    truth = np.zeros((16, 16, 16), dtype=np.uint8)
    truth[3:9, 3:9, 3:9] = 1
    made = scene(np.zeros((16, 16, 16)), native, np.zeros_like(truth), native, LESION, truth=truth)
    assert all(3 <= place < 9 for place in made.focus())
    white = (pixels(made.views()[0][1]) == 255).all(axis=-1)
    assert 300 < white.sum() < 900
    rows, columns = np.argwhere(white).min(axis=0)
    assert not white[rows + 5 : rows + 50, columns + 5 : columns + 50].any()


def test_a_slice_is_shown_as_it_lies() -> None:
    grid = Grid((12, 8, 1), np.eye(4))
    labels = np.zeros((12, 8, 1), dtype=np.uint8)
    labels[9:, :2] = 1
    made = scene(np.zeros((12, 8, 1)), grid, labels, grid, LESION, flat=True)
    ((title, png),) = made.views()
    assert title == ""
    row, column = np.argwhere(coloured(png)).mean(axis=0)
    height, width = pixels(png).shape[:2]
    assert (row < 0.3 * height, column > 0.7 * width) == (True, True)


def test_smaller_regions_are_drawn_over_larger_ones() -> None:
    grid = Grid((10, 10, 10), np.eye(4))
    labels = np.zeros((10, 10, 10), dtype=np.uint8)
    labels[1:9, 1:9, 1:9] = 2
    labels[:, :, 5] = 2
    labels[3:7, 3:7, 3:7] = 4
    made = scene(np.zeros((10, 10, 10)), grid, labels, grid, BRATS)
    picture = pixels(made.views()[0][1])
    assert abs(picture[160, 160] - picture[10, 10]).sum() > 40
    assert [name for name, _ in legend_of(BRATS)] == ["WT", "TC", "ET"]
    assert legend_of(BRATS)[1][1] == COLOURS[1]


@pytest.mark.parametrize(
    ("shape", "spacing", "planes"),
    [
        ((40, 40, 2), (1.0, 1.0, 1.0), ["axial"]),
        ((40, 40, 2), (1.0, 1.0, 2.0), ["axial", "coronal", "sagittal"]),
        ((2, 40, 40), (1.0, 1.0, 1.0), ["sagittal"]),
        ((40, 2, 2), (1.0, 1.0, 1.0), ["axial", "coronal", "sagittal"]),
    ],
    ids=["slab", "thick slab", "standing slab", "rod"],
)
def test_a_view_in_which_a_slab_is_but_a_strip_is_left_out(shape, spacing, planes) -> None:
    grid = Grid(shape, affine((0, 1, 2), (1, 1, 1), spacing=spacing))
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    made = scene(values, grid, np.zeros(shape, dtype=np.uint8), grid, LESION)
    assert [title.split(",")[0] for title, _ in made.views()] == planes
