"""What a user may choose of segmentation: how files become what the network sees, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regard.tasks.volumes.grids import Size
from regard.tasks.volumes.normalising import Normalisation

LARGEST_SIDE = 1024


@dataclass(frozen=True, kw_only=True)
class SegmentationSettings:
    """How volumes and slices become batches, and predictions masks.

    Args:
        view: what the network sees: "whole" (the whole volume, brought to `size`), "windows" (parts of the size
            `size`, blended where they overlap) or "slices" (axial slices, in windows of `size` where they are larger).
        targets: "classes" (exclusive, the background among them; a softmax) or "regions" (which may overlap; a
            sigmoid each).
        size: voxels per side of what the network sees: one number, or a list of one for each axis (x, y and z).
        spacing: mm between voxels to which volumes are brought; 0 = as they are (for "whole", as `size` asks).
        normalise: "minmax" (0 to 1), "zscore" (of the voxels that are not 0), "imagenet" (bytes of a colour image) or
            "none"; "auto" = zscore for several channels or regions, minmax for one, imagenet for colour images.
        low: percentile below which intensities are clipped.
        high: percentile above which they are.
        crop: leave out the dark margin of a volume before it is brought to `size`, for "whole".
        channels_axis: what a fourth axis is: "channels", or "first" = its first volume is taken.
        regions: "auto" (those of the layout, else one per label), "labels" (one per label) or "brats" (WT, TC, ET).
        folds: into how many parts patients are dealt.
        fold: the part that validates.
        empty: what becomes of slices or windows without a label in training: "keep", "drop", or "auto" = drop for
            BraTS.
        loss: "dice", "dice_ce" (with a cross-entropy), or "auto" = dice for classes, dice_ce for regions.
        flip: whether augmentation exchanges left and right, front and back.
        rotate: degrees by which augmentation turns at most.
        zoom: share by which it enlarges or shrinks at most.
        shift: share of a side by which it moves at most.
        intensity: share by which it scales and shifts intensities at most.
        overlap: share of a window that the next has in common with it.
        window_batch: windows that the network sees at a time in evaluation and prediction.
        threshold: probability from which a voxel is in a region (for classes: is not background).
        probabilities: whether predictions also write the probabilities.
        min_overlap: Dice above which a patient counts as detected.
        small_ml: volume in ml below which a lesion is small.
        on_bad_image: what becomes of cases that cannot be used: "refuse" or "skip".
        memory_mb: megabytes of prepared cases that are kept in memory; others are kept in files.

    Raises:
        ValueError: a number outside its range.
    """

    view: Literal["whole", "windows", "slices"] = "whole"
    targets: Literal["classes", "regions"] = "classes"
    size: int | tuple[int, ...] = 48
    spacing: float = 0.0
    normalise: Literal["auto", "minmax", "zscore", "imagenet", "none"] = "auto"
    low: float = 0.0
    high: float = 100.0
    crop: bool = False
    channels_axis: Literal["channels", "first"] = "channels"
    regions: Literal["auto", "labels", "brats"] = "auto"
    folds: int = 5
    fold: int = 0
    empty: Literal["auto", "keep", "drop"] = "auto"
    loss: Literal["auto", "dice", "dice_ce"] = "auto"
    flip: bool = True
    rotate: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    intensity: float = 0.1
    overlap: float = 0.25
    window_batch: int = 4
    threshold: float = 0.5
    probabilities: bool = False
    min_overlap: float = 0.0
    small_ml: float = 3.0
    on_bad_image: Literal["skip", "refuse"] = "refuse"
    memory_mb: int = 2048

    def __post_init__(self) -> None:
        if not self.window:
            raise ValueError("size must not be empty")
        for name in ("threshold", "min_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), got {self.overlap}")
        for name in ("spacing", "rotate", "zoom", "shift", "intensity", "memory_mb", "small_ml"):
            if not 0 <= getattr(self, name) < 1e9:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.zoom >= 1 or self.intensity >= 1:
            raise ValueError(f"zoom and intensity must be below 1, got {self.zoom} and {self.intensity}")
        if not 0 <= self.low < self.high <= 100:
            raise ValueError(f"low and high are percentiles, low below high, got {self.low} and {self.high}")
        if self.folds < 2 or not 0 <= self.fold < self.folds:
            raise ValueError(f"fold must be from 0 to folds - 1 and folds at least 2, got {self.fold} of {self.folds}")
        if self.window_batch < 1:
            raise ValueError(f"window_batch must be positive, got {self.window_batch}")

    @property
    def window(self) -> Size:
        """`size` as voxels along x, y and z; 1 along z for slices."""
        axes = 2 if self.view == "slices" else 3
        numbers = [self.size] * axes if isinstance(self.size, int) else list(self.size)
        if len(numbers) != axes or not all(1 <= number <= LARGEST_SIDE for number in numbers):
            raise ValueError(
                f"size must be one number, or a list of {axes}, from 1 to {LARGEST_SIDE}, got {self.size!r}"
            )
        x, y, z = [*numbers, 1][:3]
        return x, y, z

    @property
    def exclusive(self) -> bool:
        """Whether a voxel is in one class alone."""
        return self.targets == "classes"

    def normalisation(self, *, channels: int, pictures: bool) -> Normalisation:
        """What "auto" means.

        Args:
            channels: of the images.
            pictures: whether they are image files of bytes.
        """
        if self.normalise != "auto":
            return self.normalise
        if pictures:
            return "imagenet" if channels == 3 else "zscore"
        return "zscore" if channels > 1 or not self.exclusive else "minmax"
