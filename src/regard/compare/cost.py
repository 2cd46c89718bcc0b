"""The cost of a mechanism alone: forward time against the yardstick's, and peak memory, over lengths.

Every time alternates with the softmax yardstick's at the same length in the same process, and rows of a race are
compared by the ratio. A length is skipped, with a note, where its memory would not fit or it would take too long.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regard.compare.mechanisms import YARDSTICK, is_causal, make_feature_mixer
from regard.compare.settings import Settings
from regard.layers.mixer_by_name import mixer_by_name
from regard.measure import MeasurementError, available_memory_bytes, growth_exponent, peak_bytes, race
from regard.registry import entry_of
from regard.wording import bytes_in_words, shown

SECONDS_PER_LENGTH = 0.8
MIN_ROUNDS, MAX_ROUNDS = 3, 15
LONGEST_CALL_S = 30.0
SQUARE_COPIES = 4
"""Copies of a (heads, n, n) float32 map that a mechanism of quadratic memory is expected to hold at once."""
MEMORY_SHARE = 0.6
FLOAT_BYTES = 4

Tick = Callable[[], None]
Note = Callable[[str], None]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a GPU."""
    words = str(error).lower()
    allocation = "allocate memory" in words or "out of memory" in words
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and allocation)


def build_alone(name: str, settings: Settings, device: torch.device) -> nn.Module:
    """The mechanism by itself, with the width and heads of the race (a feature mixer with `dim` channels)."""
    torch.manual_seed(0)
    if entry_of(name).kind == "feature":
        mixer = make_feature_mixer(name, channels=settings.dim, num_heads=settings.num_heads)
    else:
        causal = is_causal(name, settings.task)
        longest = max(settings.lengths)
        mixer = mixer_by_name(
            name, dim=settings.dim, num_heads=settings.num_heads, causal=causal, max_positions=2 * longest
        )
    return mixer.to(device).eval()


def build_yardstick(settings: Settings, device: torch.device) -> nn.Module:
    """Softmax attention of the same width and heads: causal or not as the task asks for."""
    return build_alone(YARDSTICK, settings, device)


def input_of(name: str, settings: Settings, length: int, device: torch.device) -> Tensor:
    """Random input of `length` tokens; for a feature mixer as many positions, in a rectangle as square as may be."""
    generator = torch.Generator().manual_seed(length)
    if entry_of(name).kind == "feature":
        height = next(side for side in range(math.isqrt(length), 0, -1) if length % side == 0)
        x = torch.randn(1, settings.dim, height, length // height, generator=generator)
    else:
        x = torch.randn(1, length, settings.dim, generator=generator)
    return x.to(device)


def why_too_large(name: str, settings: Settings, length: int, device: torch.device) -> str:
    """Why a length is not tried: the memory that a quadratic mechanism would take; empty where it fits."""
    traits = entry_of(name).traits
    if traits is None or not {"n^2", "n²"} & set(traits.memory.replace("*", " ").split()):
        return ""
    needed = SQUARE_COPIES * FLOAT_BYTES * settings.num_heads * length**2
    free = _free_bytes(device)
    if free is None or needed <= MEMORY_SHARE * free:
        return ""
    return f"about {bytes_in_words(needed)} needed, {bytes_in_words(free)} free"


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return available_memory_bytes()
    except MeasurementError:
        return None


def rounds_within(seconds_per_round: float, budget_s: float) -> int:
    """How many rounds fit into a time, within bounds."""
    return max(MIN_ROUNDS, min(MAX_ROUNDS, int(budget_s / max(seconds_per_round, 1e-9))))


def seconds_of(function: Callable[[], object]) -> float:
    """One call, timed roughly, to plan with."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


@torch.no_grad()
def measure_cost(name: str, settings: Settings, device: torch.device, tick: Tick, note: Note) -> dict[str, Any]:
    """Forward time, the yardstick's, their ratio and peak memory at every length, and the fitted exponents.

    Args:
        name: the mechanism.
        settings: of the race.
        device: where it runs.
        tick: called between measurements; may raise to stop.
        note: takes what was skipped, and why.
    """
    mixer, yardstick = build_alone(name, settings, device), build_yardstick(settings, device)
    columns: dict[str, list[float | None]] = {key: [] for key in ("forward_s", "yardstick_s", "ratio", "peak_bytes")}
    stopped = ""
    previous: tuple[int, float] | None = None
    for length in settings.lengths:
        tick()
        stopped = stopped or _too_slow(previous, length)
        why = stopped or why_too_large(name, settings, length, device)
        point = None
        if not why:
            point, why = _at_length(mixer, yardstick, name, settings, length, device)
        if why:
            note(f"cost at {length:,} tokens not measured: {why}")
        if point is not None:
            previous = (length, point["forward_s"])
        for key, column in columns.items():
            column.append(point[key] if point is not None else None)
    return {
        "lengths": list(settings.lengths),
        **columns,
        "time_exponent": fitted_exponent(settings.lengths, columns["forward_s"]),
        "memory_exponent": fitted_exponent(settings.lengths, columns["peak_bytes"]),
    }


def _too_slow(previous: tuple[int, float] | None, length: int) -> str:
    """Whether quadratic growth from the last measured length would pass the limit for one call."""
    if previous is None:
        return ""
    expected = previous[1] * (length / previous[0]) ** 2
    return f"about {expected:.0f} s for one call expected" if expected > LONGEST_CALL_S else ""


def _at_length(
    mixer: nn.Module, yardstick: nn.Module, name: str, settings: Settings, length: int, device: torch.device
) -> tuple[dict[str, Any] | None, str]:
    x = input_of(name, settings, length, device)
    tokens = input_of(YARDSTICK, settings, length, device)
    try:
        once = seconds_of(lambda: mixer(x)) + seconds_of(lambda: yardstick(tokens))
        peak = _peak(lambda: mixer(x), device)
        rounds = rounds_within(once, SECONDS_PER_LENGTH)
        timed = race({"mixer": lambda: mixer(x), "yardstick": lambda: yardstick(tokens)}, rounds=rounds, warmup=1)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, "out of memory"
    except ValueError as error:
        return None, shown(str(error))
    median_s = timed.median_s
    return {
        "forward_s": median_s["mixer"],
        "yardstick_s": median_s["yardstick"],
        "ratio": timed.ratio("mixer", "yardstick"),
        "peak_bytes": peak,
    }, ""


def _peak(function: Callable[[], object], device: torch.device) -> int | None:
    """Peak memory of a call; None where the system cannot tell, or the call needed no new page."""
    try:
        return peak_bytes(function, device=device) or None
    except MeasurementError:
        return None


def fitted_exponent(lengths: Sequence[int], values: Sequence[float | None]) -> float | None:
    """The power with which values grow over the longer half of the measured lengths (at least three of them).

    At short lengths fixed overhead hides the growth. None with fewer than two measured lengths.
    """
    pairs = [(length, value) for length, value in zip(lengths, values, strict=True) if value]
    if len(pairs) < 2:
        return None
    longer = pairs[-max(3, math.ceil(len(pairs) / 2)) :]
    return round(growth_exponent([length for length, _ in longer], [value for _, value in longer]), 3)
