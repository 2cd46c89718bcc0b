"""All cases of a data set, prepared once: kept in memory up to a budget, and in files beyond it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from regard.errors import UserError
from regard.tasks.volumes.cases import Case
from regard.tasks.volumes.grids import Array, Grid
from regard.tasks.volumes.preparing import Preparation, Prepared, read_mask
from regard.tasks.volumes.reading import open_channels
from regard.wording import shown

FOLDER = "prepared"
MOST_PLACES = 512
"""Voxels with a label that are remembered of a case, to centre windows on."""
_PLACES_SEED = 0


class CaseStore:
    """Prepared images and targets by number.

    Args:
        cases: whose files.
        preparation: what is done to them.
        allowed: labels that may occur; None = any.
        cache: a folder for cases that exceed the budget of memory.
        skip: whether cases that cannot be used are left out and remembered in `bad`, or end it.

    Raises:
        UserError: a case that cannot be used, unless they are skipped.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        preparation: Preparation,
        *,
        allowed: frozenset[int] | None,
        cache: Path | None,
        skip: bool,
    ) -> None:
        self.cases, self.preparation, self.allowed = list(cases), preparation, allowed
        self._budget = preparation.settings.memory_mb * 10**6
        self._cache = cache
        self.bad: dict[int, str] = {}
        self.images: list[Array] = []
        self.targets: list[Array] = []
        self.grids: list[Grid] = []
        self.natives: list[Grid] = []
        self.labels: list[frozenset[int]] = []
        self.constant: list[str] = []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            prepared = pool.map(self._prepared, range(len(self.cases)))
            for number, (case, target, native, why) in enumerate(prepared):
                if why and not skip:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise UserError(why)
                self._keep(number, case, target, why)
                self.labels.append(frozenset(np.flatnonzero(np.bincount(native.ravel(), minlength=256)).tolist()))

    def _prepared(self, number: int) -> tuple[Prepared | None, Array, Array, str]:
        case = self.cases[number]
        try:
            first = open_channels(case.images[:1])[0]
            native = read_mask(case, first, self.allowed)
            prepared = self.preparation.image(case.images, scratch=self._cache)
        except UserError as error:
            return None, _NOTHING, _NOTHING, str(error)
        return prepared, self.preparation.on_grid(native, prepared), native, ""

    def _keep(self, number: int, case: Prepared | None, target: Array, why: str) -> None:
        if case is None:
            self.bad[number] = why
            case = Prepared(np.zeros((1, 0, 0, 0), dtype=np.float32), _NOWHERE, _NOWHERE)
        if case.constant:
            self.constant.append(shown(self.cases[number].name))
        self._budget -= case.image.nbytes + target.nbytes
        self.images.append(case.image if self._budget >= 0 else self._on_disk(number, "image", case.image))
        self.targets.append(target if self._budget >= 0 else self._on_disk(number, "target", target))
        self.grids.append(case.grid)
        self.natives.append(case.native)

    def _on_disk(self, number: int, what: str, values: Array) -> Array:
        if self._cache is None:
            return values
        folder = self._cache / FOLDER
        folder.mkdir(exist_ok=True)
        path = folder / f"{number}-{what}.npy"
        np.save(path, values)
        return np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.cases)

    def prepared(self, number: int) -> Prepared:
        """A case as the network sees it."""
        return Prepared(self.images[number], self.grids[number], self.natives[number])

    def native_labels(self, number: int) -> Array:
        """`(x, y, z)` labels of a case's mask as it is."""
        case = self.cases[number]
        return read_mask(case, open_channels(case.images[:1])[0], self.allowed)

    def labelled_slices(self, number: int) -> Array:
        """Numbers of the slices along z that have a label."""
        return np.flatnonzero(self.targets[number].any(axis=(0, 1)))

    def labelled_places(self, number: int) -> NDArrayOfInt:
        """`(places, 3)` indices of some voxels with a label."""
        places = np.argwhere(self.targets[number])
        if len(places) > MOST_PLACES:
            places = np.random.default_rng(_PLACES_SEED).choice(places, MOST_PLACES, replace=False)
        return places


NDArrayOfInt = np.ndarray[Any, np.dtype[np.int64]]
_NOWHERE = Grid((1, 1, 1), np.eye(4))
_NOTHING: Array = np.zeros((0, 0, 0), dtype=np.uint8)
