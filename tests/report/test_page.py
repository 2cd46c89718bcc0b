from __future__ import annotations

import json

import pytest
from pages import Document

from regard.report import page as frame
from regard.report.page import Chart, Key, Page, Section, Table, View
from regard.report.palette import Style, themed


def report(**changes: object) -> Page:
    view = View("one", [{"type": "bar", "y": [1, 2], "marker": {"color": themed("c3")}}], {"height": 300})
    chart = Chart("bars", "Bars", "How to read.", "Two bars.", [view], [Key("a", "first", "7", Style(3))])
    section = Section("results", "Results & more", "Results", "A lead.", charts=[chart])
    settings: dict[str, object] = {"title": "Training", "name": "regard train", "subtitle": "", "sections": [section]}
    return Page(**(settings | changes))  # type: ignore[arg-type]


def test_the_frame_serves_any_report() -> None:
    page = Document(frame.render_page(report(banners=["<stopped>"], footer="the end")))
    assert "Results & more A lead." in page.text
    assert "<stopped>" in page.text
    assert page.text.endswith("the end")
    drawn = {"data": [{"type": "bar", "y": [1, 2], "marker": {"color": "theme:c3"}}], "layout": {"height": 300}}
    assert page.data()["charts"] == {"bars": [drawn]}
    assert [attrs["href"] for attrs in page.tags("a")] == ["#content", "#results"]
    assert len([text for attrs, text in page.scripts if "type" not in attrs]) == 2


def test_numbers_stand_in_a_table_for_those_who_cannot_see_the_plot() -> None:
    chart = Chart("c", "C", "", "", empty="nothing yet", table=Table(["who", "256"], [["<a>", "3 ms"]]))
    page = Document(frame.render_page(report(sections=[Section("s", "S", "S", charts=[chart])])))
    assert "nothing yet" in page.text
    assert "Numbers who 256 <a> 3 ms" in page.text


def test_json_cannot_leave_its_script_element() -> None:
    value = {"</script><!--": "<&>\u2028\u2029", "n": [1.5, None]}
    text = frame.to_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        frame.to_json(float("nan"))


def test_fragments_escape_every_value() -> None:
    html = frame.fragment("cards.html", cards=[], why="<b>{{ 7 * 7 }}</b>")
    assert "&lt;b&gt;{{ 7 * 7 }}&lt;/b&gt;" in html


def test_each_theme_is_chosen_by_the_system_or_by_the_reader() -> None:
    css = frame.theme_css()
    assert css.count("{color-scheme:dark;") == 2
    assert css.count("{color-scheme:light;") == 2
    assert css.index(":root[data-theme=light]") > css.index("prefers-color-scheme:dark")
