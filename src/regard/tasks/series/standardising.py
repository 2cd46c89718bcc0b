"""Standardising channels by the mean and the standard deviation of the training part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.errors import UserError
from regard.wording import listed, shown


@dataclass(frozen=True)
class Scaler:
    """x -> (x - mean) / std, per channel.

    Args:
        mean: of each channel.
        std: of each channel, over all values (not one less); 1 for a channel that stands still.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def apply(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Standardise the last axis."""
        return ((values - self.mean) / self.std).astype(np.float32)

    def undo(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Back to the data's units."""
        return values.astype(np.float64) * self.std + self.mean

    def stored(self) -> dict[str, list[float]]:
        """As plain JSON data, exactly."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def restored(cls, stored: Mapping[str, Any], channels: int) -> Scaler:
        """From `stored`.

        Raises:
            KeyError, TypeError, ValueError: it is not what `stored` gave for this number of channels.
        """
        mean, std = (np.asarray(stored[name], dtype=np.float64) for name in ("mean", "std"))
        for name, values in (("mean", mean), ("std", std)):
            if values.shape != (channels,) or not np.isfinite(values).all():
                raise ValueError(f"{name} must be {channels} finite numbers, got shape {values.shape}")
        if not (std > 0).all():
            raise ValueError(f"std must be positive, got {std.min()}")
        return cls(mean, std)


def fit_scaler(values: NDArray[np.float64], names: Sequence[str]) -> tuple[Scaler, list[str]]:
    """The scaler of training values `(rows, channels)`, and notes for the user.

    Args:
        values: at least one row.
        names: of the channels.

    Raises:
        UserError: a channel whose numbers are too large to be squared.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = values.mean(axis=0), values.std(axis=0)
    still = values.min(axis=0) == values.max(axis=0)
    # rounding can give a channel that stands still a tiny deviation
    std = np.where(still, 1.0, std)
    wrong = ~(np.isfinite(mean) & np.isfinite(std) & (std > 0))
    if wrong.any():
        name = shown(names[int(np.argmax(wrong))], 40)
        raise UserError(f"column {name} has numbers that are too large or too small to be standardised: rescale it")
    notes = []
    if still.any():
        which = listed([shown(names[index], 40) for index in np.flatnonzero(still).tolist()])
        notes.append(f"constant in the training part, so only shifted: {which}")
    return Scaler(mean, std), notes
