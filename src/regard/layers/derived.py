"""Tensors computed from parameters, which decoding would otherwise compute again at every token."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from operator import attrgetter, is_, methodcaller

import torch
from torch import Tensor, nn

_VALUES, _VERSION = methodcaller("values"), attrgetter("_version")


class DerivedTensors:
    """Keeps what was computed from a module's parameters until one of them is replaced or changed in place.

    Nothing is kept while gradients are enabled (the graph must be new), while a graph is traced, or where a
    parameter is computed itself (`torch.nn.utils.parametrize`). A change through `parameter.data` leaves no trace in
    the parameter: the module calls `forget` where such changes may have happened.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Compute anew at the next call."""
        self._kept: tuple[Tensor, ...] | None = None
        self._children: list[nn.Module | None] = []
        self._stores: list[dict[str, nn.Parameter | None]] = []
        self._sources: list[nn.Parameter | None] = []
        self._counted: list[nn.Parameter] = []
        self._versions: list[int] = []

    def kept(self, module: nn.Module) -> tuple[Tensor, ...] | None:
        """What was computed last, where the parameters of `module` and of its direct children are still the same.

        Hooks and other changes that leave parameters as they are go unseen until `forget`.
        """
        # without a loop and without attribute access of modules, which cost more than a token's projections
        if (
            self._kept is not None
            and all(map(is_, module._modules.values(), self._children))
            and all(map(is_, chain.from_iterable(map(_VALUES, self._stores)), self._sources))
            and list(map(_VERSION, self._counted)) == self._versions
        ):
            return self._kept
        return None

    def get(self, module: nn.Module, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `compute` gives, or gave when the parameters had the same values.

        Args:
            module: the owner of all parameters that `compute` reads, itself or through its direct children.
            compute: a function of the parameters alone.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        found = self.kept(module)
        if found is None:
            found = compute()
            self._keep(module, found)
        return found

    def _keep(self, module: nn.Module, kept: tuple[Tensor, ...]) -> None:
        self.forget()
        children = [*module._modules.values()]
        if any(child is None or child._modules for child in children):
            return
        stores = [module._parameters, *(child._parameters for child in children if child is not None)]
        sources = [each for store in stores for each in store.values()]
        counted = [each for each in sources if each is not None]
        if any(each.is_inference() for each in counted):
            # inference tensors count no versions
            return
        self._kept, self._children, self._stores, self._sources = kept, children, stores, sources
        self._counted, self._versions = counted, [each._version for each in counted]
