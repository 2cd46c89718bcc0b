"""Variables of a three-dimensional Keras network as ours.

Keras numbers layers of a kind in the order in which they are made, over all networks of a process: the numbers may have
gaps and begin anywhere, but their order is that of the network. So the layers of each kind are sorted by their numbers
and matched with ours one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from regard.layers.tensorflow_names import NORM_LEAVES, Leaves, Place, arranged

VOLUME_CONV_LEAVES: Leaves = {"kernel": ("weight", (4, 3, 0, 1, 2)), "bias": ("bias", (0,))}
"""Of a convolution, (x, y, z, in, out), and of a transposed one, (x, y, z, out, in): PyTorch has both reversed."""
LEAVES: Mapping[str, Leaves] = {
    "conv3d": VOLUME_CONV_LEAVES,
    "conv3d_transpose": VOLUME_CONV_LEAVES,
    "batch_normalization": NORM_LEAVES,
}

_LAYER = re.compile(r"^([a-z_]*[a-z]|conv3d(?:_transpose)?)(?:_(\d+))?\.(.+)$")


def from_keras(
    variables: Mapping[str, Tensor],
    order: Mapping[str, Sequence[str]],
    own: Mapping[str, Tensor],
    *,
    more: Mapping[str, Leaves] | None = None,
) -> dict[str, Tensor]:
    """All of our tensors from a Keras network's variables, named `<layer>.<variable>`.

    Args:
        variables: by name, such as `conv3d_4.kernel`.
        order: for each kind of layer, our modules in the order in which Keras makes them.
        own: our tensors.
        more: the variables of further kinds of layers.

    Raises:
        KeyError: an unknown or a missing variable, named.
        ValueError: a variable of the wrong shape.
    """
    leaves = {**LEAVES, **(more or {})}
    found: dict[str, set[int]] = {}
    for name in variables:
        if (parsed := _parsed(name)) is not None:
            found.setdefault(parsed[0], set()).add(parsed[1])
    ranks = {kind: {number: rank for rank, number in enumerate(sorted(numbers))} for kind, numbers in found.items()}
    return arranged(variables, _places(ranks, order, leaves), own)


def _parsed(name: str) -> tuple[str, int, str] | None:
    match = _LAYER.match(name)
    return None if match is None else (match[1], int(match[2] or 0), match[3])


def _places(
    ranks: Mapping[str, Mapping[int, int]], order: Mapping[str, Sequence[str]], leaves: Mapping[str, Leaves]
) -> Callable[[str], Place | None]:
    def place_of(name: str) -> Place | None:
        parsed = _parsed(name)
        if parsed is None:
            return None
        kind, number, variable = parsed
        modules, rank = order.get(kind, ()), ranks[kind][number]
        leaf = leaves.get(kind, {}).get(variable)
        if leaf is None or rank >= len(modules):
            return None
        return Place(name=f"{modules[rank]}.{leaf[0]}", axes=leaf[1])

    return place_of
