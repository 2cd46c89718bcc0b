"""GPU kernels in Triton, each behind the op of the same equation; nothing here imports Triton before a kernel runs."""

from __future__ import annotations

import importlib.util
import os

import torch

from regard.metadata import Capability, No

OLDEST_CUDA_CAPABILITY = (8, 0)
"""Tensor cores before Ampere know no TF32, in which the kernels multiply what is stored in 16 bits."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available(device: str | torch.device | None = None) -> Capability:
    """Whether the kernels run on a device, or why they do not.

    Under Triton's interpreter (`TRITON_INTERPRET=1`, set before Triton is first imported) they run on any device.

    Args:
        device: where the tensors are; None = the current CUDA device.
    """
    if importlib.util.find_spec("triton") is None:
        return No("triton is not installed: it comes with PyTorch's builds for CUDA on Linux")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    where = torch.device("cuda" if device is None else device)
    if where.type != "cuda":
        return No(f"the tensors are on {where.type}: kernels run on CUDA, or anywhere under TRITON_INTERPRET=1")
    if not torch.cuda.is_available():
        return No("there is no CUDA device")
    capability = torch.cuda.get_device_capability(where)
    if torch.version.hip is None and capability < OLDEST_CUDA_CAPABILITY:
        return No(f"{torch.cuda.get_device_name(where)} has compute capability {capability}, 8.0 is needed")
    return True
