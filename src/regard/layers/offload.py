"""Large buffers beside the parameters, in the CPU's memory, or in a file that is mapped into it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Offload = Literal["none", "cpu", "disk"]
OFFLOADS: tuple[Offload, ...] = ("none", "cpu", "disk")


def check_offload(offload: str) -> None:
    """Refuse an unknown place.

    Raises:
        ValueError: it is none of `OFFLOADS`.
    """
    if offload not in OFFLOADS:
        raise ValueError(f"offload must be one of {', '.join(OFFLOADS)}, got {offload!r}")


def zeros_at(shape: tuple[int, ...], like: Tensor, offload: Offload) -> Tensor:
    """Zeros in the dtype of `like`.

    Args:
        shape: of the buffer.
        like: says the dtype, and with "none" the device.
        offload: "none" beside `like`, "cpu" in the CPU's memory, "disk" in a file.
    """
    if offload == "none":
        return like.new_zeros(shape)
    if offload == "cpu":
        return torch.zeros(shape, dtype=like.dtype)
    return _mapped(shape, like.dtype)


def grown_ring(ring: Tensor, blocks: int, offload: Offload) -> Tensor:
    """A buffer of the same kind with `blocks` entries on axis 2, the first of them those of `ring`."""
    grown = zeros_at((*ring.shape[:2], blocks, *ring.shape[3:]), ring, offload)
    grown[:, :, : ring.shape[2]] = ring
    return grown


def _mapped(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in a file that has no name any more, so that it goes with the last tensor that is mapped to it."""
    with tempfile.TemporaryDirectory(prefix="regard-memory-") as folder:
        numbers = torch.Size(shape).numel()
        return torch.from_file(str(Path(folder, "blocks")), shared=True, size=numbers, dtype=dtype).view(shape)
