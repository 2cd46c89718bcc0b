"""The folder of a race: finding an earlier one, keeping two races apart, and writing results so that none is lost."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from regard.compare.job import Part
from regard.compare.results import as_csv
from regard.compare.settings import Settings
from regard.errors import UserError
from regard.files import missing_folders, remove_empty, write_atomically
from regard.wording import shown

RESULTS = "results.json"
TABLE = "results.csv"
REPORT = "report.html"
WORK = "work"
LOCK = "lock"
_OURS = (RESULTS, TABLE, REPORT)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around anything that writes in a race's folder.

    Raises:
        UserError: in place of the OSError of a full disk or a folder that is closed to us.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"cannot write in {shown(path)}: {why}; what was written before is kept") from error


def find_earlier(out: str | None, task: str | None, *, runs: Path = Path("runs")) -> Path | None:
    """The race that `--resume` means: the one in `out`, else the newest in `runs`, unfinished ones first.

    Args:
        out: the folder that the user named; None = none.
        task: only races of this task are looked for in `runs`; None = any.
        runs: where races go by default.
    """
    if out is not None:
        return Path(out) if (Path(out) / RESULTS).is_file() else None
    found = []
    for path in runs.glob(f"*/{RESULTS}"):
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # not a race of ours, or damaged: not what an unnamed --resume can mean
            continue
        if isinstance(stored, dict) and task in (None, stored.get("task")):
            found.append((stored.get("finished") is not True, path.stat().st_mtime, path.parent))
    return max(found)[2] if found else None


def read_results(folder: Path) -> dict[str, Any]:
    """The results that a race has written so far.

    Raises:
        UserError: they cannot be read.
    """
    path = folder / RESULTS
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot resume from {shown(path)}: {shown(str(error))}") from None
    if not isinstance(stored, dict) or not isinstance(stored.get("settings"), dict):
        raise UserError(f"cannot resume from {shown(path)}: it is not a race of regard compare")
    return stored


class RunFolder:
    """The folder of one race.

    Args:
        path: the folder; made if it is not there.

    Raises:
        UserError: the path is a file, cannot be written, or another race is writing there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.work = path / WORK
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {shown(path)} is a file; it must be a folder, or a new name")
        self._made = missing_folders(path)
        with writing(path):
            self.work.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()

    @classmethod
    def new(cls, path: Path) -> RunFolder:
        """A folder for a new race.

        Raises:
            UserError: as the class; or the folder holds results already.
        """
        taken = [name for name in _OURS if (path / name).exists()]
        if taken:
            raise UserError(
                f"{shown(path)} already has {taken[0]}: continue that race with --resume, or name another --out"
            )
        folder = cls(path)
        # work without results: a race that was killed while it read its data, perhaps with other settings
        for stale in folder.work.iterdir():
            if stale.name != LOCK:
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        return folder

    @classmethod
    def earlier(cls, path: Path, results: Mapping[str, Any]) -> RunFolder:
        """The folder of an earlier race.

        Args:
            path: where it is.
            results: what it has written.

        Raises:
            UserError: as the class; or its work is gone, so that its rows could not be kept.
        """
        begun = any(row["status"] != "unfinished" or "params" in row for row in results["rows"])
        if begun and not (path / WORK / "data.json").is_file():
            raise UserError(
                f"cannot resume {shown(path)}: its folder {WORK} is gone; start a new race with another --out"
            )
        return cls(path)

    def _take_lock(self) -> IO[str]:
        lock = (self.work / LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise UserError(f"another race is running in {shown(self.path)}") from None
        return lock

    def release(self) -> None:
        """Let other races in; where no results were written, whatever was made for them is removed."""
        self._lock.close()
        if (self.path / RESULTS).exists():
            return
        shutil.rmtree(self.work, ignore_errors=True)
        remove_empty(self._made)

    def child(self, settings: Settings, name: str) -> Path:
        """The folder of one mechanism; its name does not depend on the mechanism's."""
        folder = self.work / f"{settings.mechanisms.index(name):02d}"
        folder.mkdir(exist_ok=True)
        return folder

    def parts(self, settings: Settings) -> dict[str, Part]:
        """Every mechanism's results so far."""
        with writing(self.path):
            return {name: Part.read(self.child(settings, name)) for name in settings.mechanisms}

    def write_results(self, results: Mapping[str, Any], as_table: Callable[[Mapping[str, Any]], str] = as_csv) -> None:
        """Write `results.json` and `results.csv`.

        Args:
            results: of the race.
            as_table: makes the table of them.

        Raises:
            UserError: the disk is full.
        """
        with writing(self.path):
            text = json.dumps(results, indent=1, allow_nan=False)
            write_atomically(self.path / RESULTS, text + "\n")
            write_atomically(self.path / TABLE, as_table(results))

    def write_report(self, results: Mapping[str, Any]) -> Path:
        """Write `report.html` and the plots; returns the page.

        Raises:
            UserError: the disk is full.
        """
        from regard.report.compare import render, write_pngs

        page = self.path / REPORT
        text = render(results)
        with writing(self.path):
            write_atomically(page, text)
            write_pngs(results, self.path)
        return page

    def clear_work(self) -> None:
        """Remove what only a resumed race would need."""
        shutil.rmtree(self.work, ignore_errors=True)
