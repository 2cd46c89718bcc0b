"""The files through which a race and its children talk: the job, the prepared data, and each child's part of results.

A race's working folder holds `data.json` with `train.bin` and `validation.bin` (text), `images.npz`, or `series.csv` (a
copy of the user's file; the generated series is made again), and for every mechanism a folder with `job.json`,
`part.json` (its results so far) and, while it trains, `checkpoint.pt`.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regard.compare.budget import ImageShape, SeriesShape
from regard.compare.series import baselines, description_of, notes_of
from regard.compare.settings import Settings
from regard.compare.text import Corpus, byte_labels, entropy_bits, factors_for, sample_of
from regard.files import write_atomically
from regard.tasks.images.arrays import ImageSet
from regard.tasks.series.forecasting import Forecasting
from regard.wording import shown

PARTS = ("size", "map", "speed", "cost", "decode")
"""What is measured once per mechanism, beside its training runs; the timings are the last three."""
TIMED_PARTS = PARTS[2:]
SERIES_FILE = "series.csv"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one child does.

    Args:
        name: the mechanism.
        settings: of the race.
        data: folder of the prepared data.
        folder: the child's own folder.
        threads: CPU threads for training.
    """

    name: str
    settings: Settings
    data: str
    folder: str
    threads: int

    def write(self) -> Path:
        """Write the job into its folder and return the file."""
        path = Path(self.folder) / "job.json"
        write_atomically(path, json.dumps({**asdict(self), "settings": self.settings.as_json()}))
        return path

    @classmethod
    def read(cls, path: Path) -> Job:
        """The job in a file."""
        stored = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**stored, "settings": Settings.from_json(stored["settings"])})


@dataclass
class Part:
    """A mechanism's results so far.

    Args:
        path: the file that holds them.
        runs: what each finished training run gave, by seed.
        measured: what was measured beside that, by name (see `PARTS`).
        failed: why the mechanism failed; None where it did not.
        final: whether trying again would fail in the same way.
        notes: what the user should know.
    """

    path: Path
    runs: dict[int, dict[str, Any]] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None
    final: bool = False
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Part:
        """The part in a child's folder; an empty one where nothing was written yet."""
        path = folder / "part.json"
        if not path.is_file():
            return cls(path)
        stored = json.loads(path.read_text(encoding="utf-8"))
        runs = {int(seed): run for seed, run in stored.pop("runs").items()}
        return cls(path, runs=runs, **stored)

    def write(self) -> None:
        """Write all of it, atomically.

        Raises:
            OSError: the disk is full or the folder is gone.
        """
        stored = {key: value for key, value in vars(self).items() if key != "path"}
        write_atomically(self.path, json.dumps(stored))

    def trained(self, settings: Settings) -> bool:
        """Whether all that may run beside other mechanisms is done."""
        return len(self.runs) == settings.seeds and all(name in self.measured for name in PARTS[:2])

    def done(self, settings: Settings) -> bool:
        """Whether everything is done."""
        return self.trained(settings) and all(name in self.measured for name in TIMED_PARTS)

    def note(self, text: str) -> None:
        """Keep a note, once."""
        if text not in self.notes:
            self.notes.append(text)


# --------------------------------------------------------------------------------------------------- prepared data


def store_text(corpus: Corpus, folder: Path, *, train_length: int) -> dict[str, Any]:
    """Write a corpus where children read it, and return its description.

    Raises:
        OSError: the disk is full.
    """
    write_atomically(folder / "train.bin", corpus.train)
    write_atomically(folder / "validation.bin", corpus.validation)
    sample = sample_of(corpus.validation)
    train, validation = (np.frombuffer(part, dtype=np.uint8) for part in (corpus.train, corpus.validation))
    described = {
        "source": corpus.source,
        "description": corpus.description,
        "train_bytes": len(corpus.train),
        "validation_bytes": len(corpus.validation),
        "factors": list(factors_for(len(corpus.validation), train_length)),
        "sample": sample.decode("utf-8", "replace"),
        "sample_bytes": list(sample),
        "labels": byte_labels(sample),
        "baselines": {"uniform": 8.0, "unigram": round(entropy_bits(validation, train), 4)},
        "notes": list(corpus.notes),
    }
    write_atomically(folder / "data.json", json.dumps(described))
    return described


def store_images(images: ImageSet, folder: Path) -> dict[str, Any]:
    """Write images where children read them, and return their description.

    Raises:
        OSError: the disk is full.
    """
    buffer = io.BytesIO()
    np.savez(
        buffer,
        train=images.train,
        train_labels=images.train_labels,
        validation=images.validation,
        validation_labels=images.validation_labels,
    )
    write_atomically(folder / "images.npz", buffer.getvalue())
    described = {
        "source": images.source,
        "description": images.description,
        "classes": list(images.classes),
        "train_images": len(images.train),
        "validation_images": len(images.validation),
        "shape": asdict(shape_of(images)),
        "baselines": {"most frequent class": round(images.chance(), 4)},
        "notes": list(images.notes),
    }
    write_atomically(folder / "data.json", json.dumps(described))
    return described


def shape_of(images: ImageSet) -> ImageShape:
    """What a host must know of the images."""
    return ImageShape(images.train.shape[1], images.train.shape[2], len(images.classes))


def store_series(task: Forecasting, path: str | None, folder: Path) -> dict[str, Any]:
    """Copy a series to where children read it, and return its description.

    Args:
        task: with the series.
        path: the user's file; None = the generated series.
        folder: the race's.

    Raises:
        OSError: the disk is full.
    """
    if path is not None:
        write_atomically(folder / SERIES_FILE, Path(path).read_bytes())
    shape = series_shape(task)
    described = {
        "source": "a generated seasonal series" if path is None else shown(path),
        "description": description_of(task, path),
        "channels": [shown(channel, 40) for channel in task.channels],
        "horizon": shape.horizon,
        "shape": asdict(shape),
        "baselines": {name: float(f"{value:.6g}") for name, value in baselines(task).items()},
        "notes": notes_of(task),
    }
    write_atomically(folder / "data.json", json.dumps(described))
    return described


def series_shape(task: Forecasting) -> SeriesShape:
    """What a host must know of the series."""
    return SeriesShape(len(task.channels), task.settings.horizon)


def read_description(folder: Path) -> dict[str, Any] | None:
    """The description of prepared data; None where there are none."""
    path = folder / "data.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
