"""What a user may choose of medical classification: how radiographs become batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from regard.tasks.images.settings import LARGEST_SIDE

SMALLEST_SIDE = 8


@dataclass(frozen=True, kw_only=True)
class RadiographSettings:
    """How radiographs become batches.

    Args:
        image_size: pixels per side to which all are brought; 64 suits the sample, 480 COVIDx.
        channels: 1, or 3 for networks with weights from colour images; radiographs are grey in all of them.
        crop_top: share of the rows cut off at the top, where labels are burnt in.
        statistics: what images are normalised by: "data" (the training part's mean and deviation) or "imagenet"
            (with three channels).
        positive_share: share of every training batch that is of the positive class; 0 = as it comes.
        positive_class: its name; empty = "positive", "COVID-19" or "pneumonia" where there is one of these, else the
            last class.
        rsna_classes: of the RSNA Pneumonia Challenge: "target" (pneumonia or none) or "detailed" (normal, neither, lung
            opacity).
        class_weights: of the loss: "none", "balanced" (classes with fewer training images weigh more), or a number for
            each class in their order.
        augment: whether training sees random views.
        translation: largest shift of a view, over the image's side.
        rotation: largest turn of a view in degrees.
        zoom: largest change of a view's size, as a share.
        intensity: largest change of a view's contrast and brightness, as a share.
        flip: whether a view may be mirrored.
        label_smoothing: share of each target that is spread over all classes.
        on_bad_image: what becomes of files that do not decode: "skip" or "refuse".
        memory_mb: megabytes of decoded images that are kept; files beyond are decoded whenever they are needed.
        overlays: pictures of the global map over an image that a prediction writes at most, where the network has one.

    Raises:
        ValueError: a number outside its range.
    """

    image_size: int = 64
    channels: Literal[1, 3] = 1
    crop_top: float = 0.08
    statistics: Literal["data", "imagenet"] = "data"
    positive_share: float = 0.3
    positive_class: str = ""
    rsna_classes: Literal["target", "detailed"] = "target"
    class_weights: tuple[float, ...] | Literal["none", "balanced"] = "none"
    augment: bool = True
    translation: float = 0.1
    rotation: float = 10.0
    zoom: float = 0.15
    intensity: float = 0.1
    flip: bool = True
    label_smoothing: float = 0.0
    on_bad_image: Literal["skip", "refuse"] = "skip"
    memory_mb: int = 1024
    overlays: int = 8

    def __post_init__(self) -> None:
        if not SMALLEST_SIDE <= self.image_size <= LARGEST_SIDE:
            raise ValueError(f"image_size must be from {SMALLEST_SIDE} to {LARGEST_SIDE:,}, got {self.image_size}")
        for name in ("crop_top", "positive_share", "label_smoothing", "zoom"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("translation", "rotation", "intensity", "memory_mb", "overlays"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.statistics == "imagenet" and self.channels == 1:
            raise ValueError("statistics=imagenet is of colour images: set channels=3, too")
        if not isinstance(self.class_weights, str) and not all(0 < weight < math.inf for weight in self.class_weights):
            raise ValueError(f"class_weights must be positive, got {list(self.class_weights)}")
