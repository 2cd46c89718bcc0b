"""Decoding: time per token and bytes of state against position, alternating with softmax's preallocated cache."""

from __future__ import annotations

from typing import Any

import torch

from regard.compare.cost import (
    Note,
    Tick,
    build_alone,
    build_yardstick,
    is_out_of_memory,
    rounds_within,
    seconds_of,
)
from regard.compare.race_tasks import TASKS
from regard.compare.settings import Settings
from regard.measure import race
from regard.metadata import No
from regard.registry import entry_of
from regard.wording import shown

PREFILL_CHUNK = 512
TOKENS_PER_ROUND = 4
WARMUP_ROUNDS = 2
SECONDS_PER_POSITION = 0.3
LONGEST_PREFILL_S = 30.0


def why_no_decoding(name: str, task: str) -> str:
    """Why a mechanism is not decoded; empty where it is."""
    entry = entry_of(name)
    if TASKS[task].no_decoding:
        return TASKS[task].no_decoding
    if entry.traits is not None and isinstance(entry.traits.decodes, No):
        return entry.traits.decodes.reason
    return ""


class _Decoder:
    """A mixer that has read `position` tokens and goes on a few tokens at a time.

    Args:
        mixer: the mechanism.
        position: tokens that it reads first, in chunks.
        room: tokens that will follow.
        settings: of the race.
        device: where it runs.
    """

    def __init__(self, mixer: Any, position: int, room: int, settings: Settings, device: torch.device) -> None:
        self.mixer = mixer
        self.token = torch.randn(1, 1, settings.dim, generator=torch.Generator().manual_seed(1)).to(device)
        generator = torch.Generator().manual_seed(position)
        self.state = mixer.init_state(1, max_len=position + room)
        unused = self.state.nbytes - mixer.init_state(1, max_len=position).nbytes
        for start in range(0, position, PREFILL_CHUNK):
            tokens = min(PREFILL_CHUNK, position - start)
            chunk = torch.randn(1, tokens, settings.dim, generator=generator).to(device)
            _, self.state = mixer.step(chunk, self.state)
        # what a preallocated cache holds ready for the tokens of the measurement is no part of the state here
        self.state_bytes = self.state.nbytes - unused

    def __call__(self) -> None:
        """Decode the tokens of one round."""
        for _ in range(TOKENS_PER_ROUND):
            _, self.state = self.mixer.step(self.token, self.state)


@torch.no_grad()
def measure_decode(name: str, settings: Settings, device: torch.device, tick: Tick, note: Note) -> dict[str, Any]:
    """Time per token, the yardstick's, their ratio and the state's bytes after each of the race's lengths.

    Args:
        name: the mechanism; it decodes.
        settings: of the race.
        device: where it runs.
        tick: called between measurements; may raise to stop.
        note: takes what was skipped, and why.
    """
    mixer, yardstick = build_alone(name, settings, device), build_yardstick(settings, device)
    found: dict[str, list[float]] = {
        key: [] for key in ("positions", "s_per_token", "yardstick_s", "ratio", "state_bytes")
    }
    for position in settings.lengths:
        tick()
        try:
            point, prefill_s = _at_position(mixer, yardstick, position, settings, device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            note(f"decoding at {position:,} tokens not measured: out of memory")
            break
        except ValueError as error:
            note(f"decoding at {position:,} tokens not measured: {shown(str(error))}")
            break
        for key, column in found.items():
            column.append(point[key])
        if prefill_s > LONGEST_PREFILL_S:
            note(f"decoding beyond {position:,} tokens not measured: reading them took {prefill_s:.0f} s")
            break
    return found


def _at_position(
    mixer: Any, yardstick: Any, position: int, settings: Settings, device: torch.device
) -> tuple[dict[str, float], float]:
    from regard.compare.cost import MAX_ROUNDS

    room = TOKENS_PER_ROUND * (MAX_ROUNDS + WARMUP_ROUNDS + 1)
    decoders: list[_Decoder] = []
    prefill_s = seconds_of(lambda: decoders.append(_Decoder(mixer, position, room, settings, device)))
    decoders.append(_Decoder(yardstick, position, room, settings, device))
    once = sum(seconds_of(decoder) for decoder in decoders)
    rounds = rounds_within(once, SECONDS_PER_POSITION)
    timed = race({"mixer": decoders[0], "yardstick": decoders[1]}, rounds=rounds, warmup=WARMUP_ROUNDS)
    point = {
        "positions": position,
        "s_per_token": timed.median_s["mixer"] / TOKENS_PER_ROUND,
        "yardstick_s": timed.median_s["yardstick"] / TOKENS_PER_ROUND,
        "ratio": timed.ratio("mixer", "yardstick"),
        "state_bytes": decoders[0].state_bytes,
    }
    return point, prefill_s
