from __future__ import annotations

import math

import pytest
from pages import Document

from regard.report.heat_maps import heat_map
from regard.report.record import EvaluationRecord
from regard.report.training import evaluation_page


def square(count: int, **changes) -> dict:
    values = [[1.0 if x == y else 0.25 if x == y + 1 else 0.0 for x in range(count)] for y in range(count)]
    given = {
        "title": "Confusion on test",
        "x_label": "answer",
        "y_label": "true class",
        "names": [f"class {number}" for number in range(count)],
        "values": values,
        "what": "share of the class",
    }
    return {**given, **changes}


def test_a_square_is_drawn_with_the_first_row_at_the_top() -> None:
    chart = heat_map(square(23), "m")
    (view,) = chart.views
    (trace,) = view.data
    assert trace["type"] == "heatmap"
    assert trace["z"][0][:3] == [1.0, 0.25, 0.0]
    assert (trace["zmin"], trace["zmax"]) == (0, 1)
    assert view.layout["yaxis"]["range"] == [22.5, -0.5]
    assert view.layout["xaxis"]["ticktext"] == [f"class {number}" for number in range(0, 23, 2)]
    assert trace["hovertext"][0][1] == "<b>class 0</b><br>answer class 1<br>share of the class 25.0 &#37;"
    assert "mean on the diagonal 100.0 %" in chart.alt


def test_many_names_are_thinned_and_not_repeated_in_every_cell() -> None:
    (view,) = heat_map(square(150), "m").views
    assert len(view.layout["xaxis"]["tickvals"]) <= 16
    assert "hovertext" not in view.data[0]


def test_gaps_and_nothing() -> None:
    (view,) = heat_map(square(2, values=[[math.nan, 1.0], [None, math.inf]]), "m").views
    assert view.data[0]["z"] == [[None, 1.0], [None, None]]
    assert heat_map(square(2, values=[[None] * 2] * 2), "m").empty
    assert heat_map(square(0), "m").empty


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "%{x}", "a\nb"])
def test_names_are_shown_as_they_are(name: str) -> None:
    record = EvaluationRecord(title="t", heat_maps=[square(2, names=[name, "b"], title=name)])
    page = Document(evaluation_page(record))
    assert set(page.data()["charts"]) == {"heat-map-0"}
    assert len(page.scripts) == len(Document(evaluation_page(EvaluationRecord(title="t"))).scripts)
