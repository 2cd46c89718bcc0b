"""Timing, memory and MACs, measured one way everywhere: races in one process, peak memory, growth exponents.

A time is never compared with a time from another process: `race` lets its contestants take turns, so that whatever
the machine does meanwhile falls on all of them, and only ratios are worth quoting.
"""

from __future__ import annotations

import ctypes
import gc
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_PROCESS = Path("/proc/self")
_MEMORY_INFO = Path("/proc/meminfo")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_RESET_PEAK_RSS = "5"


class MeasurementError(RuntimeError):
    """This machine cannot measure what was asked for; the message says what is missing."""


# --------------------------------------------------------------------------------------------------- time


@dataclass(frozen=True)
class Race:
    """The times of all contestants of one race.

    Args:
        seconds: for every contestant its time in each round, in seconds.
    """

    seconds: Mapping[str, tuple[float, ...]]

    @property
    def median_s(self) -> dict[str, float]:
        """The median time of each contestant, in seconds."""
        return {name: median(times) for name, times in self.seconds.items()}

    @property
    def minimum_s(self) -> dict[str, float]:
        """The shortest time of each contestant, in seconds."""
        return {name: min(times) for name, times in self.seconds.items()}

    def ratio(self, numerator: str, denominator: str) -> float:
        """Ratio of median times, `numerator` over `denominator`."""
        return self.median_s[numerator] / self.median_s[denominator]

    def minimum_ratio(self, numerator: str, denominator: str) -> float:
        """Ratio of the shortest times, `numerator` over `denominator`."""
        return self.minimum_s[numerator] / self.minimum_s[denominator]


def race(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Time functions against each other, alternating in this process; the order rotates from round to round.

    The number of threads is the caller's affair (`one_thread`). Garbage collection is off while the
    clock runs. Work on a GPU is waited for.

    Args:
        contestants: functions without arguments, by name.
        rounds: measured calls of each.
        warmup: calls of each before the first that counts.
        clock: returns seconds; given by tests.

    Raises:
        ValueError: no contestant, or no round.
    """
    if not contestants:
        raise ValueError("a race needs at least one contestant, got none")
    if rounds < 1 or warmup < 0:
        raise ValueError(f"a race needs rounds >= 1 and warmup >= 0, got rounds={rounds} and warmup={warmup}")
    names = list(contestants)
    for _ in range(warmup):
        for name in names:
            contestants[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _no_garbage_collection():
        for turn in range(rounds):
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                seconds[name].append(_time_once(contestants[name], clock))
    return Race({name: tuple(times) for name, times in seconds.items()})


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one CPU thread inside: two busy threads on a shared machine measure the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _time_once(function: Callable[[], object], clock: Callable[[], float]) -> float:
    _wait_for_gpu()
    begin = clock()
    result = function()
    _wait_for_gpu()
    elapsed = clock() - begin
    # freed after the clock has stopped: giving memory back is not part of the call
    del result
    return elapsed


def _wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# --------------------------------------------------------------------------------------------------- memory


def peak_bytes(
    function: Callable[[], object], *, device: torch.device | str | int | None = None, warmup: int = 0
) -> int:
    """Peak memory that a call of `function` needs beyond what was held before, its result included.

    On the CPU this is the peak of the process's resident memory (pages, whoever allocates them); on CUDA the
    allocator's peak.

    Args:
        function: called once without arguments, after `warmup` calls that are not measured.
        device: where the memory is; the CPU when None.
        warmup: calls beforehand, to keep one-time costs (libraries loaded, thread pools) out of the figure.

    Raises:
        MeasurementError: the system offers no way to measure it.
    """
    where = torch.device("cpu" if device is None else device)
    for _ in range(warmup):
        function()
    if where.type == "cuda":
        return _peak_bytes_on_cuda(function, where)
    if where.type != "cpu":
        raise MeasurementError(f"peak memory can be measured on cpu and cuda, not on {where.type}")
    return _peak_bytes_on_cpu(function)


def _peak_bytes_on_cuda(function: Callable[[], object], device: torch.device) -> int:
    if not torch.cuda.is_available():
        raise MeasurementError("peak memory on cuda was asked for, but there is no CUDA device")
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = function()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    del result
    return max(0, peak - before)


def _peak_bytes_on_cpu(function: Callable[[], object]) -> int:
    _return_free_memory()
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK_RSS)
    except OSError as error:
        raise MeasurementError(
            f"peak memory on the CPU needs Linux's /proc/self/clear_refs, which cannot be written: {error.strerror}"
        ) from None
    before = _status_bytes("VmRSS")
    result = function()
    peak = _status_bytes("VmHWM")
    del result
    return max(0, peak - before)


def _return_free_memory() -> None:
    """Give freed memory back to the system: what the heap keeps would be reused unseen by the peak."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_bytes(field: str) -> int:
    return _kibibytes_field(_PROCESS / "status", field)


def _kibibytes_field(path: Path, field: str) -> int:
    try:
        text = path.read_text()
    except OSError as error:
        raise MeasurementError(f"cannot read {path}: {error.strerror}") from None
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    if found is None:
        raise MeasurementError(f"{path} has no field {field}")
    return int(found[1]) * 1024


def available_memory_bytes() -> int:
    """Memory that this process could still take without swapping: the system's, or what its control group leaves.

    Raises:
        MeasurementError: not a system with /proc/meminfo.
    """
    return min([_kibibytes_field(_MEMORY_INFO, "MemAvailable"), *_control_group_rooms()])


def _control_group_rooms() -> Iterator[int]:
    """Bytes left under each memory limit that is set for the control groups visible from here."""
    for limit_file, usage_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit = (_CONTROL_GROUPS / limit_file).read_text().strip()
            usage = (_CONTROL_GROUPS / usage_file).read_text().strip()
        except OSError:
            # no such control group here: then it sets no limit
            continue
        if limit.isdigit():
            yield max(0, int(limit) - int(usage))


# --------------------------------------------------------------------------------------------------- arithmetic


def contraction_macs(function: Callable[[], object]) -> float:
    """Multiply-accumulates of all contractions in one eager call, without gradients: half of `FlopCounterMode`'s FLOPs.

    Fused attention counts in full, causal or not, on every device: some PyTorch releases in our range count the GPU
    kernels alone.

    Args:
        function: called once without arguments.
    """
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_FUSED_ATTENTION_ON_CPU) as counter:
        function()
    return counter.get_total_flops() / 2


def _fused_attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    return sdpa_flop_count(query, key, value)


_FUSED_ATTENTION_ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _fused_attention_flops}


# --------------------------------------------------------------------------------------------------- growth


def growth_exponent(lengths: Sequence[float], values: Sequence[float]) -> float:
    """The exponent p of `values ~ lengths ** p`: the least-squares slope in logarithms.

    Args:
        lengths: positive sizes, at least two different ones.
        values: what was measured at each, positive.

    Raises:
        ValueError: different numbers of lengths and values, fewer than two different lengths, or a number that is
            not positive and finite.
    """
    if len(lengths) != len(values):
        raise ValueError(f"there are {len(lengths)} lengths and {len(values)} values: they must be equal in number")
    wrong: list[Any] = [number for number in (*lengths, *values) if not (0 < number < math.inf)]
    if wrong:
        raise ValueError(f"lengths and values must be positive and finite, got {wrong[0]}")
    if len(set(lengths)) < 2:
        raise ValueError(f"an exponent needs at least two different lengths, got {sorted(set(lengths))}")
    xs, ys = [math.log(length) for length in lengths], [math.log(value) for value in values]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - mean_x) ** 2 for x in xs)
