"""The cascades that come with the library, by name."""

from __future__ import annotations

import functools
from pathlib import Path

from regard.hardware.einsum import Cascade, CascadeError
from regard.hardware.reader import read_file
from regard.wording import suggestion

FOLDER = Path(__file__).parent / "cascades"
SUFFIX = ".cascade"
ALONG = {
    "attention_three_pass": "m",
    "attention_deferred_division": "m",
    "attention_two_pass": "m",
    "attention_one_pass": "m",
    "softplus": "m",
    "window": "m",
    "hip": "m",
    "agent": "m",
    "aaren": "m",
    "lightning": "n",
}
"""The rank of the keys in each: the one whose passes count."""
SYSTEMS = {"softmax": "attention_three_pass", "flash": "attention_one_pass", "fusemax": "attention_one_pass"}
"""Other names for some of them."""


def names() -> list[str]:
    """All cascades, attention first."""
    return list(ALONG)


@functools.cache
def cascade(name: str) -> Cascade:
    """A cascade by its own name, or by that of a mechanism.

    Raises:
        CascadeError: unknown; the nearest is suggested.
    """
    name = SYSTEMS.get(name, name)
    if name not in ALONG:
        raise CascadeError(f"no cascade {name!r}: {suggestion(name, [*ALONG, *SYSTEMS])}")
    return read_file(FOLDER / (name + SUFFIX))


def along(found: Cascade) -> str:
    """The rank whose passes count: that of the keys, or the one that a cascade of a user's own reduces or runs over."""
    if found.name in ALONG:
        return ALONG[found.name]
    for preferred in ("m", "n"):
        if preferred in found.ranks or preferred in found.parts.values():
            return preferred
    for einsum in found.einsums:
        if einsum.reduction is not None:
            return found.whole(einsum.reduction.ranks[0])
    return found.whole(found.ranks[0])
