"""Buffers in the CPU's memory or in a file: zeros, writable, growing, and gone with the tensor."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from regard.layers.offload import OFFLOADS, Offload, check_offload, grown_ring, zeros_at


@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_buffers_are_zero_and_grow(offload: Offload, dtype: torch.dtype) -> None:
    ring = zeros_at((2, 3, 5, 7), torch.zeros(1, dtype=dtype), offload)
    assert ring.dtype == dtype
    assert torch.equal(ring, torch.zeros(2, 3, 5, 7, dtype=dtype))
    ring[1, :, 4] = 2
    grown = grown_ring(ring, 11, offload)
    assert grown.shape == (2, 3, 11, 7)
    assert torch.equal(grown[:, :, :5], ring)
    assert not grown[:, :, 5:].any()


def test_a_file_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ring = zeros_at((3, 1000), torch.zeros(1), "disk")
    ring += 1
    assert ring.sum() == 3000
    assert not list(tmp_path.iterdir())


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(ValueError, match="offload must be one of none, cpu, disk, got 'tape'"):
        check_offload("tape")
