from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pages import Document
from sample_results import HOSTILE
from visits import NEEDS_BROWSER

from regard.report.hardware import (
    GrowthLine,
    HardwareRecord,
    Roof,
    RoofPoint,
    SizePoint,
    SpeedUp,
    Timeline,
    TimelinePhase,
    TimePair,
    hardware_page,
    write_hardware_page,
)
from regard.report.units import MISSING, TIMES

PARTS = ("speed_ups", "roofs", "roof_points", "growth", "sizes", "timelines", "times", "tables")


def phase(name: str, square: float, line: float, stall: float = 0.0) -> TimelinePhase:
    return TimelinePhase(name=name, square=square, line=line, stall=stall)


ARCH = [phase("scores | division", 65, 1.25, 256), phase("wait", 0, 1), phase("values | corrections", 64, 128)]
LENGTHS = (1024, 65536, 2**20)


def speed_ups(text: str) -> list[SpeedUp]:
    return [
        SpeedUp(model=f"BERT{text}", length=n, design=f"{name}{text}", attention=a, end_to_end=1 + (a - 1) / 2)
        for name, a in (("flat", 1.0), ("arch", 2.0), ("fusemax", 8.0))
        for n in LENGTHS
    ]


def record(text: str = "", **changes: Any) -> HardwareRecord:
    """A record with some of everything; `text` is part of every string."""
    given: dict[str, Any] = {
        "title": f"Five accelerators{text}",
        "subtitle": f"3 workloads{text}",
        "command": ["regard", "hardware", "compare", f"out dir{text}"],
        "yardstick": f"flat{text}",
        "speed_ups": speed_ups(text),
        "roofs": [
            Roof(name=f"big{text}", flops_per_s=1e15, bytes_per_s=4e12, source=f"a data sheet{text}"),
            Roof(name=f"small{text}", flops_per_s=1e11, bytes_per_s=5e10),
        ],
        "roof_points": [
            RoofPoint(name=f"softmax{text}", roof=f"big{text}", intensity=100, flops_per_s=4e14, measured=False),
            RoofPoint(name=f"softmax{text}", roof=f"big{text}", intensity=100, flops_per_s=2e14, measured=True),
            RoofPoint(name=f"window{text}", roof=f"small{text}", intensity=1, flops_per_s=4e10, measured=True),
        ],
        "growth": [
            GrowthLine(cascade=f"three{text}", passes=3, points=[(64, 1000), (128, 2000)]),
            GrowthLine(cascade=f"one{text}", passes=1, points=[(64, 1500), (128, 1500)]),
        ],
        "sizes": [
            SizePoint(array=n, area_mm2=area, latency_s=s, on_front=area is not None, workload=f"BERT{text}")
            for n, area, s in ((128, 308.0, 400.0), (256, 1221.0, 100.0), (1024, None, 10.0))
        ],
        "timelines": [
            Timeline(design=f"arch{text}", workload=f"BERT{text}", phases=ARCH if not text else [phase(text, 1, 2, 3)]),
            Timeline(design=f"fusemax{text}", workload=f"BERT{text}", phases=[phase("scores | division", 65, 65)]),
        ],
        "times": [
            TimePair(mechanism=f"softmax{text}", length=n, predicted_s=1e-9 * n, measured_s=2e-9 * n) for n in LENGTHS
        ],
        "tables": [(f"Energy{text}", [f"design{text}", "joules"], [[f"arch{text}", "1.5"]])],
        "notes": [f"energies are calibrated{text}"],
        "facts": [(f"batch{text}", 64)],
    }
    return HardwareRecord(**{**given, **changes})


def charts(given: HardwareRecord) -> dict[str, Any]:
    """The charts of a page, read without its markup: that holds the whole plotting library and takes a while."""
    _, _, rest = hardware_page(given).partition('id="report-data">')
    return json.loads(rest.partition("</script>")[0])["charts"]


@pytest.fixture(scope="module")
def whole() -> Document:
    return Document(hardware_page(record()))


def test_every_part_has_a_chart_with_a_summary_and_numbers(whole: Document) -> None:
    drawn = whole.data()["charts"]
    assert set(drawn) == {"speed-up", "timeline", "growth", "sizes", "roofline", "times"}
    spoken = {attrs["data-chart"]: attrs["aria-label"] for attrs in whole.tags("div") if "data-chart" in attrs}
    assert set(spoken) == set(drawn)
    assert f"fusemax, attention: 8.00{TIMES} to 8.00{TIMES}" in str(spoken["speed-up"])
    assert f"fusemax, end to end: 4.50{TIMES} to 4.50{TIMES}" in str(spoken["speed-up"])
    assert "three, 3 passes, from 1,000 to 2,000" in str(spoken["growth"])
    assert f"softmax takes 2.00{TIMES} of what is predicted" in str(spoken["times"])
    assert whole.text.count("Numbers") == len(drawn) + 2
    for said in ("energies are calibrated", "a data sheet", "regard hardware compare 'out dir'", "Energy", "batch 64"):
        assert said in whole.text


def test_the_summary_is_the_arithmetic_mean_over_workloads() -> None:
    ups = [SpeedUp(model="T5", length=n, design="fusemax", attention=a) for n, a in ((1024, 2.0), (2048, 8.0))]
    page = Document(hardware_page(HardwareRecord(title="x", speed_ups=ups)))
    assert f"fusemax 5.00{TIMES} 2.00{TIMES} to 8.00{TIMES} on 2 workloads" in page.text
    assert "end to end" not in page.text
    alone = Document(hardware_page(HardwareRecord(title="x", speed_ups=ups[:1])))
    assert f"fusemax 2.00{TIMES} on one workload" in alone.text


@pytest.mark.parametrize("part", PARTS)
def test_a_part_alone_and_all_without_it_make_a_page(part: str) -> None:
    full = record()
    alone = charts(HardwareRecord(title="x", **{part: getattr(full, part)}))
    without = charts(replace(full, **{part: ()}))
    assert len(alone) == (part != "tables")
    assert len(without) == 6 - (part not in ("tables", "roofs", "roof_points"))


def test_an_empty_record_is_a_page_without_the_plotting_library() -> None:
    html = hardware_page(HardwareRecord(title=""))
    assert "Attention on accelerators" in Document(html).text
    assert len(html) < 100_000


def test_bars_stand_by_workload_and_the_yardstick_is_a_line_at_one() -> None:
    attention, whole = charts(record())["speed-up"]
    *bars, line = attention["data"]
    assert [bar["y"] for bar in bars] == [[2, 2, 2], [8, 8, 8]]
    assert [bar["x"] for bar in bars] == [[0, 1, 2], [0, 1, 2]]
    assert line["y"] == [1, 1]
    assert line["legendgroup"] not in {bar["legendgroup"] for bar in bars}
    assert attention["layout"]["xaxis"]["ticktext"] == ["1K", "64K", "1M"]
    assert attention["layout"]["yaxis"]["range"][0] == 0
    assert [bar["y"][0] for bar in whole["data"][:2]] == [1.5, 4.5]


def test_models_are_apart_and_named_and_lengths_are_sorted() -> None:
    ups = [
        SpeedUp(model=model, length=n, design="arch", attention=2)
        for model in ("XLM", "BERT")
        for n in (4096, 1024, 1000)
    ]
    (view,) = charts(HardwareRecord(title="x", speed_ups=ups))["speed-up"]
    assert view["layout"]["xaxis"]["ticktext"] == ["1,000", "1K", "4K"] * 2
    places = view["layout"]["xaxis"]["tickvals"]
    assert places[3] - places[2] > places[1] - places[0]
    assert [note["text"] for note in view["layout"]["annotations"]] == ["XLM", "BERT"]


def test_a_timeline_adds_up_and_leaves_idle_time_empty() -> None:
    cycles, shares = charts(record())["timeline"]
    idle, stall = cycles["data"][:2]
    # idle boxes and stalls included, a row is as long as its design takes
    for row, whole in ((0, 450), (1, 450), (2.5, 65), (3.5, 65)):
        own = [
            (base, length)
            for trace in cycles["data"]
            for base, length, y in zip(trace["base"], trace["x"], trace["y"], strict=True)
            if y == row
        ]
        assert sum(length for _, length in own) == pytest.approx(whole)
        ends = [base + length for base, length in sorted(own)]
        assert [base for base, _ in sorted(own)] == pytest.approx([0, *ends[:-1]])
    assert (idle["base"][0], idle["x"][0], idle["y"][0]) == (1.25, 63.75, 1)
    assert stall["x"] == [256, 256]
    assert stall["base"] == [65, 65]
    assert [note["text"] for note in cycles["layout"]["annotations"]] == ["450", "65"]
    for trace in shares["data"]:
        assert all(base + length <= 100.001 for base, length in zip(trace["base"], trace["x"], strict=True))


def test_a_phase_has_a_colour_across_designs_and_a_name_on_each_array(whole: Document) -> None:
    cycles, _ = charts(record())["timeline"]
    (scores,) = [trace for trace in cycles["data"] if "scores" in trace["text"]]
    assert scores["y"] == [0, 1, 2.5, 3.5]
    assert scores["text"] == ["scores", "division"] * 2
    assert "arch BERT whole 28.7 % 28.9 % 56.9 % 450" in whole.text


def test_many_phases_differ_by_a_pattern() -> None:
    many = Timeline(design="x", workload="y", phases=[phase(f"step {n}", 1, 1) for n in range(12)])
    cycles, _ = charts(HardwareRecord(title="x", timelines=[many]))["timeline"]
    looks = {(bar["marker"]["color"], bar["marker"].get("pattern", {}).get("shape")) for bar in cycles["data"]}
    assert len(looks) == 12


def test_each_workload_has_a_view() -> None:
    lines = [Timeline(design="a", workload=work, phases=[phase("p", 1, 2)]) for work in ("BERT", "XLM")]
    page = Document(hardware_page(HardwareRecord(title="x", timelines=lines)))
    assert len(page.data()["charts"]["timeline"]) == 4
    assert "BERT: cycles BERT: shares XLM: cycles XLM: shares" in page.text


def test_roofs_bend_at_the_ridge_and_markers_are_hollow_where_predicted(whole: Document) -> None:
    (view,) = charts(record())["roofline"]
    roof, predicted, measured, *_ = view["data"]
    assert (roof["x"][1], *roof["y"][1:]) == (250, 1e15, 1e15)
    assert roof["y"][0] == pytest.approx(roof["x"][0] * 4e12, rel=1e-5)
    assert predicted["marker"]["symbol"] == measured["marker"]["symbol"] + "-open"
    assert (predicted["text"], measured["text"]) == ([""], ["softmax"])
    assert "softmax big measured 100 200 T 50.0 %" in whole.text


def test_a_point_without_its_roof_is_still_drawn() -> None:
    points = [RoofPoint(name="k", roof="nowhere", intensity=3, flops_per_s=1e9, measured=True)]
    (view,) = charts(HardwareRecord(title="x", roof_points=points))["roofline"]
    assert [trace["text"] for trace in view["data"]] == [["k"]]


def test_sizes_are_named_and_the_front_is_a_line(whole: Document) -> None:
    (view,) = charts(record())["sizes"]
    front, points = view["data"]
    assert (front["mode"], front["x"], front["y"]) == ("lines", [100, 400], [1221, 308])
    assert points["text"] == [f"128 {TIMES} 128", f"256 {TIMES} 256"]
    assert f"BERT, 1024 {TIMES} 1024 {MISSING} 10.0 s no" in whole.text


def test_times_come_in_pairs_dashed_and_full() -> None:
    time, ratio = charts(record())["times"]
    predicted, measured = time["data"]
    assert (predicted["line"]["dash"], measured["line"]["dash"]) == ("dash", "solid")
    assert predicted["legendgroup"] == measured["legendgroup"]
    assert ratio["data"][0]["y"] == [2, 2, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0, 1e300])
def test_figures_that_no_axis_can_show_are_left_out(value: float) -> None:
    bad = record(
        speed_ups=[SpeedUp(model="m", length=1024, design="d", attention=value)],
        roofs=[Roof(name="r", flops_per_s=value, bytes_per_s=1.0)],
        roof_points=[RoofPoint(name="p", roof="r", intensity=value, flops_per_s=1.0, measured=True)],
        growth=[GrowthLine(cascade="c", passes=1, points=[])],
        sizes=[SizePoint(array=16, area_mm2=value, latency_s=1.0, on_front=True, workload="w")],
        timelines=[Timeline(design="d", workload="w", phases=[phase("p", value, -1.0, math.nan)])],
        times=[TimePair(mechanism="m", length=8, predicted_s=1.0, measured_s=value)],
    )
    assert charts(bad) == {}
    assert hardware_page(bad).count("Nothing to draw") == 6


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_shown_as_they_are(text: str, whole: Document) -> None:
    page = Document(hardware_page(record(text)))
    assert len(page.scripts) == len(whole.scripts)
    assert page.tags("img") == page.tags("b") == []
    assert all(str(attrs["href"]).startswith("#") for attrs in page.tags("a"))
    for views in page.data()["charts"].values():
        for trace in [trace for view in views for trace in view["data"]]:
            shown = [*trace.get("text", []), *trace.get("hovertext", []), trace.get("name", "")]
            assert not any("<script" in one or "<img" in one or "<a " in one for one in shown)


def test_the_file_is_written_whole(tmp_path: Path) -> None:
    write_hardware_page(record(), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_report_needs_neither_torch_nor_the_models() -> None:
    asked = (
        "import sys, regard.report.hardware as _; print([n for n in ('torch', 'regard.hardware') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def browser(test):
    for mark in NEEDS_BROWSER:
        test = mark(test)
    return test


@browser
def test_the_page_is_drawn_offline_and_its_views_and_legend_work(open_html, tmp_path: Path) -> None:
    write_hardware_page(record(), tmp_path / "report.html")
    seen = open_html(tmp_path / "report.html", viewport={"width": 400, "height": 800}, touch=True)
    page = seen.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    marks = "all => all.map(plot => plot.querySelectorAll('svg .trace path').length)"
    drawn = page.eval_on_selector_all("[data-chart]", marks)
    assert len(drawn) == 6
    assert all(drawn)
    shown = "document.querySelector('#timeline .plot').data.filter((trace) => trace.visible !== false).length"
    before = page.evaluate(shown)
    page.locator("#timeline .key", has_text="stall").click()
    page.locator("#timeline [data-view='1']").click()
    page.wait_for_timeout(300)
    assert page.evaluate(shown) == before - 1
    assert seen.complaints == seen.outside() == []
