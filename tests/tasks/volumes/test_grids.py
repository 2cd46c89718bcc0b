from __future__ import annotations

import nibabel
import numpy as np
import pytest
from nibabel.processing import resample_from_to
from volume_files import ORIENTATIONS, affine, oblique

from regard.tasks.volumes.grids import Grid, axis_aligned, carry, cut_out, exact_move, slabs


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS, ids=[f"{o}{s}" for o, s in ORIENTATIONS])
def test_every_orientation_goes_there_and_back_exactly(order, signs) -> None:
    native = Grid((3, 5, 7), affine(order, signs))
    canonical = native.canonical()
    assert nibabel.aff2axcodes(canonical.affine) == ("R", "A", "S")
    values = np.random.default_rng(0).normal(size=(2, 3, 5, 7)).astype(np.float32)
    moved = carry(values, native, canonical)
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(np.moveaxis(values, 0, -1), native.affine))
    assert np.array_equal(moved, np.moveaxis(np.asarray(expected.dataobj), -1, 0))
    assert np.array_equal(canonical.affine, expected.affine)
    assert np.array_equal(carry(moved, canonical, native), values)
    for index in np.ndindex(3, 5, 7):
        place = native.affine @ np.array([*index, 1.0])
        there = np.linalg.solve(canonical.affine, place)[:3]
        assert moved[(0, *np.round(there).astype(int))] == values[(0, *index)]


def test_an_oblique_grid_moves_exactly_too() -> None:
    native = Grid((3, 5, 7), oblique()[:, [2, 0, 1, 3]])
    canonical = native.canonical()
    assert exact_move(native, canonical) is not None
    values = np.arange(105, dtype=np.float32).reshape(1, 3, 5, 7)
    assert np.array_equal(carry(carry(values, native, canonical), canonical, native), values)


@pytest.mark.parametrize("order", [0, 1])
def test_resampling_equals_nibabel(order) -> None:
    source = Grid((11, 13, 7), oblique())
    target = axis_aligned(source, spacing=1.7, size=None)
    values = np.random.default_rng(1).normal(size=(11, 13, 7)).astype(np.float32)
    expected = resample_from_to(
        nibabel.Nifti1Image(values, source.affine), (target.shape, target.affine), order=order, mode="constant"
    )
    ours = carry(values[None], source, target, order=order, outside="zero")[0]
    np.testing.assert_allclose(ours, np.asarray(expected.dataobj), atol=1e-5)


def test_slabs_do_not_change_what_is_resampled(monkeypatch) -> None:
    source = Grid((11, 13, 7), oblique())
    target = axis_aligned(source, spacing=0.0, size=(8, 9, 10))
    values = np.random.default_rng(1).normal(size=(2, 11, 13, 7)).astype(np.float32)
    whole = carry(values, source, target)
    monkeypatch.setattr("regard.tasks.volumes.grids.SLAB_VOXELS", 100)
    assert len(list(slabs(target.shape))) == 8
    np.testing.assert_allclose(carry(values, source, target), whole, atol=1e-5)


def test_an_aligned_grid_covers_the_volume() -> None:
    native = Grid((11, 13, 7), oblique())
    grid = axis_aligned(native, spacing=2.0, size=None)
    corners = np.array([[i, j, k, 1] for i in (0, 10) for j in (0, 12) for k in (0, 6)], dtype=float)
    places = np.linalg.solve(grid.affine, native.affine @ corners.T)[:3].T
    assert (places >= -0.5).all()
    assert (places <= np.array(grid.shape) - 0.5).all()
    assert grid.spacing == (2.0, 2.0, 2.0)
    assert axis_aligned(native, spacing=0.0, size=None).spacing == pytest.approx((1.0, 1.0, 1.0))
    assert axis_aligned(native, spacing=0.0, size=(5, 6, 7)).shape == (5, 6, 7)


def test_an_axis_aligned_volume_of_the_same_size_only_moves() -> None:
    native = Grid((5, 6, 7), affine((1, 0, 2), (-1, 1, 1)))
    assert exact_move(native, axis_aligned(native, spacing=0.0, size=(6, 5, 7))) is not None
    assert exact_move(native, axis_aligned(native, spacing=0.0, size=(6, 5, 8))) is None


def test_volumes_and_cuts() -> None:
    grid = Grid((5, 6, 7), affine(spacing=(1.0, 2.0, 3.0)))
    assert grid.spacing == (1.0, 2.0, 3.0)
    assert grid.voxel_ml == pytest.approx(0.006)
    part = cut_out(grid, (1, 2, 3), (4, 6, 7))
    assert part.shape == (3, 4, 4)
    np.testing.assert_allclose(part.affine[:3, 3], (grid.affine @ [1, 2, 3, 1])[:3])
    coarse = grid.coarser((2, 3, 2))
    assert coarse.shape == (2, 2, 3)
    np.testing.assert_allclose(coarse.affine[:3, 3], (grid.affine @ [0.5, 1, 0.5, 1])[:3])


def test_grids_agree_up_to_rounding() -> None:
    one = affine()
    shifted = one.copy()
    shifted[0, 3] += 0.5
    assert Grid((5, 6, 7), one).agrees_with(Grid((5, 6, 7), one.astype(np.float32).astype(float)))
    assert not Grid((5, 6, 7), one).agrees_with(Grid((5, 6, 7), shifted))
    assert not Grid((5, 6, 7), one).agrees_with(Grid((5, 6, 8), one))


@pytest.mark.parametrize(
    ("shape", "where", "told"),
    [
        ((5, 6), np.eye(4), "three axes"),
        ((5, 0, 6), np.eye(4), "three axes"),
        ((5, 6, 7), np.full((4, 4), np.nan), "not finite"),
        ((5, 6, 7), np.diag([1.0, 0.0, 1.0, 1.0]), "singular"),
    ],
    ids=["two axes", "empty", "nan", "singular"],
)
def test_a_grid_that_is_none_is_refused(shape, where, told) -> None:
    with pytest.raises(ValueError, match=told):
        Grid(shape, where)
