"""The stages of one mechanism's race, in their order, each skipped where its result is there already."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from regard.compare.attention import attention_map, why_no_map
from regard.compare.budget import build_host, fit
from regard.compare.cost import measure_cost
from regard.compare.decoding import measure_decode, why_no_decoding
from regard.compare.hosts import Host
from regard.compare.job import Job, Part, read_description
from regard.compare.mechanisms import YARDSTICK, import_outsider
from regard.compare.problems import make_problem
from regard.compare.speed import count_macs, measure_speed
from regard.compare.training import Curve, DivergedError, Trainer, to_bytes
from regard.files import write_atomically
from regard.registry import entry_of

PROGRESS_EVERY_S = 0.25
SHOWN_SEED = 0
"""The run whose weights give the attention map."""


class Channel(Protocol):
    """How stages talk to the race (see `regard.compare.child.Wire`)."""

    def send(self, event: str, **details: Any) -> None:
        """Tell the race something."""

    def tick(self) -> None:
        """Raise if the work must stop."""

    def wait_for_turn(self) -> None:
        """Block until timing may begin."""


class Contestant:
    """Takes one mechanism through its race.

    Args:
        job: what to do.
        part: the results so far; written after every stage.
        wire: the channel to the race.
    """

    def __init__(self, job: Job, part: Part, wire: Channel) -> None:
        self.job = job
        self.part = part
        self.wire = wire
        self.settings = job.settings
        self.folder = Path(job.folder)
        self.device = torch.device(self.settings.device)
        torch.set_num_threads(job.threads)
        if self.settings.imports is not None:
            import_outsider(self.settings.imports)
        self.traits = entry_of(job.name).traits
        described = read_description(Path(job.data))
        if described is None:
            raise FileNotFoundError(f"no prepared data in {job.data}")
        self.problem = make_problem(self.settings, described, Path(job.data), self.device)
        self.shape = self.problem.shape

    def run(self) -> None:
        """All stages; what is in the part already is not done again."""
        self._size()
        for seed in range(self.settings.seeds):
            if seed not in self.part.runs:
                self._train(seed)
        self._map()
        if not self.part.done(self.settings):
            self.wire.send("ready")
            self.wire.wait_for_turn()
            torch.set_num_threads(1)
            self._measure("speed", self._speed)
            self._measure("cost", lambda: measure_cost(self.job.name, self.settings, self.device, *self._hooks()))
            self._measure("decode", self._decode)

    def _hooks(self) -> tuple[Callable[[], None], Callable[[str], None]]:
        return self.wire.tick, self.part.note

    @contextmanager
    def _stage(self, name: str, **details: Any) -> Iterator[None]:
        """Announce a stage, and save what it adds to the part."""
        self.wire.tick()
        self.wire.send("stage", stage=name, **details)
        yield
        self.part.write()
        self.wire.send("saved", stage=name)

    # -- training

    def _new_host(self, seed: int, *, name: str | None = None) -> Host:
        torch.manual_seed(seed)
        name = name or self.job.name
        knob = self.part.measured["size"]["knob"] if name == self.job.name else self._yardstick_knob()
        return build_host(name, self.settings, self.shape, knob).to(self.device)

    def _yardstick_knob(self) -> int:
        return fit(YARDSTICK, self.settings, self.shape).knob

    def _size(self) -> None:
        if "size" in self.part.measured:
            return
        with self._stage("size"):
            found = fit(self.job.name, self.settings, self.shape)
            size = {
                "knob": found.knob,
                "params": found.params,
                "mixer_params": found.mixer_params,
                "budget": found.budget,
                "budget_deviation": round(found.deviation, 6),
            }
            host = build_host(self.job.name, self.settings, self.shape, found.knob).to(self.device).eval()
            self.part.measured["size"] = {**size, "macs": count_macs(host, self.problem)}

    def _train(self, seed: int) -> None:
        with self._stage("train", seed=seed):
            host = self._new_host(seed).train()
            trainer = Trainer(host, self.problem, seed)
            steps, tell = self.settings.steps, _throttled(self.wire.send)
            try:
                trainer.run(
                    self._checkpoint,
                    self.wire.tick,
                    lambda step, loss: tell(seed=seed, step=step, steps=steps, loss=loss),
                )
            except DivergedError:
                self.part.measured["broken_curve"] = _curve_of(seed, trainer.curve)
                self.part.write()
                raise
            self.wire.send("stage", stage="evaluate", seed=seed)
            host.eval()
            run = self.problem.quality(host, *self._hooks())
            if not math.isfinite(run["quality"]):
                raise DivergedError(f"validation quality of the trained network is {run['quality']}")
            if seed == SHOWN_SEED:
                write_atomically(self._weights, to_bytes(host.state_dict()))
            self.part.runs[seed] = {**run, "curve": _curve_of(seed, trainer.curve)}
        self._checkpoint.unlink(missing_ok=True)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def _weights(self) -> Path:
        return self.folder / "weights.pt"

    def _trained_host(self) -> Host:
        host = self._new_host(SHOWN_SEED)
        host.load_state_dict(torch.load(self._weights, map_location=self.device, weights_only=True))
        return host.eval()

    def _map(self) -> None:
        if "map" in self.part.measured:
            return
        with self._stage("map"):
            why = why_no_map(self.traits)
            shown = None
            if not why and self.traits is not None:
                shown = attention_map(self._trained_host(), self.problem, self.traits)
            self.part.measured["map"] = {"map": shown, "why": why}

    # -- timing, alone on the machine

    def _measure(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        if name in self.part.measured:
            return
        with self._stage(name):
            begin = time.perf_counter()
            self.part.measured[name] = measure()
            self.part.measured[name]["took_s"] = round(time.perf_counter() - begin, 3)

    def _speed(self) -> dict[str, Any]:
        yardstick = self._new_host(SHOWN_SEED, name=YARDSTICK)
        return measure_speed(self._trained_host(), yardstick, self.problem, self.wire.tick)

    def _decode(self) -> dict[str, Any]:
        why = why_no_decoding(self.job.name, self.settings.task)
        found = None if why else measure_decode(self.job.name, self.settings, self.device, *self._hooks())
        return {"decode": found, "why": why}


def _throttled(send: Callable[..., None]) -> Callable[..., None]:
    """Send progress, but only once in a while."""
    last = 0.0

    def maybe(**details: Any) -> None:
        nonlocal last
        if time.monotonic() - last > PROGRESS_EVERY_S:
            last = time.monotonic()
            send("step", **details)

    return maybe


def _curve_of(seed: int, curve: Curve) -> dict[str, Any]:
    return {"seed": seed, **vars(curve)}
