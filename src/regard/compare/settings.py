"""What a race is run with: validated once, written beside the results, and compared when a race is resumed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from regard.compare.mechanisms import choose
from regard.compare.race_tasks import TASKS, TEXT
from regard.errors import UserError
from regard.wording import shown

MAX_JOBS_BY_DEFAULT = 4
DEFAULTS = {name: task.defaults for name, task in TASKS.items()}
SHARED_DEFAULTS = {"seeds": 1, "dim": 64, "num_layers": 2, "num_heads": 4}
MAX_PATCHES_PER_SIDE = 8
MIN_PATCH_SIZE = 2

_OPTIONS = {
    "lengths": "--lengths",
    "steps": "--steps",
    "seeds": "--seeds",
    "train_length": "--train-length",
    "batch": "--batch",
    "dim": "--dim",
    "num_layers": "--layers",
    "num_heads": "--heads",
    "image_size": "--image-size",
    "time_limit_s": "--time-limit",
    "imports": "--import",
}
_FREE_ON_RESUME = ("jobs", "time_limit_s")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that decides a race.

    Args:
        task: name of the task.
        data: absolute path of the user's data; None = built-in.
        mechanisms: names of the contestants.
        lengths: numbers of tokens at which cost and decoding are measured, ascending.
        steps: training steps per seed.
        seeds: training runs per mechanism, with seeds 0, 1, ...
        train_length: bytes of a training window (text), or time steps that are read, and that are forecast (series).
        batch: windows, or images, per step.
        dim: width of the host network.
        num_layers: its layers (in the residual host, blocks per stage).
        num_heads: heads of the sequence mixers.
        image_size: pixels per side to which images are resized; None = 32, or 8 for the built-in digits.
        device: "cpu" or "cuda".
        imports: a module or file that registers mechanisms of its own; None = none.
        jobs: mechanisms that train at the same time.
        time_limit_s: seconds of work after which a mechanism is given up; None = no limit.

    Raises:
        UserError: a value that makes no sense; the message names the option.
    """

    task: str
    data: str | None = None
    mechanisms: tuple[str, ...]
    lengths: tuple[int, ...]
    steps: int
    seeds: int
    train_length: int
    batch: int
    dim: int
    num_layers: int
    num_heads: int
    image_size: int | None = None
    device: str = "cpu"
    imports: str | None = None
    jobs: int = 1
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "seeds", "batch", "dim", "num_layers", "num_heads", "jobs"):
            if getattr(self, name) < 1:
                raise UserError(f"{_OPTIONS.get(name, '--' + name)} must be at least 1, got {getattr(self, name)}")
        if self.train_length < 2:
            raise UserError(f"--train-length must be at least 2, got {self.train_length}")
        if not self.lengths or min(self.lengths) < 1:
            raise UserError(f"--lengths must be positive whole numbers, got {','.join(map(str, self.lengths))}")
        if self.dim % (2 * self.num_heads):
            raise UserError(
                f"--dim must be a multiple of twice --heads (a rotary embedding turns pairs), "
                f"got --dim {self.dim} and --heads {self.num_heads}"
            )
        unit = MAX_PATCHES_PER_SIDE
        if self.image_size is not None and (self.image_size < 1 or self.image_size % unit):
            raise UserError(f"--image-size must be a positive multiple of {unit}, got {self.image_size}")
        if self.time_limit_s is not None and self.time_limit_s <= 0:
            raise UserError(f"--time-limit must be positive, got {self.time_limit_s / 60:g} minutes")

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Settings:
        """The settings of an earlier race.

        Raises:
            UserError: they were written by another version.
        """
        known = {item.name for item in fields(cls)}
        if set(stored) != known:
            odd = sorted(set(stored) ^ known)
            raise UserError(f"the settings of that race are not this version's: {', '.join(map(shown, odd))}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
        }
        return cls(**values)

    def differences(self, other: Settings) -> list[str]:
        """What stands in the way of resuming a race that has the settings `other`, one text per setting."""
        found = []
        for item in fields(self):
            ours, theirs = getattr(self, item.name), getattr(other, item.name)
            if item.name not in _FREE_ON_RESUME and ours != theirs:
                found.append(f"{item.name} {_in_words(theirs)} there, {_in_words(ours)} now")
        return found

    def command_line(self) -> str:
        """The command that runs this race, without options that have their default."""
        words = ["regard", "compare", self.task]
        if self.data is not None:
            words += ["--data", self.data]
        words += ["--mechanisms", ",".join(self.mechanisms)]
        defaults = {**SHARED_DEFAULTS, **DEFAULTS[self.task], "time_limit_s": None, "imports": None, "image_size": None}
        for name, option in _OPTIONS.items():
            value = getattr(self, name)
            if value == defaults[name] or name in TASKS[self.task].without:
                continue
            words += [option, f"{value / 60:g}" if name == "time_limit_s" else _in_words(value)]
        if self.device != "cpu":
            words += ["--device", self.device]
        return shown(shlex.join(words), limit=2000)


def _in_words(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else shown(str(value))


def parse_lengths(text: str) -> tuple[int, ...]:
    """Lengths from the command line, ascending and each once.

    Raises:
        UserError: not positive whole numbers separated by commas.
    """
    try:
        lengths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        lengths = [0]
    if lengths[0] < 1:
        raise UserError(f"--lengths must be positive whole numbers separated by commas, got {shown(text)!r}")
    return tuple(lengths)


def make_settings(given: Mapping[str, Any], *, earlier: Settings | None = None) -> Settings:
    """Settings from what the user gave; what was left out is the default, or as in the race that is resumed.

    Args:
        given: values by name as on the command line (`mechanisms` and `lengths` are texts); None = left out.
        earlier: the settings of the race that is resumed.

    Raises:
        UserError: a value that makes no sense.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if "lengths" in chosen:
        chosen["lengths"] = parse_lengths(chosen["lengths"])
    if "data" in chosen:
        chosen["data"] = os.path.abspath(chosen["data"])
    if str(chosen.get("imports", "")).endswith(".py"):
        chosen["imports"] = os.path.abspath(chosen["imports"])
    task = chosen.get("task", earlier.task if earlier else TEXT.name)
    if "mechanisms" in chosen:
        chosen["mechanisms"] = choose(task, chosen["mechanisms"])
    if earlier is not None:
        return replace(earlier, **chosen)
    chosen.setdefault("mechanisms", choose(task, "all"))
    chosen.setdefault("jobs", default_jobs(chosen.get("device", "cpu")))
    return Settings(**{**SHARED_DEFAULTS, **DEFAULTS[task], **chosen, "task": task})


def default_jobs(device: str) -> int:
    """Mechanisms that train at the same time: one per core up to 4; one on a GPU, whose memory they would share."""
    return 1 if device != "cpu" else min(cores(), MAX_JOBS_BY_DEFAULT)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_per_job(settings: Settings) -> int:
    """CPU threads of each mechanism while it trains."""
    return max(1, cores() // min(settings.jobs, len(settings.mechanisms)))


def default_out(task: str, stamp: str) -> Path:
    """Where a race goes when the user names no folder.

    Args:
        task: name of the task.
        stamp: date and time.
    """
    return Path("runs") / f"compare-{task}-{stamp}"
