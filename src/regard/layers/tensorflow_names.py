"""Variables of a TensorFlow checkpoint as ours: other names, other orders of axes, several as parts of one.

Convolutions are stored there as (rows, columns, in, out), linear maps as (in, out), and the projections of attention
with an axis of their own for heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, cat

Leaves = Mapping[str, tuple[str, tuple[int, ...]]]

NORM_LEAVES: Leaves = {
    "gamma": ("weight", (0,)),
    "beta": ("bias", (0,)),
    "moving_mean": ("running_mean", (0,)),
    "moving_variance": ("running_var", (0,)),
}
"""The variables of a norm: ours, and the order of their axes in ours."""
CONV_LEAVES: Leaves = {
    "kernel": ("weight", (3, 2, 0, 1)),
    "depthwise_kernel": ("weight", (2, 3, 0, 1)),
    "bias": ("bias", (0,)),
}
"""The variables of a convolution."""
LINEAR_LEAVES: Leaves = {"weight": ("weight", (1, 0)), "kernel": ("weight", (1, 0)), "bias": ("bias", (0,))}
"""The variables of a linear map."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a variable belongs.

    Args:
        name: our tensor.
        axes: its axes in the order of ours; neighbours that are one axis in ours are merged.
        part: which part of our tensor it is, along the first axis.
        parts: number of equal parts that our tensor consists of.
    """

    name: str
    axes: tuple[int, ...]
    part: int = 0
    parts: int = 1

    def below(self, prefix: str) -> Place:
        """The place inside a module of this name."""
        return replace(self, name=prefix + self.name)

    def ours(self, variable: Tensor, shape: Sequence[int]) -> Tensor | None:
        """The variable as (a part of) our tensor of this shape; None where it does not fit."""
        shape = (shape[0] // self.parts, *shape[1:])
        if variable.ndim != len(self.axes):
            return None
        turned = variable.permute(self.axes)
        return turned.reshape(shape) if _merges_into(turned.shape, shape) else None

    def theirs(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """Our tensor (its part) as the variable of this shape."""
        turned = tensor.chunk(self.parts)[self.part].reshape([shape[axis] for axis in self.axes])
        return turned.permute([self.axes.index(axis) for axis in range(len(self.axes))])


def arranged(
    variables: Mapping[str, Tensor], place_of: Callable[[str], Place | None], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All of our tensors from a checkpoint's variables.

    Args:
        variables: by name.
        place_of: where a variable belongs; None for one that is not known.
        own: our tensors, for their shapes. Counters of batches, which TensorFlow has not, stay as they are.

    Raises:
        KeyError: an unknown or a missing variable, named.
        ValueError: a variable of the wrong shape.
    """
    found: dict[str, dict[int, Tensor]] = {}
    unknown = []
    parts = {}
    for name, variable in variables.items():
        place = place_of(name)
        if place is None or place.name not in own or place.part in found.get(place.name, {}):
            unknown.append(name)
            continue
        shape = own[place.name].shape
        tensor = place.ours(variable, shape)
        if tensor is None:
            made_of = f"a part of {place.parts} of " if place.parts > 1 else ""
            raise ValueError(
                f"{name} has shape {tuple(variable.shape)}, it must be {made_of}{place.name}, {tuple(shape)}, with "
                f"its axes in another order"
            )
        found.setdefault(place.name, {})[place.part] = tensor
        parts[place.name] = place.parts
    counters = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")}
    missing = [name for name in own if name not in counters and len(found.get(name, {})) < parts.get(name, 1)]
    if unknown or missing:
        raise KeyError(f"unknown keys: {', '.join(unknown) or 'none'}; missing keys: {', '.join(missing) or 'none'}")
    return {name: cat([tensors[part] for part in sorted(tensors)]) for name, tensors in found.items()} | counters


def _merges_into(shape: Sequence[int], merged: Sequence[int]) -> bool:
    """Whether neighbours of `shape`, or axes of length 1, can be merged so that `merged` results."""
    remaining = list(shape)
    for wanted in merged:
        size = 1
        while remaining and size < wanted:
            size *= remaining.pop(0)
        if size != wanted:
            return False
    return all(size == 1 for size in remaining)
