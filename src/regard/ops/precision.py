"""The precision in which ops compute: at least float32, float64 where the input is, autocast off."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compute_dtype(x: Tensor) -> torch.dtype:
    """float32 for narrower inputs, float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def without_autocast(op: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Switch autocast off inside `op`, on the device of its first argument (a tensor)."""

    @functools.wraps(op)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        first = args[0]
        assert isinstance(first, Tensor), "the first argument of an op is a tensor"
        with torch.autocast(device_type=first.device.type, enabled=False):
            return op(*args, **kwargs)

    return run
