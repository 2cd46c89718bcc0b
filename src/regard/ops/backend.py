"""Whether an op runs in PyTorch or in its Triton kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from regard.metadata import No

Backend = Literal["auto", "torch", "triton"]


def in_kernels(x: Tensor, backend: Backend, refusal: Callable[[], str | None]) -> bool:
    """Whether an op's Triton kernels run; nothing of Triton is imported for tensors on the CPU.

    Args:
        x: a tensor that the op reads.
        backend: "auto" = the kernels on CUDA where they take the inputs, else PyTorch; the others force one.
        refusal: says why the kernels do not take the inputs, or None; called only where kernels run.

    Raises:
        ValueError: an unknown backend, or, with `backend="triton"`, the reason why the kernels cannot run.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}")
    if backend == "torch" or (backend == "auto" and x.device.type != "cuda"):
        return False
    from regard.ops.triton import available

    can = available(x.device)
    reason = can.reason if isinstance(can, No) else refusal()
    if reason is not None and backend == "triton":
        raise ValueError(f"backend='triton' was asked for, but {reason}")
    return reason is None
