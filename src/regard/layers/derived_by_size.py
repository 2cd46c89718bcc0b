"""Tensors computed from parameters for a size of map, which inference would otherwise compute again at every call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from regard.layers.derived import DerivedTensors


class ModuleWithDerived(nn.Module):
    """A module that keeps what it computed from its parameters, for the size that it was last computed for.

    Nothing is kept while gradients are enabled or a graph is traced, and it is forgotten when a parameter changes, when
    `train` or `eval` is called, and when the module is moved or cast.
    """

    def __init__(self) -> None:
        super().__init__()
        self._derived = DerivedTensors()
        self._size: Hashable = None

    def derive(self, size: Hashable, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `compute` gives, or gave for the same size and the same parameters.

        Args:
            size: all that the result depends on, beside the module's own and its direct children's parameters.
            compute: a function of them.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        if size != self._size:
            self._derived.forget()
            self._size = size
        return self._derived.get(self, compute)

    def train(self, mode: bool = True) -> Any:
        """As in `torch.nn.Module`; what was computed from the parameters is forgotten."""
        self._derived.forget()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._derived.forget()
        return super()._apply(fn, recurse)
