"""Ranking, the Pareto front and a recommendation: nothing here but what follows from the rows' own figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regard.compare.race_tasks import METRICS, Metric
from regard.wording import bytes_in_words, ratio_in_words

Row = Mapping[str, Any]


def finished(rows: Sequence[Row]) -> list[Row]:
    """The rows that went through the whole race."""
    return [row for row in rows if row["status"] == "ok"]


def rank(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with `rank` and `pareto` filled in: best first, then the unfinished, then the failed."""
    ok = sorted(finished(rows), key=_loss)
    front = {row["name"] for row in pareto_front(ok)}
    places = {row["name"]: place for place, row in enumerate(ok, start=1)}
    order = {"ok": 0, "unfinished": 1, "failed": 2}
    ranked = [{**row, "rank": places.get(row["name"]), "pareto": row["name"] in front} for row in rows]
    return sorted(ranked, key=lambda row: (order[row["status"]], row["rank"] or 0))


def _loss(row: Row) -> float:
    """Quality as a number of which less is better."""
    quality = row["quality"]
    return quality["mean"] if quality["better"] == "lower" else -quality["mean"]


def longest(rows: Sequence[Row]) -> int | None:
    """The greatest length at which any row's cost was measured."""
    return max(
        (
            length
            for row in rows
            if row.get("cost")
            for length, ratio in zip(row["cost"]["lengths"], row["cost"]["ratio"], strict=True)
            if ratio is not None
        ),
        default=None,
    )


def cost_ratio(row: Row, length: int | None) -> float | None:
    """A row's forward time at a length, relative to the yardstick's; None where it was not measured."""
    cost = row.get("cost")
    if not cost or length not in cost["lengths"]:
        return None
    return cost["ratio"][cost["lengths"].index(length)]


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other row beats in quality or cost without losing in the other.

    Cost is the ratio at the longest length; a row that was not measured there counts as infinitely dear.
    """
    at = longest(rows)

    def cost(row: Row) -> float:
        ratio = cost_ratio(row, at)
        return float("inf") if ratio is None else ratio

    def beaten(row: Row) -> bool:
        mine = (_loss(row), cost(row))
        return any(
            _loss(other) <= mine[0] and cost(other) <= mine[1] and (_loss(other), cost(other)) != mine for other in rows
        )

    return [row for row in rows if not beaten(row)]


# --------------------------------------------------------------------------------------------------- recommendation


def recommend(rows: Sequence[Row], *, yardstick: str) -> list[dict[str, str]]:
    """Answers to three questions, each with a sentence that follows from the rows.

    Args:
        rows: of the race; only finished ones are considered.
        yardstick: the name of the mechanism that times are relative to.
    """
    ok = sorted(finished(rows), key=_loss)
    if not ok:
        return []
    answers = [_best_quality(ok, yardstick), _best_at_length(ok), _best_decoding(ok)]
    return [answer for answer in answers if answer is not None]


def _answer(question: str, row: Row, sentence: str) -> dict[str, str]:
    return {"question": question, "name": row["name"], "sentence": sentence}


def _figure(value: float, row: Row) -> str:
    metric = _metric(row)
    return f"{metric.figure(value)} {metric.words}"


def _difference(value: float, row: Row) -> str:
    return _metric(row).difference(value)


def _metric(row: Row) -> Metric:
    return METRICS[row["quality"]["metric"]]


def within_spread(first: Row, second: Row) -> bool | None:
    """Whether two rows differ by no more than the larger spread over their seeds; None with one seed."""
    spreads = [row["quality"]["spread"] for row in (first, second)]
    if None in spreads:
        return None
    return abs(_loss(first) - _loss(second)) <= max(spreads)


def _best_quality(ok: Sequence[Row], yardstick: str) -> dict[str, str]:
    best = ok[0]
    sentence = _figure(best["quality"]["mean"], best)
    spread = best["quality"]["spread"]
    if spread is not None:
        seeds = len(best["quality"]["per_seed"])
        sentence += f" (± {_difference(spread, best)} over {seeds} seeds)"
    reference = next((row for row in ok if row["name"] == yardstick), None)
    if reference is not None and reference is not best:
        gap = abs(_loss(best) - _loss(reference))
        sentence += f", {_difference(gap, best)} better than {yardstick}"
    sentence += "."
    if len(ok) > 1:
        sentence += _runner_up(best, ok[1])
    return _answer("Best quality", best, sentence)


def _runner_up(best: Row, second: Row) -> str:
    gap = _difference(abs(_loss(best) - _loss(second)), best)
    near = within_spread(best, second)
    if near is None:
        return f" {second['name']} follows {gap} behind; with one seed, chance may account for small differences."
    if near:
        return f" {second['name']} is only {gap} behind, within the spread of the seeds: no winner between the two."
    return f" {second['name']} follows {gap} behind, more than the spread of the seeds."


def _at_factor(row: Row, factor: int | None) -> float | None:
    """Quality at a multiple of the training length; without one, quality itself."""
    if factor is None:
        return row["quality"]["mean"]
    return next((point["mean"] for point in row["extrapolation"] if point["factor"] == factor), None)


def _good_enough(rows: Sequence[Row], factor: int | None = None) -> list[tuple[Row, float]]:
    """The rows whose quality, at this factor, is within the margin of the best, with how far they are from it."""
    scored = [(row, value) for row in rows if (value := _at_factor(row, factor)) is not None]
    if not scored:
        return []
    metric = _metric(rows[0])
    sign = 1 if metric.better == "lower" else -1
    best = min(sign * value for _, value in scored)
    room = metric.margin * abs(best)
    return [(row, sign * value - best) for row, value in scored if sign * value - best <= room]


def _margin(row: Row) -> str:
    return f"within {_metric(row).margin:.0%} of the best"


def _behind(row: Row, gap: float) -> str:
    return f"{_difference(gap, row)} behind the best" if gap > 0 else "the best"


def _best_at_length(ok: Sequence[Row]) -> dict[str, str] | None:
    """The cheapest at the longest length among the rows that are good enough there.

    Good at the greatest multiple of the training length where there is one, else good at all.
    """
    at = longest(ok)
    factor = max((point["factor"] for row in ok for point in row["extrapolation"]), default=None)
    good = [(row, gap, ratio) for row, gap in _good_enough(ok, factor) if (ratio := cost_ratio(row, at)) is not None]
    if not good:
        return None
    row, gap, ratio = min(good, key=lambda found: found[2])
    where = f" at {factor} times the training length" if factor else ""
    value = _at_factor(row, factor)
    assert value is not None, "a good enough row has a value"
    choice = f"the cheapest of the {len(good)} that are" if len(good) > 1 else "the only one that is"
    sentence = (
        f"{_figure(value, row)}{where} ({_behind(row, gap)}), in {ratio_in_words(ratio)} times softmax's forward "
        f"time at {at:,} tokens: {choice} {_margin(row)} there."
    )
    cheaper = [(other, other_ratio) for other in ok if (other_ratio := cost_ratio(other, at)) is not None]
    return _answer("Best at long context", row, sentence + _faster(row, ratio, cheaper))


def _faster(row: Row, ratio: float, others: Sequence[tuple[Row, float]]) -> str:
    """The fastest of all, where quality has kept it from being recommended."""
    fastest, its_ratio = min(others, key=lambda pair: pair[1])
    if fastest["name"] == row["name"] or its_ratio >= ratio:
        return ""
    return f" Faster, but further behind: {fastest['name']}, {ratio_in_words(its_ratio)} times."


def _best_decoding(ok: Sequence[Row]) -> dict[str, str] | None:
    """The shortest time per token at the last position among the rows that are good enough."""
    good = [(row, gap) for row, gap in _good_enough(ok) if row.get("decode") and row["decode"]["positions"]]
    last = max((row["decode"]["positions"][-1] for row, _ in good), default=0)
    timed = [
        (row, gap, row["decode"]["positions"].index(last)) for row, gap in good if last in row["decode"]["positions"]
    ]
    if not timed:
        return None
    row, gap, index = min(timed, key=lambda found: found[0]["decode"]["ratio"][found[2]])
    decode = row["decode"]
    choice = (
        f"the fastest of the {len(timed)} that decode and are" if len(timed) > 1 else "the only one that decodes and is"
    )
    sentence = (
        f"{1e6 * decode['s_per_token'][index]:.0f} µs per token at position {last:,}, "
        f"{ratio_in_words(decode['ratio'][index])} times softmax's, from a state of "
        f"{bytes_in_words(decode['state_bytes'][index])}: {choice} {_margin(row)} quality "
        f"({_figure(row['quality']['mean'], row)}, {_behind(row, gap)})."
    )
    others = [
        (other, other["decode"]["ratio"][other["decode"]["positions"].index(last)])
        for other in ok
        if other.get("decode") and last in other["decode"]["positions"]
    ]
    return _answer("Best decoding", row, sentence + _faster(row, decode["ratio"][index], others))
