"""Networks without memory for their weights, to count or compare sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FILLS = {"normal_", "uniform_", "exponential_", "erfinv_", "mul_", "add_", "clamp_", "zero_", "fill_"}
"""Tensor methods that initialise weights and never change a shape."""


class _NothingToFill(TorchFunctionMode):
    """Methods that only fill a tensor do nothing to one on the meta device.

    PyTorch goes through their decompositions in Python, and imports its compiler for that: seconds for no number.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        target = args[0] if args else (kwargs or {}).get("tensor")
        if isinstance(target, Tensor) and target.is_meta and _only_fills(func):
            return target
        call: Callable[..., Any] = func
        return call(*args, **(kwargs or {}))


def _only_fills(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    is_initialiser = getattr(func, "__module__", "") == nn.init.__name__ and name.endswith("_")
    return is_initialiser or (name in FILLS and getattr(Tensor, name) is func)


@contextmanager
def sizes_only() -> Iterator[None]:
    """What is built inside has shapes and types, and no numbers; there are no gradients.

    Example:
        >>> with sizes_only():
        ...     weight = torch.nn.Linear(3, 5).weight
        >>> tuple(weight.shape), weight.device.type
        ((5, 3), 'meta')
    """
    with torch.device("meta"), torch.no_grad(), _NothingToFill():
        yield
