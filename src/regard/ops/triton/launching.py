"""What launchers of attention kernels share: types and sizes of tiles, the device to launch on, addresses by stride."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernels read and write."""
WIDEST = 256
"""Columns of a tile, at most: with more, tiles of queries, keys and values do not fit in shared memory together."""

_SMALLEST_TILE = 16


def refused(*read: Tensor) -> str | None:
    """Why the kernels do not take tensors of such types and widths; None where they do."""
    for x in read:
        if x.dtype not in DTYPES:
            return f"the kernels compute in float32 and take float32, bfloat16 and float16, got {x.dtype}"
        if x.shape[-1] > WIDEST:
            return f"the kernels' heads are at most {WIDEST} wide, got {x.shape[-1]}"
        if x.numel() == 0:
            return f"the kernels need at least 1 row, 1 head and 1 token, got shape {tuple(x.shape)}"
    return None


def tile(size: int) -> int:
    """The smallest side of a tile that holds `size`: products are of tiles with powers of two from 16 on."""
    return max(_SMALLEST_TILE, triton.next_power_of_2(size))


def products(dtype: torch.dtype, *, keep_float16: bool) -> dict[str, Any]:
    """The type in which tiles are multiplied, and how exactly; sums of products are float32.

    Args:
        dtype: of the queries.
        keep_float16: multiply float16 as it is; else as TF32, which holds it exactly, for what may leave its range.
    """
    if dtype == torch.bfloat16:
        # the interpreter's arrays have no bfloat16, and would multiply its bits
        return {"WORK": tl.float32 if interpreted() else tl.bfloat16, "PRECISION": "tf32"}
    if dtype == torch.float16:
        return {"WORK": tl.float16 if keep_float16 else tl.float32, "PRECISION": "tf32"}
    return {"WORK": tl.float32, "PRECISION": "tf32x3" if torch.version.hip is None else "ieee"}


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def in_rows(x: Tensor) -> Tensor:
    """The kernels address batch, head and token by stride; a token's own numbers lie side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def on_device(x: Tensor) -> Any:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
