"""Quality against cost: the scatter plot with the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regard.report import axes, units
from regard.report.axes import Axis, plotly_text
from regard.report.charts import Entry, Line, Points, compact, nothing, trace
from regard.report.page import Chart, Key, Table, View
from regard.report.palette import themed
from regard.report.results import Results
from regard.report.wording import QualityWords, listed, task_words

MOST_LABELLED = 14
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Spot:
    """A mechanism's place in the trade-off.

    Args:
        entry: the mechanism.
        length: the longest length with a ratio, in tokens.
        cost: forward time there relative to the yardstick's.
        quality: mean over seeds.
        spread: standard deviation over seeds.
    """

    entry: Entry
    length: float
    cost: float
    quality: float
    spread: float | None


@dataclass(frozen=True)
class Frame:
    """The size of a plot and of its text, in any one unit, for placing names.

    Args:
        width: of the plotting area.
        height: of the plotting area.
        letter: mean width of a letter.
        line: height of a line of text.
        gap: from a marker's centre to the text.
    """

    width: float
    height: float
    letter: float
    line: float
    gap: float


PAGE_FRAME = Frame(1000, 360, 7.4, 17, 10)


@dataclass(frozen=True)
class Tradeoff:
    """What both the page and the PNG draw: spots, axes, the front, and a place for each name."""

    spots: Sequence[Spot]
    x: Axis
    y: Axis
    front: Points
    labels: Sequence[str]


def tradeoff(
    results: Results, styled: Sequence[Entry], words: QualityWords, frame: Frame = PAGE_FRAME
) -> Tradeoff | None:
    """Return the trade-off of all rows that have a quality and a cost, or None if there is none.

    Args:
        results: the race.
        styled: its rows with their styles.
        words: how its quality is spoken of.
        frame: the plot that names are placed for.
    """
    spots = []
    for entry in styled:
        quality, cost = entry.row.quality, entry.row.cost
        longest = cost.longest_ratio() if cost else None
        if quality and quality.mean is not None and longest and longest[1] > 0 and entry.row.status != "failed":
            spots.append(Spot(entry, *longest, quality.mean, quality.spread))
    if not spots:
        return None
    length = max(spot.length for spot in spots)
    what = task_words(results.task).forward
    title = f"{what} at {units.whole(length)} tokens, relative to {units.shorten(results.yardstick)}"
    x = axes.logarithmic(title, [spot.cost for spot in spots], units.ratio, room=0.09)
    ends = [spot.quality + sign * (spot.spread or 0.0) for spot in spots for sign in (-1, 1)]
    y = axes.linear(words.axis, ends, words.tick, room=0.12)
    front = sorted((spot.cost, spot.quality) for spot in spots if spot.entry.row.pareto)
    return Tradeoff(spots, x, y, front, _label_places(spots, x, y, front, frame))


def pareto(results: Results, styled: Sequence[Entry], words: QualityWords) -> Chart:
    """Return the scatter plot with the Pareto front drawn and its rows marked."""
    found = tradeoff(results, styled, words)
    title = "Quality against cost"
    if found is None:
        return nothing("pareto", title, "no mechanism has both a quality and a measured cost", wide=True)
    spots = found.spots
    longest = max(spot.length for spot in spots)
    data = _front(found.front)
    for spot, place in zip(spots, found.labels, strict=True):
        data.append(_point(spot, place, words, hollow=spot.length < longest))
    what = task_words(results.task).forward
    on_front = [spot.entry.row.name for spot in spots if spot.entry.row.pareto]
    summary = f"On the Pareto front: {listed(on_front)}." if on_front else "No mechanism is on the Pareto front."
    row = [
        [s.entry.row.name, words.with_unit(s.quality, s.spread), units.ratio(s.cost), units.whole(s.length)]
        for s in spots
    ]
    return Chart(
        "pareto",
        title,
        _caption(spots, words, bool(on_front)),
        f"Scatter plot of {words.name} against relative {what}, mechanisms: {len(spots)}. {summary}",
        [View("", data, axes.layout(found.x, found.y, 440))],
        [Key(s.entry.group, s.entry.row.name, "Pareto" if s.entry.row.pareto else "", s.entry.style) for s in spots],
        Table(["mechanism", words.name, what, "at tokens"], row),
        wide=True,
    )


def _caption(spots: Sequence[Spot], words: QualityWords, front: bool) -> str:
    sentences = [f"{words.direction}; further left is cheaper."]
    if front:
        sentences.append("Along the dotted line, the Pareto front, nothing measured is both better and cheaper.")
    else:
        sentences.append("No row is marked as Pareto-optimal.")
    if any(spot.spread for spot in spots):
        sentences.append("Bars: one standard deviation over seeds.")
    if len({spot.length for spot in spots}) > 1:
        sentences.append("Hollow markers were measured at a shorter length only.")
    return " ".join(sentences)


def _point(spot: Spot, place: str, words: QualityWords, *, hollow: bool) -> dict[str, Any]:
    row, style = spot.entry.row, spot.entry.style
    text = (
        f"{words.with_unit(spot.quality, spot.spread)}\n{units.ratio(spot.cost)} at {units.whole(spot.length)} tokens"
    )
    text += "\non the Pareto front" if row.pareto else ""
    point = trace(Line(spot.entry, [(spot.cost, spot.quality)], [text]))
    point["mode"] = "markers+text" if place else "markers"
    point["text"] = [plotly_text(units.shorten(row.name, 22))]
    point["textposition"] = place or "top center"
    point["textfont"] = {"size": 13, "color": themed("ink" if row.pareto else "muted")}
    point["marker"] |= {"size": 13 if row.pareto else 10, "symbol": style.symbol + "-open" * hollow}
    if hollow:
        point["marker"]["line"] = {"color": style.role, "width": 2}
    if spot.spread:
        point["error_y"] = {"type": "data", "array": [compact(spot.spread)], "color": style.role}
        point["error_y"] |= {"thickness": 1.2, "width": 4}
    return point


def _front(front: Points) -> list[dict[str, Any]]:
    if len(front) < 2:
        return []
    line = {"color": themed("muted"), "width": 1.5, "dash": "dot", "shape": "hv"}
    x, y = [compact(cost) for cost, _ in front], [compact(quality) for _, quality in front]
    return [{"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "hoverinfo": "skip"}]


def _label_places(spots: Sequence[Spot], x: Axis, y: Axis, front: Points, frame: Frame) -> list[str]:
    """Return where each spot's name stands, away from error bars and from the front where that is possible."""

    def place(cost: float, quality: float) -> tuple[float, float]:
        return x.fraction(cost) * frame.width, y.fraction(quality) * frame.height

    lines = _steps_taken([place(*point) for point in front])
    centres = [place(spot.cost, spot.quality) for spot in spots]
    for (cx, cy), spot in zip(centres, spots, strict=True):
        bar = abs(place(spot.cost, spot.quality + (spot.spread or 0.0))[1] - cy)
        lines.append((cx - 4, cy - bar, cx + 4, cy + bar))
    return place_names(centres, [units.shorten(spot.entry.row.name, 22) for spot in spots], lines, frame)


def place_names(
    centres: Sequence[tuple[float, float]], names: Sequence[str], lines: Sequence[Box], frame: Frame
) -> list[str]:
    """Return where each name stands, as Plotly calls the places around a marker; empty where there is no room for it.

    A name never covers a marker or another name; it covers as few of `lines` as it can.

    Args:
        centres: of the markers, from the lower left corner of the plot, in the frame's unit.
        names: of the markers; an empty one needs no room.
        lines: boxes around what else is drawn.
        frame: the plot.
    """
    if sum(map(bool, names)) > MOST_LABELLED:
        return [""] * len(names)
    reach = frame.gap * 0.8
    taken: list[Box] = [(cx - reach, cy - reach, cx + reach, cy + reach) for cx, cy in centres]
    chosen = []
    for centre, name in zip(centres, names, strict=True):
        options = _options(centre, frame.letter * len(name), frame) if name else {}
        free = {
            option: sum(_overlap(box, line) for line in lines)
            for option, box in options.items()
            if box[0] >= 0 and box[2] <= frame.width and box[1] >= 0 and box[3] <= frame.height
            if not any(_overlap(box, other) for other in taken)
        }
        best = min(free, key=lambda option: free[option], default="")
        chosen.append(best)
        taken += [options[best]] if best else []
    return chosen


def _options(centre: tuple[float, float], width: float, frame: Frame) -> dict[str, Box]:
    """Return the box of a name at each place around its marker, the preferred places first."""
    cx, cy = centre
    gap, line = frame.gap, frame.line
    side = gap * 0.7
    rows = {"top": (cy + side, cy + side + line), "bottom": (cy - side - line, cy - side)}
    boxes: dict[str, Box] = {
        "top center": (cx - width / 2, cy + gap, cx + width / 2, cy + gap + line),
        "middle right": (cx + gap, cy - line / 2, cx + gap + width, cy + line / 2),
        "bottom center": (cx - width / 2, cy - gap - line, cx + width / 2, cy - gap),
        "middle left": (cx - gap - width, cy - line / 2, cx - gap, cy + line / 2),
    }
    for row, (low, high) in rows.items():
        boxes[f"{row} right"] = (cx + side, low, cx + side + width, high)
        boxes[f"{row} left"] = (cx - side - width, low, cx - side, high)
    return boxes


def _steps_taken(front: Points) -> list[Box]:
    """Return thin boxes around the lines of the front, which go right first and then to the next point."""
    boxes: list[Box] = []
    for (ax, ay), (bx, by) in itertools.pairwise(front):
        boxes += [(ax, ay - 1, bx, ay + 1), (bx - 1, min(ay, by), bx + 1, max(ay, by))]
    return boxes


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
