"""What an adapter is: a function from a stored case to calls on our code, keyed by the reference's entry.

An adapter only renames: it builds our class through the same `load_reference` that users call, hands over the inputs,
and names what comes out. It never computes.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from regard.layers.reference_names import Rules, rename
from regard.parity.cases import Case

__all__ = [
    "AdapterError",
    "Case",
    "Leaf",
    "Outcome",
    "Reshaped",
    "Sliced",
    "Stacked",
    "adapter",
    "assemble",
    "entries",
    "find_adapter",
    "parts_of",
    "renamed_leaves",
]


class AdapterError(LookupError):
    """No adapter for a case; the message says what is missing."""

    def __str__(self) -> str:
        return str(self.args[0])


class Rearranged(Protocol):
    """A parameter of the reference that is laid out differently in ours."""

    def parts(self) -> list[Tensor]:
        """Our tensors, of which gradients are taken."""

    def assemble(self, gradients: Sequence[Tensor]) -> Tensor:
        """The reference's gradient, from those of `parts`."""


Leaf: TypeAlias = Tensor | Rearranged


def parts_of(leaf: Leaf) -> list[Tensor]:
    """Our tensors that a leaf is made of."""
    return [leaf] if isinstance(leaf, Tensor) else leaf.parts()


def assemble(leaf: Leaf, gradients: Sequence[Tensor]) -> Tensor:
    """The reference's gradient, from those of the leaf's parts."""
    return gradients[0] if isinstance(leaf, Tensor) else leaf.assemble(gradients)


class Stacked:
    """A parameter of the reference that is several of ours, one after the other.

    Args:
        leaves: ours, in the reference's order.
        dim: axis on which they follow each other.

    Example:
        >>> Stacked([mixer.q_proj.weight, mixer.k_proj.weight, mixer.v_proj.weight])
    """

    def __init__(self, leaves: Sequence[Leaf], *, dim: int = 0) -> None:
        if not leaves:
            raise ValueError("Stacked needs at least one leaf, got none")
        self._leaves, self._dim = list(leaves), dim

    def parts(self) -> list[Tensor]:
        """Our tensors, of which gradients are taken."""
        return [tensor for leaf in self._leaves for tensor in parts_of(leaf)]

    def assemble(self, gradients: Sequence[Tensor]) -> Tensor:
        """The gradients of the parts, concatenated."""
        assembled, rest = [], list(gradients)
        for leaf in self._leaves:
            count = len(parts_of(leaf))
            assembled.append(assemble(leaf, rest[:count]))
            rest = rest[count:]
        return torch.cat(assembled, dim=self._dim)


class Reshaped:
    """A parameter of the reference that has another shape in ours, with the same elements in the same order.

    Args:
        leaf: ours.
        shape: the reference's shape.
    """

    def __init__(self, leaf: Leaf, shape: Sequence[int]) -> None:
        self._leaf, self._shape = leaf, tuple(shape)

    def parts(self) -> list[Tensor]:
        """Our tensors, of which gradients are taken."""
        return parts_of(self._leaf)

    def assemble(self, gradients: Sequence[Tensor]) -> Tensor:
        """The gradient in the reference's shape."""
        return assemble(self._leaf, gradients).reshape(self._shape)


class Sliced:
    """A parameter of the reference that is a slice of one of ours.

    Args:
        leaf: ours.
        index: what the reference holds of it, as in `ours[index]`.
    """

    def __init__(self, leaf: Leaf, index: slice | tuple[slice, ...]) -> None:
        self._leaf, self._index = leaf, index

    def parts(self) -> list[Tensor]:
        """Our tensors, of which gradients are taken."""
        return parts_of(self._leaf)

    def assemble(self, gradients: Sequence[Tensor]) -> Tensor:
        """The slice of the gradient."""
        return assemble(self._leaf, gradients)[self._index]


def renamed_leaves(case: Case, module: nn.Module, rules: Rules) -> dict[str, Leaf]:
    """The parameters of `module` under the reference's names, for all gradients of the case that are not of an input.

    Args:
        case: whose names are wanted.
        module: ours.
        rules: how `load_reference` renames.
    """
    parameters = dict(module.named_parameters())
    wanted = (name for gradients in case.gradients.values() for name in gradients if not name.startswith("in."))
    return {name: parameters[own] for name in wanted if (own := rename(name, rules)) in parameters}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What our code gave for a case.

    Args:
        outputs: named as in the file, without `out.`; all of them, and no other.
        leaves: for the name of every gradient of the file (`in.x`, or a key of the reference's state) the tensor that
            it is the gradient of: one of the case's inputs, one of our parameters, or `Stacked`, `Reshaped`,
            `Sliced` ones.
        losses: further losses by name, scalars; "" is the case's own, to be given only where its `gradients_of` is
            "notes" (else the runner builds it).
    """

    outputs: Mapping[str, Tensor]
    leaves: Mapping[str, Leaf | Sequence[Tensor]] = field(default_factory=dict)
    losses: Mapping[str, Tensor] = field(default_factory=dict)

    def leaf(self, name: str) -> Leaf | None:
        """The leaf of a gradient's name; a plain list of tensors counts as `Stacked`."""
        leaf = self.leaves.get(name)
        return Stacked(list(leaf)) if isinstance(leaf, list | tuple) else leaf  # type: ignore[return-value]


Adapter = Callable[[Case], Outcome]

_adapters: dict[tuple[str, str], Adapter] = {}


def adapter(entry: str, *, system: str | None = None) -> Callable[[Adapter], Adapter]:
    """Make the decorated function the adapter of all cases with this `reference.entry`, verbatim.

    Args:
        entry: the entry, as the cases write it.
        system: the system's id; by default the name of the module that the function is defined in.

    Raises:
        ValueError: the system already has an adapter for this entry.
    """

    def decorate(function: Adapter) -> Adapter:
        key = (system or function.__module__.rpartition(".")[2], entry)
        other = _adapters.get(key)
        if other is not None and (other.__module__, other.__qualname__) != (function.__module__, function.__qualname__):
            raise ValueError(f"{key[0]} has two adapters for {entry!r}: {other.__qualname__}, {function.__qualname__}")
        _adapters[key] = function
        return function

    return decorate


def entries(system: str) -> list[str]:
    """The entries that a system has adapters for, sorted; its module is imported.

    Raises:
        AdapterError: no such module.
    """
    _import_adapters(system)
    return sorted(entry for owner, entry in _adapters if owner == system)


def find_adapter(system: str, entry: str) -> Adapter:
    """The adapter for a case.

    Raises:
        AdapterError: the system has no adapters, or none for this entry; the nearest is suggested.
    """
    if (system, entry) not in _adapters:
        _import_adapters(system)
    if (system, entry) in _adapters:
        return _adapters[system, entry]
    known = [other for owner, other in _adapters if owner == system]
    near = difflib.get_close_matches(entry, known, n=1)
    hint = f"; the nearest is {near[0]!r}" if near else ""
    raise AdapterError(f"no adapter: regard.parity.{system} has none for the entry {entry!r}{hint}")


def _import_adapters(system: str) -> None:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", system):
        raise AdapterError(f"no adapter: {system!r} cannot be a module's name")
    module = f"regard.parity.{system}"
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        if any(owner == system for owner, _ in _adapters):
            # registered outside the package
            return
        raise AdapterError(f"no adapter: there is no module {module}") from None
