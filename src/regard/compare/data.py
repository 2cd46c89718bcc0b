"""The data of a race: read once by the race, stored where its children read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regard.compare.budget import Shape
from regard.compare.job import series_shape, shape_of, store_images, store_series, store_text
from regard.compare.race_tasks import IMAGE, SERIES, TEXT
from regard.compare.series import description_of, read_series
from regard.compare.settings import Settings
from regard.compare.text import load_corpus
from regard.tasks.images.arrays import load_images


@dataclass(frozen=True)
class RaceData:
    """What was read.

    Args:
        description: one line.
        shape: what a host must know of it.
        store: writes it into a folder and returns its description for children; OSError where the disk is full.
    """

    description: str
    shape: Shape
    store: Callable[[Path], dict[str, Any]]


def read_data(settings: Settings) -> RaceData:
    """The user's data, or the built-in ones.

    Raises:
        UserError: the data are bad.
    """
    return _READERS[settings.task](settings)


def _read_text(settings: Settings) -> RaceData:
    length = settings.train_length
    corpus = load_corpus(settings.data, train_length=length)
    return RaceData(corpus.description, None, lambda folder: store_text(corpus, folder, train_length=length))


def _read_images(settings: Settings) -> RaceData:
    images = load_images(settings.data, size=settings.image_size)
    return RaceData(images.description, shape_of(images), lambda folder: store_images(images, folder))


def _read_series(settings: Settings) -> RaceData:
    path = settings.data
    task = read_series(path, train_length=settings.train_length)
    return RaceData(description_of(task, path), series_shape(task), lambda folder: store_series(task, path, folder))


_READERS = {TEXT.name: _read_text, IMAGE.name: _read_images, SERIES.name: _read_series}
