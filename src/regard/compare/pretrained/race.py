"""The race inside a trained model: every contestant reads and decodes the same texts beside the model's own attention.

One process, one contestant after the other; each takes turns with the model's own attention over the same tokens, and
rows compare by the ratios. Results are written after every contestant, so that an interrupted race goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from regard.compare.cost import fitted_exponent, is_out_of_memory
from regard.compare.folder import RunFolder, writing
from regard.compare.pretrained.contestants import Contestant, contestants
from regard.compare.pretrained.follow import Followed, Side, follow, share_found, warm_up
from regard.compare.pretrained.mass import STEPS, mean_mass
from regard.compare.pretrained.passages import DEPTHS, hide_numbers, read_passages
from regard.compare.pretrained.results import as_csv, assemble, perplexity, quality
from regard.compare.pretrained.settings import YARDSTICK, PretrainedSettings
from regard.files import write_atomically
from regard.integrations.transformers.pretrained import Pretrained
from regard.integrations.transformers.recording import queries_and_keys
from regard.wording import count_in_words, shown

LONGEST_MASS = 8192
"""Tokens up to which recovered mass is measured: every mechanism reads the recorded prompt again for it."""


class PretrainedRace:
    """Runs a race in its folder.

    Args:
        settings: of the race.
        found: the model and its tokenizer.
        folder: where results are written.
        console: where progress is shown.
        earlier: the results of an interrupted race that is resumed; None = a new one.
    """

    def __init__(
        self,
        settings: PretrainedSettings,
        found: Pretrained,
        folder: RunFolder,
        *,
        console: Console,
        earlier: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.found, self.folder, self.console = settings, found, folder, console
        config = found.model.config.get_text_config()
        self.contestants = contestants(settings.mechanisms, settings.budgets, num_layers=config.num_hidden_layers)
        tokens = max(settings.lengths) + max(settings.scored, STEPS)
        self.passages = read_passages(settings.data, found.tokenizer, tokens=tokens, count=settings.passages)
        self.ids = self.passages.ids.to(settings.device)
        self.created = earlier["created"] if earlier else datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        kept = [row for row in earlier["rows"] if row["status"] == "ok"] if earlier else []
        self._rows = {row["name"]: {**row, "rank": None, "pareto": False} for row in kept}
        self._recorded: dict[int, Any] = {}

    def run(self) -> dict[str, Any]:
        """Measure what is not there yet; returns the results.

        Raises:
            KeyboardInterrupt: the user stopped it; what was measured is written.
        """
        with writing(self.folder.path):
            write_atomically(self.folder.work / "data.json", json.dumps(self._described()))
        own = next(each for each in self.contestants if each.mechanism == YARDSTICK)
        warm_up(Side(self.found.model, own), self.ids[0])
        with self._progress() as bar:
            for contestant in self.contestants:
                if contestant.name not in self._rows:
                    self._rows[contestant.name] = self._row(contestant, bar)
                    self._write(done=False)
        self.found.model.set_attn_implementation(YARDSTICK)
        return self._write(done=True)

    # -- one contestant

    def _row(self, contestant: Contestant, bar: _Bar) -> dict[str, Any]:
        bar.name(contestant.name)
        base = {
            "name": contestant.name,
            "title": contestant.title,
            "system": contestant.system,
            "kind": "inference",
            "mechanism": contestant.mechanism,
            "budget": contestant.budget,
            "options": dict(contestant.options),
            "rank": None,
            "pareto": False,
            "extrapolation": [],
            "map": None,
            "map_why": "not drawn for trained models",
            "notes": self._notes(contestant),
        }
        try:
            measured = self._measure(contestant, bar)
        except (ValueError, RuntimeError, MemoryError) as error:
            why = "out of memory" if is_out_of_memory(error) else shown(str(error), 300)
            self.console.print(f"failed: {contestant.name}: {why}", soft_wrap=True)
            return {**base, "status": "failed", "why": why, "final": True}
        last = measured["inference"]["perplexity"][-1]
        self.console.print(f"{contestant.name}: perplexity {last:.3f}", soft_wrap=True)
        return {**base, "status": "ok", "why": "", **measured}

    def _measure(self, contestant: Contestant, bar: _Bar) -> dict[str, Any]:
        model, lengths = self.found.model, self.settings.lengths
        sides = {contestant.name: Side(model, contestant)}
        warm_up(sides[contestant.name], self.ids[0])
        if contestant.mechanism != YARDSTICK:
            sides[YARDSTICK] = Side(model, Contestant(YARDSTICK, YARDSTICK))
        followed, needles, masses = [], [], []
        for length in lengths:
            both = follow(sides, self._ending(), prompt=length, scored=self.settings.scored, on_step=bar.tick)
            followed.append((both[contestant.name], both[YARDSTICK]))
            hidden = hide_numbers(self.ids[0, :length], self.found.tokenizer)
            needles.append(share_found(sides[contestant.name], hidden, on_step=bar.tick))
            masses.append(self._mass(contestant, length))
            bar.end_of_length(length)
        perplexities = [perplexity(ours.loss) for ours, _ in followed]
        inference = {"lengths": list(lengths), "perplexity": perplexities, "needle": needles, "mass": masses}
        return {
            "quality": quality(perplexities),
            "inference": inference,
            "cost": _cost(lengths, followed),
            "decode": _decode(lengths, followed),
        }

    def _ending(self) -> Tensor:
        """The passages, all up to the same end whatever the number of scored tokens."""
        return self.ids[:, : max(self.settings.lengths) + self.settings.scored]

    def _mass(self, contestant: Contestant, length: int) -> float | None:
        """The attention mass recovered; 1 where all keys are seen."""
        if contestant.budget is None:
            return 1.0
        if length > LONGEST_MASS or length <= STEPS:
            return None
        if length not in self._recorded:
            self._recorded = {length: queries_and_keys(self.found.model, self.ids[0, : length + STEPS])}
        return mean_mass(contestant, self.found.model.config.get_text_config(), self._recorded[length])

    def _notes(self, contestant: Contestant) -> list[str]:
        notes = []
        if contestant.options.get("dense_layers"):
            notes.append(f"its first {count_in_words(contestant.options['dense_layers'], 'layer')} attend to all keys")
        if contestant.budget is not None and max(self.settings.lengths) > LONGEST_MASS:
            notes.append(f"recovered mass is measured up to {LONGEST_MASS:,} tokens")
        return notes

    # -- all of them

    def _described(self) -> dict[str, Any]:
        model = self.found.model
        config = model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        notes = []
        if positions is not None and (
            beyond := [n for n in self.settings.lengths if n + self.settings.scored > positions]
        ):
            notes.append(
                f"the model was built for {positions:,} positions: {', '.join(map(str, beyond))} go beyond them"
            )
        if not hide_numbers(self.ids[0, : max(self.settings.lengths)], self.found.tokenizer):
            notes.append("no number is hidden: the prompts are too short")
        return {
            "source": self.passages.source,
            "description": f"{type(model).__name__} of {shown(self.settings.model, 80)} on {self.passages.description}",
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "layers": config.num_hidden_layers,
            "depths_of_hidden_numbers": ", ".join(f"{depth:.0%}" for depth in DEPTHS),
            "notes": notes,
        }

    def _write(self, *, done: bool) -> dict[str, Any]:
        unmeasured = {"status": "unfinished", "why": "not finished yet", "rank": None, "pareto": False}
        rows = [
            self._rows.get(each.name, {"name": each.name, "title": each.title, "system": each.system, **unmeasured})
            for each in self.contestants
        ]
        results = assemble(
            self.settings,
            rows,
            data=self._described(),
            created=self.created,
            done=done,
            threads=torch.get_num_threads(),
        )
        self.folder.write_results(results, as_csv)
        return results

    @contextmanager
    def _progress(self) -> Iterator[_Bar]:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        with Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True) as drawn:
            left = [each for each in self.contestants if each.name not in self._rows]
            yield _Bar(drawn, len(left) * sum(self.settings.lengths))


class _Bar:
    """How far a race is, in tokens of prompts.

    Args:
        drawn: the display.
        total: tokens of all prompts.
    """

    def __init__(self, drawn: Progress, total: int) -> None:
        self._drawn = drawn
        self._task = drawn.add_task("", total=total)

    def name(self, contestant: str) -> None:
        """Another contestant begins."""
        self._drawn.update(self._task, description=contestant)

    def tick(self) -> None:
        """Something was done."""
        self._drawn.refresh()

    def end_of_length(self, length: int) -> None:
        """A contestant has gone through a length."""
        self._drawn.advance(self._task, length)


def _cost(lengths: tuple[int, ...], followed: list[tuple[Followed, Followed]]) -> dict[str, Any]:
    """Prompts' times and memory in the form of a race's forward passes."""
    ours = [median(pair[0].prefill_s) for pair in followed]
    theirs = [median(pair[1].prefill_s) for pair in followed]
    peaks = [pair[0].peak for pair in followed]
    return {
        "lengths": list(lengths),
        "forward_s": ours,
        "yardstick_s": theirs,
        "ratio": [mine / other for mine, other in zip(ours, theirs, strict=True)],
        "peak_bytes": peaks,
        "time_exponent": fitted_exponent(lengths, ours),
        "memory_exponent": fitted_exponent(lengths, peaks),
    }


def _decode(lengths: tuple[int, ...], followed: list[tuple[Followed, Followed]]) -> dict[str, Any]:
    ours = [pair[0].s_per_token for pair in followed]
    theirs = [pair[1].s_per_token for pair in followed]
    return {
        "positions": list(lengths),
        "s_per_token": ours,
        "yardstick_s": theirs,
        "ratio": [mine / other for mine, other in zip(ours, theirs, strict=True)],
        "state_bytes": [pair[0].cache_bytes for pair in followed],
    }
