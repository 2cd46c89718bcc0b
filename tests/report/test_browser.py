"""The report as a reader meets it, in headless Chromium, opened from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import RACES
from playwright.sync_api import Page
from sample_results import HOSTILE
from visits import NEEDS_BROWSER, PHONE, Visit, in_the_slow_run

from regard.report.compare import render

pytestmark = NEEDS_BROWSER


@pytest.fixture
def visit(open_html, tmp_path: Path) -> Callable[..., Visit]:
    def open_report(race: str, **how: Any) -> Visit:
        path = tmp_path / f"{race}.html"
        path.write_text(render(RACES[race]()), encoding="utf-8")
        return open_html(path, **how)

    return open_report


def background(page: Page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def marks(page: Page, selector: str) -> list[int]:
    """Return how many marks each plot has: paths and points of traces, or images of heat maps."""
    return page.evaluate(
        """(selector) => [...document.querySelectorAll(selector)].map((plot) => plot.querySelectorAll(
             "svg .scatterlayer .trace path, svg .heatmaplayer image").length)""",
        selector,
    )


@pytest.mark.parametrize(
    "race", ["text", "hostile", "empty", *in_the_slow_run("image", "many", "gaps", "constant", "all_failed")]
)
def test_charts_are_drawn_without_a_complaint_or_a_request(visit, race: str) -> None:
    seen = visit(race)
    charts, maps = marks(seen.page, "[data-chart]"), marks(seen.page, "[data-map]")
    assert all(charts)
    assert all(maps)
    assert bool(charts) == bool(maps) == (race not in ("all_failed", "empty"))
    assert seen.complaints == []
    assert seen.outside() == []
    assert seen.requests  # the file itself: the record works


def test_hostile_strings_do_not_run_and_are_read_as_text(visit) -> None:
    seen = visit("hostile")
    page = seen.page
    for point in page.query_selector_all(".plot .nsewdrag")[:2]:
        point.hover()
    assert page.evaluate("window.hacked") is None
    assert page.query_selector_all("img, main a") == []
    text = " ".join(page.inner_text("body").split())
    for hostile in HOSTILE[:4]:
        assert hostile in text
    labels = " ".join(page.eval_on_selector_all("#pareto svg text", "all => all.map((one) => one.textContent)"))
    assert "<script>" in labels
    assert seen.complaints == []


def test_the_content_policy_stops_markup_that_would_slip_through(visit) -> None:
    page = visit("text").page
    page.evaluate(
        """() => { document.body.insertAdjacentHTML("beforeend", '<img src="data:," onerror="window.hacked=1">');
                   const script = document.createElement("script"); script.textContent = "window.hacked=2";
                   document.body.append(script); }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("race", ["hostile", *in_the_slow_run("text", "many")])
def test_a_phone_scrolls_only_down(visit, race: str) -> None:
    seen = visit(race, viewport=PHONE, touch=True)
    page = seen.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 375
    box = "document.querySelector('.table-box')"
    wide = page.evaluate(f"{box}.scrollWidth > {box}.clientWidth")
    assert wide, "the table scrolls in its own box"
    for box in page.query_selector_all("[data-chart] svg.main-svg"):
        place = box.bounding_box()
        assert place is not None
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= 375
    assert seen.complaints == []


@pytest.mark.slow
def test_dark_follows_the_system_and_the_button_overrides_it(visit) -> None:
    light, dark = visit("text"), visit("text", scheme="dark")
    assert background(light.page) != background(dark.page)
    paper = "document.querySelector('#time .main-svg').style.background"
    before = light.page.evaluate(paper)
    light.page.click("#theme")
    assert background(light.page) == background(dark.page)
    light.page.wait_for_timeout(300)
    assert light.page.evaluate(paper) == dark.page.evaluate(paper) != before
    assert light.page.get_attribute("#theme", "aria-pressed") == "true"
    light.page.click("#theme")
    assert background(light.page) != background(dark.page)
    assert light.complaints == dark.complaints == []


@pytest.mark.slow
def test_the_head_selector_redraws_every_map(visit) -> None:
    page = visit("text").page
    plots = "[...document.querySelectorAll('[data-map]')]"
    picture = f"{plots}.map((plot) => plot.querySelector('image').getAttribute('href'))"
    first = page.evaluate(picture)
    values = page.eval_on_selector_all("#head option", "all => all.map((one) => one.value)")
    assert values == ["0", "1", "2", "3", "mean"]
    page.select_option("#head", "2")
    page.wait_for_timeout(500)
    third = page.evaluate(picture)
    assert all(a != b for a, b in zip(first, third, strict=True))
    z = page.evaluate("document.querySelector('[data-map=\"0\"]').data[0].z")
    row = next(row for row in RACES["text"]()["rows"] if row["rank"] == 1)
    assert z == row["map"]["heads"][2]
    page.select_option("#head", "mean")
    page.wait_for_timeout(500)
    mean = page.evaluate("document.querySelector('[data-map=\"0\"]').data[0].z[9][4]")
    assert mean == pytest.approx(sum(head[9][4] for head in row["map"]["heads"]) / 4, abs=1e-6)


@pytest.mark.slow
def test_a_mechanism_with_fewer_heads_says_so(visit) -> None:
    seen = visit("gaps")
    seen.page.select_option("#head", "3")
    seen.page.wait_for_timeout(500)
    assert "only 2 heads" in seen.page.inner_text(".maps")
    assert seen.complaints == []


@pytest.mark.slow
def test_a_pointer_on_a_map_reads_the_weight_and_lights_the_tokens(visit) -> None:
    page = visit("text").page
    page.locator("[data-map='1']").scroll_into_view_if_needed()
    box = page.locator("[data-map='1'] .nsewdrag").bounding_box()
    assert box is not None
    tokens = len(RACES["text"]()["rows"][0]["map"]["labels"])
    query, key = 20, 7
    page.mouse.move(box["x"] + box["width"] * (key + 0.5) / tokens, box["y"] + box["height"] * (query + 0.5) / tokens)
    page.wait_for_timeout(400)
    row = next(row for row in RACES["text"]()["rows"] if row["rank"] == 2)
    weight = row["map"]["heads"][0][query][key]
    readout = page.inner_text("#map-readout")
    assert f"({query + 1})" in readout
    assert f"({key + 1})" in readout
    assert float(readout.rsplit(" ", 1)[1]) == pytest.approx(weight, rel=1e-2)
    assert page.get_attribute(".sample .query", "data-token") == str(query)
    assert page.get_attribute(".sample .key", "data-token") == str(key)


@pytest.mark.slow
def test_the_table_sorts_by_a_column_from_the_keyboard_and_keeps_failed_rows_last(visit) -> None:
    page = visit("text").page
    names = "[...document.querySelectorAll('.ranking tbody .who-name')].map((one) => one.textContent)"
    ranked = page.evaluate(names)
    heading = page.locator(".ranking thead th button", has_text="tokens/s")
    heading.focus()
    page.keyboard.press("Enter")
    slow_first = page.evaluate(names)
    assert slow_first[0] == "lssar"
    assert slow_first[-2:] == ["aaren", "lssa"]
    page.keyboard.press("Enter")
    assert page.evaluate(names) == [*slow_first[:-1][::-1], "lssa"]
    assert page.locator(".ranking thead th[aria-sort=descending]").count() == 1
    page.locator(".ranking thead th.rank button").click()
    assert page.evaluate(names) == ranked


@pytest.mark.slow
def test_views_and_legend_switch_what_is_drawn(visit) -> None:
    page = visit("text").page
    shown = "document.querySelector('#time .plot').data.filter((trace) => trace.visible !== false).length"
    assert page.evaluate(shown) == 7
    page.locator("#time .key", has_text="softmax").click()
    assert page.get_attribute("#time .key:has-text('softmax')", "aria-pressed") == "false"
    page.wait_for_timeout(300)
    assert page.evaluate(shown) == 6
    absolute = page.evaluate("document.querySelector('#time .plot').data[0].y")
    page.locator("#time [data-view='1']").click()
    page.wait_for_timeout(300)
    assert page.evaluate("document.querySelector('#time .plot').data[0].y") != absolute
    assert page.evaluate(shown) == 6, "what is hidden stays hidden in another view"
