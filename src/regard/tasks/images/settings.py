"""What a user may choose of image classification: how files become batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LARGEST_SIDE = 8192


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings:
    """How image files become batches.

    Args:
        image_size: pixels per side to which all are brought; 0 = 32, or what the digits and IDX files have, or what
            pretrained weights were trained on.
        channels: 1 (grey) or 3 (colour); 0 = as the images are.
        crop_share: null = an image is squeezed to a square as a whole; else its middle, with this share of its shorter
            side, is taken.
        statistics: what images are normalised by: "data" (the training part's mean and deviation) or "imagenet".
        augment: "none"; "light" (random crops and flips); "strong" (also RandAugment and random erasing); "auto" =
            light for folders, none for digits and IDX files.
        flip: whether augmentation exchanges left and right; null = for colour images alone.
        mixup: alpha of MixUp; 0 = off.
        cutmix: alpha of CutMix; 0 = off.
        label_smoothing: share of each target that is spread over all classes.
        on_bad_image: what becomes of files that do not decode: "skip" or "refuse".
        memory_mb: megabytes of decoded images that are kept; files beyond are decoded whenever they are needed.

    Raises:
        ValueError: a number outside its range.
    """

    image_size: int = 0
    channels: Literal[0, 1, 3] = 0
    crop_share: float | None = None
    statistics: Literal["data", "imagenet"] = "data"
    augment: Literal["auto", "none", "light", "strong"] = "auto"
    flip: bool | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    on_bad_image: Literal["skip", "refuse"] = "skip"
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        for name in ("image_size", "mixup", "cutmix", "memory_mb"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.image_size > LARGEST_SIDE:
            raise ValueError(f"image_size must be at most {LARGEST_SIDE:,}, got {self.image_size}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.crop_share is not None and not 0 < self.crop_share <= 1:
            raise ValueError(f"crop_share must be in (0, 1], got {self.crop_share}")
        if self.statistics == "imagenet" and self.channels == 1:
            raise ValueError("statistics=imagenet is of colour images, and channels=1 asks for grey ones")
