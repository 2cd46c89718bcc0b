"""Segmenting a volume of BraTS' size in windows and in slices, against MONAI's `sliding_window_inference`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from harness import Outcome, at_least, at_most
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from regard.measure import one_thread, peak_bytes, race
from regard.models.medical.agunet import AGUNet, AGUNetConfig
from regard.tasks.volumes.inference import Inference
from regard.tasks.volumes.settings import SegmentationSettings
from regard.tasks.volumes.windows import Windows, slide

CHANNELS, SHAPE, CLASSES = 4, (240, 240, 155), 4
WINDOW, OVERLAP, BATCH = (96, 96, 96), 0.25, 2
ROUNDS = 3


def network() -> nn.Module:
    """A small AGUNet, which takes most of the time."""
    torch.manual_seed(0)
    config = AGUNetConfig(in_channels=CHANNELS, num_classes=CLASSES, filters=(4, 8, 16), deep_supervision=False)
    return AGUNet(config).eval()


class Pointwise(nn.Module):
    """A network that takes next to no time, so that what is around it is seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Conv3d(CHANNELS, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Position by position."""
        return self.inner(x)


def contestants(model: nn.Module, volume: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """From the volume to the likeliest class of each voxel."""

    def probabilities(inputs: Tensor) -> Tensor:
        return model(inputs.contiguous(memory_format=torch.channels_last_3d)).softmax(dim=1)

    of_labels = Inference(SegmentationSettings(), tuple(range(CLASSES)), ()).labels_of

    def ours() -> np.ndarray:
        labels = np.empty(SHAPE, dtype=np.uint8)
        for start, slab in slide(probabilities, volume, Windows(WINDOW, OVERLAP, BATCH), device=torch.device("cpu")):
            labels[start : start + slab.shape[1]] = of_labels(slab[1:].numpy())
        return labels

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            inputs = torch.from_numpy(volume)[None]
            made = sliding_window_inference(inputs, WINDOW, BATCH, probabilities, OVERLAP, mode="gaussian")
            return of_labels(made[0, 1:].numpy())

    return {"ours": ours, "theirs": theirs}


def windows(name: str, model: nn.Module) -> Iterator[Outcome]:
    volume = np.random.default_rng(0).normal(size=(CHANNELS, *SHAPE)).astype(np.float32)
    both = contestants(model, volume)
    what = (
        f"{CHANNELS} x 240 x 240 x 155, {CLASSES} classes, windows of 96, overlap {OVERLAP}, {BATCH} at a time, {name}"
    )
    with one_thread():
        first, other = both["ours"](), both["theirs"]()
        assert (first == other).mean() > 0.9999
        times = race(both, rounds=ROUNDS, warmup=0)
        memory = {side: peak_bytes(partial(call)) for side, call in both.items()}
    detail = f"{times.median_s['theirs']:.1f} s / {times.median_s['ours']:.1f} s"
    yield at_least(
        f"volumes windows {name}", f"MONAI / ours, {what}", times.ratio("theirs", "ours"), 1.0, detail=detail
    )
    detail = f"{memory['ours'] / 1e6:.0f} MB / {memory['theirs'] / 1e6:.0f} MB beyond the volume"
    ratio = memory["ours"] / memory["theirs"]
    yield at_most(f"volumes memory {name}", f"peak memory, ours / MONAI, {what}", ratio, 1.0, detail=detail)


def races() -> Iterator[Outcome]:
    yield from windows("agunet", network())
    yield from windows("pointwise", Pointwise())
