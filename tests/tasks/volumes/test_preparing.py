from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from volume_files import ORIENTATIONS, affine, brats, oblique, write

from regard.errors import UserError
from regard.tasks.volumes.cases import Case, find_cases
from regard.tasks.volumes.grids import Grid
from regard.tasks.volumes.inference import Inference
from regard.tasks.volumes.metrics import dice
from regard.tasks.volumes.preparing import Preparation, bright_part, read_mask, room
from regard.tasks.volumes.reading import open_file
from regard.tasks.volumes.regions import Region, regions_of_labels
from regard.tasks.volumes.settings import SegmentationSettings

LESION = (Region("lesion", (1,)),)


class Threshold(nn.Module):
    """An oracle: what is brighter than a value is the lesion."""

    def __init__(self, value: float, *, exclusive: bool = True) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.exclusive = exclusive

    def forward(self, x):
        score = 50 * (x[:, :1] - self.value)
        return torch.cat([-score, score], dim=1) if self.exclusive else score


def ball(shape, centre, radius, spacing):
    """A ball in mm, and its mask."""
    index = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"), axis=-1)
    mask = np.linalg.norm((index - centre) * spacing, axis=-1) <= radius
    return (100 + 400 * mask).astype(np.float32), mask


@pytest.mark.parametrize("view", ["whole", "windows", "slices"])
def test_an_oracle_finds_a_lesion_in_the_native_space_of_an_oblique_file(view, tmp_path) -> None:
    spacing = (1.0, 1.5, 2.5)
    image, mask = ball((64, 44, 28), (30, 25, 12), 14.0, spacing)
    path = write(tmp_path / "a.nii.gz", image, oblique(spacing=spacing)[:, [0, 1, 2, 3]])
    settings = SegmentationSettings(view=view, size=32 if view != "whole" else (48, 64, 56), normalise="minmax")
    case = Preparation(settings, 1, "minmax").image([path])
    assert case.moves_only == (view != "whole")
    labels = Inference(settings, (0, 1), LESION).label_map(Threshold(0.5), case)
    assert labels.shape == image.shape
    assert dice(labels > 0, mask) >= (0.95 if view == "whole" else 1.0)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::7], ids=[f"{o}{s}" for o, s in ORIENTATIONS[::7]])
@pytest.mark.parametrize("view", ["whole", "slices", "windows"])
def test_every_orientation_comes_back_to_its_own_voxels(view, order, signs, tmp_path) -> None:
    image = np.zeros((8, 9, 10), dtype=np.float32)
    image[1:4, 2:8, 3:5] = 1
    path = write(tmp_path / "a.nii.gz", image, affine(order, signs, spacing=(2.0, 2.0, 2.0)))
    canonical = Grid(image.shape, affine(order, signs, spacing=(2.0, 2.0, 2.0))).canonical().shape
    settings = SegmentationSettings(view=view, size=canonical if view == "whole" else 6, overlap=0.0)
    case = Preparation(settings, 1, "none").image([path])
    labels = Inference(settings, (0, 1), LESION).label_map(Threshold(0.5), case)
    assert np.array_equal(labels, image)


def test_windows_can_have_a_spacing_of_their_own(tmp_path) -> None:
    image, mask = ball((40, 30, 20), (18, 14, 9), 12.0, (1.0, 1.5, 2.0))
    path = write(tmp_path / "a.nii.gz", image, oblique(spacing=(1.0, 1.5, 2.0)))
    settings = SegmentationSettings(view="windows", size=16, spacing=1.0)
    case = Preparation(settings, 1, "minmax").image([path])
    assert case.grid.spacing == (1.0, 1.0, 1.0)
    labels = Inference(settings, (0, 1), LESION).label_map(Threshold(0.5), case)
    assert dice(labels > 0, mask) >= 0.95


def test_a_fine_volume_is_averaged_as_it_is_read(tmp_path) -> None:
    values = np.random.default_rng(0).normal(size=(24, 32, 16)).astype(np.float32)
    path = write(tmp_path / "a.nii.gz", values, np.eye(4))
    case = Preparation(SegmentationSettings(size=8), 1, "none").image([path])
    blocks = values.reshape(8, 3, 8, 4, 8, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(case.image[0], blocks, atol=1e-5)
    assert case.grid.shape == (8, 8, 8)


def test_the_dark_margin_can_be_left_out(tmp_path) -> None:
    values = np.zeros((20, 20, 20), dtype=np.float32)
    values[5:15, 6:12, 4:16] = 100
    values[8, 8, 8] = 0
    grid = Grid((20, 20, 20), np.eye(4))
    part = bright_part(values[None], grid)
    assert part.shape == (10, 6, 12)
    np.testing.assert_allclose(part.affine[:3, 3], (5, 6, 4))
    assert bright_part(np.zeros((1, 4, 4, 4)), Grid((4, 4, 4), np.eye(4))).shape == (4, 4, 4)
    path = write(tmp_path / "a.nii.gz", values, np.eye(4))
    settings = SegmentationSettings(size=(10, 6, 12), crop=True)
    case = Preparation(settings, 1, "minmax").image([path])
    assert case.image.mean() > 0.99
    labels = Inference(settings, (0, 1), LESION).label_map(Threshold(0.5), case)
    assert labels.shape == (20, 20, 20)
    assert np.array_equal(labels > 0, values > 0)


def test_a_volume_beyond_the_budget_is_mapped_from_a_file(tmp_path) -> None:
    shape = (70, 70, 70)
    image, mask = ball(shape, (30, 30, 30), 20.0, (1.0, 1.0, 1.0))
    path = write(tmp_path / "a.nii.gz", image, affine(spacing=(1.0, 1.0, 1.0)))
    settings = SegmentationSettings(view="windows", size=32, memory_mb=1)
    case = Preparation(settings, 1, "minmax").image([path], scratch=tmp_path)
    owner = case.image
    while owner.base is not None and not isinstance(owner, np.memmap):
        owner = owner.base
    assert isinstance(owner, np.memmap)
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]
    labels = Inference(settings, (0, 1), LESION).label_map(Threshold(0.5), case, scratch=tmp_path)
    assert np.array_equal(labels > 0, mask)
    assert isinstance(room((10,), np.float32, memory_mb=1, scratch=tmp_path), np.ndarray)


def test_a_single_slice_is_for_slices(tmp_path) -> None:
    path = write(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(8, 8, 1)).astype(np.float32))
    with pytest.raises(UserError, match=r"a.nii.gz has a single slice"):
        Preparation(SegmentationSettings(size=8), 1, "none").image([path])
    assert Preparation(SegmentationSettings(view="slices", size=8), 1, "none").image([path]).image.shape == (1, 8, 8, 1)


def test_the_first_volume_of_a_series_is_taken_on_request(tmp_path) -> None:
    values = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    path = write(tmp_path / "a.nii.gz", values, np.eye(4))
    with pytest.raises(UserError, match=r"a.nii.gz is a 4-D volume \(3\), and the network takes 1"):
        Preparation(SegmentationSettings(size=8), 1, "none").image([path])
    first = Preparation(SegmentationSettings(size=8, channels_axis="first"), 1, "none").image([path])
    np.testing.assert_allclose(first.image[0], values[..., 0], atol=1e-6)


def test_channels_keep_their_order_and_their_zeros(tmp_path) -> None:
    case = find_cases(brats(tmp_path, cases=1)).cases[0]
    prepared = Preparation(SegmentationSettings(view="slices", size=8), 4, "zscore").image(case.images)
    assert prepared.image.shape == (4, 12, 10, 6)
    for channel, path in enumerate(case.images):
        own = open_file(path).part(0, 6)[0]
        inside = own[own != 0]
        np.testing.assert_allclose(
            prepared.image[channel], np.where(own == 0, 0, (own - inside.mean()) / inside.std()), atol=1e-3
        )
    assert (prepared.image[:, 0] == 0).all()
    assert prepared.constant == ()


def test_masks_that_do_not_fit_are_named(tmp_path) -> None:
    values = np.zeros((5, 6, 7), dtype=np.uint8)
    image = open_file(write(tmp_path / "i.nii.gz", values))
    values[1, 1, 1] = 3
    mask = write(tmp_path / "m.nii.gz", values)
    case = Case("i", "i", (image.path,), mask)
    assert read_mask(case, image, None).max() == 3
    with pytest.raises(UserError, match=r"m.nii.gz has the label 3, and the labels are 0, 1"):
        read_mask(case, image, frozenset((0, 1)))
    write(mask, values, affine(origin=(0.0, 0.0, 0.0)))
    with pytest.raises(UserError, match=r"m.nii.gz and .*i.nii.gz have different affines"):
        read_mask(case, image, None)
    write(mask, values[:, :, :6])
    with pytest.raises(UserError, match=r"m.nii.gz has shape \(5, 6, 6\) and .*i.nii.gz \(5, 6, 7\)"):
        read_mask(case, image, None)


def test_several_labels_and_regions_come_back_as_labels() -> None:
    labels = (0, 3, 7)
    regions = regions_of_labels({0: "b", 3: "x", 7: "y"})
    foreground = np.zeros((2, 1, 1, 4), dtype=np.float32)
    foreground[:, 0, 0] = np.array([[0.6, 0.1, 0.3, 0.2], [0.1, 0.8, 0.4, 0.2]])
    exclusive = Inference(SegmentationSettings(), labels, regions)
    assert exclusive.labels_of(foreground).tolist() == [[[3, 7, 7, 0]]]
    each = Inference(SegmentationSettings(targets="regions"), labels, regions)
    assert each.labels_of(foreground).tolist() == [[[3, 7, 0, 0]]]


@pytest.mark.parametrize("exclusive", [True, False])
def test_probabilities_come_back_to_the_native_voxels(exclusive, tmp_path) -> None:
    image, mask = ball((20, 22, 24), (10, 11, 12), 6.0, (1.0, 1.0, 1.0))
    path = write(tmp_path / "a.nii.gz", image, affine((2, 0, 1), (-1, 1, -1), spacing=(1.0, 1.0, 1.0)))
    settings = SegmentationSettings(view="slices", size=16, targets="classes" if exclusive else "regions")
    case = Preparation(settings, 1, "minmax").image([path])
    inference = Inference(settings, (0, 1), LESION)
    network = Threshold(0.5, exclusive=exclusive)
    probabilities = inference.probabilities(network, case.image)
    native = inference.native_probabilities(probabilities, case, 0)
    np.testing.assert_allclose(native, mask, atol=1e-6)
    assert np.array_equal(inference.native_labels(probabilities, case), inference.label_map(network, case))
