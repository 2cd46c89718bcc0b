"""The ranked table: every figure of the race in one place, sortable, failed rows at the bottom with their reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from regard.report import units
from regard.report.charts import Entry
from regard.report.learning import factor
from regard.report.page import fragment
from regard.report.results import Results, Row
from regard.report.wording import QualityWords, task_words

Figure = tuple[float | None, str]


@dataclass(frozen=True)
class TableColumn:
    """A column of the ranked table.

    Args:
        group: the heading over several columns.
        title: its own heading.
        explained: what the figure is, shown by a pointer and read by a screen reader.
        figure: the value that sorts and the text that is shown.
        best: which end is the good one, to mark the best row; None marks none.
    """

    group: str
    title: str
    explained: str
    figure: Callable[[Row], Figure]
    best: Literal["lower", "higher"] | None = None


@dataclass(frozen=True)
class Cell:
    """One figure of the table."""

    value: float | None
    text: str
    best: bool


def columns(results: Results, words: QualityWords) -> list[TableColumn]:
    """Return the columns that the race has figures for, in their order."""
    found = [
        *_quality_columns(results, words),
        *_inference_columns(results),
        *_speed_columns(results),
        *_decoding_columns(results),
        *_size_columns(results),
    ]
    return [column for column in found if any(column.figure(row)[0] is not None for row in results.rows)]


def _quality_columns(results: Results, words: QualityWords) -> list[TableColumn]:
    better: Literal["lower", "higher"] = "lower" if words.lower_is_better else "higher"

    def quality(row: Row) -> Figure:
        if row.quality is None or row.quality.mean is None:
            return None, units.MISSING
        return row.quality.mean, f"{words.value(row.quality.mean)} {words.spread(row.quality.spread)}".rstrip()

    def beyond(multiple: float) -> Callable[[Row], Figure]:
        def figure(row: Row) -> Figure:
            mean = next((point.mean for point in row.extrapolation if point.factor == multiple), None)
            return mean, words.value(mean)

        return figure

    group = words.name
    what = f"validation {words.name}, {words.direction.lower()}; ± one standard deviation over seeds"
    found = [TableColumn(group, "quality", what, quality, better)]
    for multiple in sorted({point.factor for row in results.rows for point in row.extrapolation} - {1.0}):
        name = f"at {factor(multiple)}"
        found.append(TableColumn(group, name, f"{words.name} {name} the training length", beyond(multiple), better))
    return found


def _inference_columns(results: Results) -> list[TableColumn]:
    def last(part: str) -> Callable[[Row], float | None]:
        return lambda row: getattr(row.inference, part)[-1] if row.inference else None

    def column(part: str, title: str, explained: str, *, signed: bool = False) -> TableColumn:
        value = last(part)
        best: Literal["lower", "higher"] = "lower" if part == "excess" else "higher"

        def figure(row: Row) -> Figure:
            return value(row), units.percent(value(row), signed=signed)

        return TableColumn("after the longest prompt", title, explained, figure, best)

    return [
        column("excess", "against full", "perplexity relative to full attention's; lower is better", signed=True),
        column("needle", "hidden found", "share of the hidden numbers' tokens that are found; higher is better"),
        column("mass", "mass", "share of full attention's mass on the keys attended to; higher is better"),
    ]


def _speed_columns(results: Results) -> list[TableColumn]:
    processed = f"{task_words(results.task).token}s"
    than = f"relative to {units.shorten(results.yardstick)}"
    longest = max((r.cost.longest_ratio() or (0.0, 0.0) for r in results.rows if r.cost), default=(0.0, 0.0))[0]

    def forward(row: Row) -> Figure:
        pair = row.cost.longest_ratio() if row.cost else None
        if pair is None:
            return None, units.MISSING
        return pair[1], units.ratio(pair[1]) + ("" if pair[0] == longest else f" at {units.whole(pair[0])}")

    def time_exponent(row: Row) -> Figure:
        value = row.cost.time_exponent if row.cost else None
        return value, units.plain(value)

    time = task_words(results.task).forward
    group = "forward pass" if task_words(results.task).learns else time
    return [
        TableColumn(
            "training",
            f"{processed}/s",
            f"{processed} per second in training",
            lambda row: (row.tokens_per_s, units.count(row.tokens_per_s)),
            "higher",
        ),
        TableColumn(
            "training",
            "step",
            f"time per training step, {than}; lower is better",
            lambda row: (row.step_ratio, units.ratio(row.step_ratio)),
            "lower",
        ),
        TableColumn(
            group,
            f"at {units.whole(longest)}",
            f"{time} at {units.whole(longest)} tokens, {than}; lower is better",
            forward,
            "lower",
        ),
        TableColumn(group, "exponent", f"fitted power of the length in the {time}: 1 is linear", time_exponent),
    ]


def _decoding_columns(results: Results) -> list[TableColumn]:
    ends = [pair for row in results.rows if row.decode and (pair := row.decode.at_longest())]
    longest = max((pair[0] for pair in ends), default=0.0)
    where = f"at position {units.whole(longest)}"

    def end(row: Row) -> tuple[float, float | None, float | None]:
        return (row.decode.at_longest() if row.decode else None) or (0.0, None, None)

    def at(position: float, text: str) -> str:
        return text if position == longest or text == units.MISSING else f"{text} at {units.whole(position)}"

    def time(row: Row) -> Figure:
        position, value, _ = end(row)
        return value, at(position, units.ratio(value))

    def state(row: Row) -> Figure:
        position, _, value = end(row)
        return value, at(position, units.size(value))

    than = f"relative to {units.shorten(results.yardstick)}"
    group = f"decoding {where}"
    return [
        TableColumn(group, "token", f"time per token {where}, {than}; lower is better", time, "lower"),
        TableColumn(group, "state", f"bytes kept between tokens {where}", state, "lower"),
    ]


def _size_columns(results: Results) -> list[TableColumn]:
    per = task_words(results.task).token
    return [
        TableColumn(
            "size",
            "parameters",
            "parameters of the whole network",
            lambda row: (row.params, units.count(row.params)),
        ),
        TableColumn(
            "size",
            "of budget",
            "parameters relative to the shared budget",
            lambda row: (row.budget_deviation, units.percent(row.budget_deviation, signed=True)),
        ),
        TableColumn(
            "size",
            f"MACs/{per}",
            f"multiply-accumulates per {per}",
            lambda row: (row.macs, units.count(row.macs)),
        ),
    ]


def ranking_html(results: Results, styled: Sequence[Entry], words: QualityWords) -> Markup:
    """Return the ranked table as HTML."""
    found = columns(results, words)
    groups: list[tuple[str, int]] = []
    for column in found:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    best = {id(column): _best(column, results.rows) for column in found}
    rows = [(entry, [_cell(column, entry.row, best[id(column)]) for column in found]) for entry in styled]
    starts = {sum(span for _, span in groups[:index]) for index in range(len(groups))}
    return fragment("ranking.html", columns=found, groups=groups, starts=starts, rows=rows)


def _best(column: TableColumn, rows: Sequence[Row]) -> float | None:
    values = [value for row in rows if row.status != "failed" and (value := column.figure(row)[0]) is not None]
    if column.best is None or len(set(values)) < 2:
        return None
    return min(values) if column.best == "lower" else max(values)


def _cell(column: TableColumn, row: Row, best: float | None) -> Cell:
    value, text = column.figure(row)
    return Cell(value, text, value is not None and value == best)
