"""Reading the results of `regard compare`: whatever is missing, not finite or of another type becomes None.

The race writes its results as they come, so a row may lack anything after its status; nothing here invents a figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regard.report.units import clean, finite
from regard.report.wording import task_words

SCHEMA = 1
Column = tuple[float | None, ...]
Matrix = tuple[Column, ...]


@dataclass(frozen=True)
class Quality:
    """How well a mechanism did, such as in bits per byte (lower is better) or accuracy (higher is better)."""

    metric: str
    lower_is_better: bool
    mean: float | None
    spread: float | None
    per_seed: Column


@dataclass(frozen=True)
class Extrapolation:
    """Quality at a multiple of the training length."""

    factor: float
    length: float | None
    mean: float
    spread: float | None


@dataclass(frozen=True)
class Curve:
    """One seed's learning curve: pairs of step and value, non-finite values left out."""

    seed: str
    train: tuple[tuple[float, float], ...]
    validation: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Cost:
    """Forward time and peak memory against length; every column is as long as `lengths`."""

    lengths: tuple[float, ...]
    forward_s: Column
    ratio: Column
    peak_bytes: Column
    time_exponent: float | None
    memory_exponent: float | None

    def longest_ratio(self) -> tuple[float, float] | None:
        """Return the longest length with a ratio to the yardstick, and that ratio; None where there is none."""
        pairs = [(length, value) for length, value in zip(self.lengths, self.ratio, strict=True) if value is not None]
        return max(pairs, default=None)


@dataclass(frozen=True)
class Decode:
    """Time per token and state size against position; every column is as long as `positions`."""

    positions: tuple[float, ...]
    s_per_token: Column
    ratio: Column
    state_bytes: Column

    def at_longest(self) -> tuple[float, float | None, float | None] | None:
        """Return the longest position with its ratio and state bytes; None where nothing was measured."""
        triples = [t for t in zip(self.positions, self.ratio, self.state_bytes, strict=True) if t[1:] != (None, None)]
        return max(triples, key=lambda triple: triple[0], default=None)


@dataclass(frozen=True)
class Inference:
    """Attention replaced in a trained model, by length of the prompt; every column is as long as `lengths`."""

    lengths: tuple[float, ...]
    perplexity: Column
    excess: Column
    needle: Column
    mass: Column


@dataclass(frozen=True)
class AttentionMap:
    """A map per head (queries by keys) with one label per token."""

    heads: tuple[Matrix, ...]
    labels: tuple[str, ...]
    signed: bool


@dataclass(frozen=True)
class Row:
    """One mechanism's results; whatever was not measured is None or empty."""

    name: str
    title: str
    system: str
    kind: str
    status: str
    why: str
    rank: int | None
    pareto: bool
    params: float | None
    mixer_params: float | None
    budget_deviation: float | None
    macs: float | None
    quality: Quality | None
    extrapolation: tuple[Extrapolation, ...]
    tokens_per_s: float | None
    step_ratio: float | None
    curves: tuple[Curve, ...]
    cost: Cost | None
    decode: Decode | None
    decode_why: str
    map: AttentionMap | None
    map_why: str
    inference: Inference | None = None

    @property
    def ok(self) -> bool:
        """Whether the mechanism went through the whole race."""
        return self.status == "ok"


@dataclass(frozen=True)
class Recommendation:
    """A question a user asks, the mechanism that answers it, and why."""

    question: str
    name: str
    sentence: str


@dataclass(frozen=True)
class Results:
    """A whole race, rows in their ranked order (unranked after ranked, failed last)."""

    version: str
    task: str
    created: str
    finished: bool
    command: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    data: dict[str, Any]
    yardstick: str
    baselines: dict[str, float]
    rows: tuple[Row, ...]
    recommendation: tuple[Recommendation, ...]

    @property
    def metric(self) -> str:
        """The quality's name as the results give it."""
        for row in self.rows:
            if row.quality is not None:
                return row.quality.metric
        return task_words(self.task).metric

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller quality figure is the better one."""
        for row in self.rows:
            if row.quality is not None:
                return row.quality.lower_is_better
        return self.metric != "accuracy"


def read(results: Mapping[str, Any]) -> Results:
    """Return the results of a race as typed records.

    Raises:
        ValueError: the schema is not the one that this report reads, or `rows` is not a list.
    """
    if results.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"the results have schema {results['schema']!r}, and this report reads schema {SCHEMA}")
    rows = results.get("rows", [])
    if not isinstance(rows, list | tuple):
        raise ValueError(f"the rows of the results must be a list, got {type(rows).__name__}")
    order = {"ok": 0, "unfinished": 1}
    read_rows = [_row(row) for row in rows if isinstance(row, Mapping)]
    read_rows.sort(key=lambda row: (order.get(row.status, 2), row.rank is None, row.rank or 0))
    return Results(
        version=clean(results.get("regard")),
        task=clean(results.get("task")) or "race",
        created=clean(results.get("created")),
        finished=results.get("finished", True) is not False,
        command=clean(results.get("command")),
        settings=_mapping(results.get("settings")),
        machine=_mapping(results.get("machine")),
        data=_mapping(results.get("data")),
        yardstick=clean(results.get("yardstick")),
        baselines={
            clean(key): number
            for key, value in _mapping(results.get("baselines")).items()
            if (number := finite(value)) is not None
        },
        rows=tuple(read_rows),
        recommendation=tuple(
            Recommendation(clean(item.get("question")), clean(item.get("name")), clean(item.get("sentence")))
            for item in _sequence(results.get("recommendation"))
            if isinstance(item, Mapping)
        ),
    )


def _mapping(value: object) -> dict[str, Any]:
    return {clean(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}


def _sequence(value: object) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else ()


def _column(value: object, length: int) -> Column:
    numbers = [finite(item) for item in _sequence(value)][:length]
    return tuple(numbers + [None] * (length - len(numbers)))


def _row(row: Mapping[str, Any]) -> Row:
    name = clean(row.get("name")) or "unnamed"
    training = _mapping(row.get("training"))
    rank = finite(row.get("rank"))
    macs = finite(row.get("macs_per_token"))
    return Row(
        name=name,
        title=clean(row.get("title")) or name,
        system=clean(row.get("system")),
        kind=clean(row.get("kind")),
        status=clean(row.get("status")) or "ok",
        why=clean(row.get("why")),
        rank=None if rank is None else int(rank),
        pareto=row.get("pareto") is True,
        params=finite(row.get("params")),
        mixer_params=finite(row.get("mixer_params")),
        budget_deviation=finite(row.get("budget_deviation")),
        macs=finite(row.get("macs_per_image")) if macs is None else macs,
        quality=_quality(row.get("quality")),
        extrapolation=_extrapolation(row.get("extrapolation")),
        tokens_per_s=finite(training.get("tokens_per_s")),
        step_ratio=finite(training.get("ratio")),
        curves=tuple(_curve(curve) for curve in _sequence(row.get("curves")) if isinstance(curve, Mapping)),
        cost=_cost(row.get("cost")),
        decode=_decode(row.get("decode")),
        decode_why=clean(row.get("decode_why")),
        map=_map(row.get("map")),
        map_why=clean(row.get("map_why")),
        inference=_inference(row.get("inference")),
    )


def _quality(value: object) -> Quality | None:
    if not isinstance(value, Mapping):
        return None
    per_seed = _sequence(value.get("per_seed"))
    return Quality(
        metric=clean(value.get("metric")) or "quality",
        lower_is_better=value.get("better") != "higher",
        mean=finite(value.get("mean")),
        spread=finite(value.get("spread")),
        per_seed=_column(per_seed, len(per_seed)),
    )


def _extrapolation(value: object) -> tuple[Extrapolation, ...]:
    points = []
    for item in _sequence(value):
        if not isinstance(item, Mapping):
            continue
        factor, mean = finite(item.get("factor")), finite(item.get("mean"))
        if factor is not None and factor > 0 and mean is not None:
            points.append(Extrapolation(factor, finite(item.get("length")), mean, finite(item.get("spread"))))
    return tuple(sorted(points, key=lambda point: point.factor))


def _curve(value: Mapping[str, Any]) -> Curve:
    def pairs(steps: object, values: object) -> tuple[tuple[float, float], ...]:
        numbers = ((finite(x), finite(y)) for x, y in zip(_sequence(steps), _sequence(values), strict=False))
        return tuple((x, y) for x, y in numbers if x is not None and y is not None)

    return Curve(
        seed=clean(value.get("seed")),
        train=pairs(value.get("steps"), value.get("train")),
        validation=pairs(value.get("validation_steps"), value.get("validation")),
    )


def _axis(value: object) -> tuple[float, ...] | None:
    """Return the lengths or positions if every one is a positive number, else None."""
    numbers = [finite(item) for item in _sequence(value)]
    positive = tuple(number for number in numbers if number is not None and number > 0)
    return positive if positive and len(positive) == len(numbers) else None


def _cost(value: object) -> Cost | None:
    if not isinstance(value, Mapping) or (lengths := _axis(value.get("lengths"))) is None:
        return None
    return Cost(
        lengths=lengths,
        forward_s=_column(value.get("forward_s"), len(lengths)),
        ratio=_column(value.get("ratio"), len(lengths)),
        peak_bytes=_column(value.get("peak_bytes"), len(lengths)),
        time_exponent=finite(value.get("time_exponent")),
        memory_exponent=finite(value.get("memory_exponent")),
    )


def _decode(value: object) -> Decode | None:
    if not isinstance(value, Mapping) or (positions := _axis(value.get("positions"))) is None:
        return None
    return Decode(
        positions=positions,
        s_per_token=_column(value.get("s_per_token"), len(positions)),
        ratio=_column(value.get("ratio"), len(positions)),
        state_bytes=_column(value.get("state_bytes"), len(positions)),
    )


def _inference(value: object) -> Inference | None:
    if not isinstance(value, Mapping) or (lengths := _axis(value.get("lengths"))) is None:
        return None
    columns = (_column(value.get(name), len(lengths)) for name in ("perplexity", "excess", "needle", "mass"))
    return Inference(lengths, *columns)


def _map(value: object) -> AttentionMap | None:
    if not isinstance(value, Mapping):
        return None
    heads = []
    for head in _sequence(value.get("heads")):
        rows = [_sequence(row) for row in _sequence(head)]
        width = max((len(row) for row in rows), default=0)
        if width:
            heads.append(tuple(_column(row, width) for row in rows))
    labels = tuple(clean(label, lines=True) for label in _sequence(value.get("labels")))
    return AttentionMap(tuple(heads), labels, value.get("signed") is True) if heads else None
