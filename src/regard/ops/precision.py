"""The precision in which ops compute: at least float32, float64 where the input is, autocast off."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_BFLOAT16_UNITS = ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16", "sve_bf16")


def _multiplies_bfloat16() -> bool:
    # not in every release of our range; where it is missing, float32 is the safe choice
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(unit)) for unit in _BFLOAT16_UNITS)


NATIVE_BFLOAT16 = _multiplies_bfloat16()
"""Whether this CPU multiplies bfloat16 itself. Where it does not, PyTorch emulates it: a product of 512 x 512 matrices
was measured to take 25 times as long as in float32."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """float32 for narrower inputs, float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which to multiply what has the type of `x`: bfloat16 where the hardware does, else `compute_dtype`.

    float16 is never kept: sums of products leave its range.
    """
    native = x.device.type != "cpu" or NATIVE_BFLOAT16
    return x.dtype if x.dtype == torch.bfloat16 and native else compute_dtype(x)


def without_autocast(op: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Switch autocast off inside `op`, on the device of its first argument (a tensor, given by position)."""

    @functools.wraps(op)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        first = args[0] if args else None
        assert isinstance(first, Tensor), "the first argument of an op is a tensor, given by position"
        kind = first.device.type
        # entering the context costs as much as a small op, and the meta device has none
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            return op(*args, **kwargs)
        with torch.autocast(device_type=kind, enabled=False):
            return op(*args, **kwargs)

    return run
