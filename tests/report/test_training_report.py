from __future__ import annotations

import math
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Document
from sample_results import HOSTILE
from sample_runs import RUNS, evaluation, normal
from visits import NEEDS_BROWSER, PHONE, in_the_slow_run

from regard.report import series, training, units
from regard.report.record import EvaluationRecord, TrainingRecord
from regard.report.series import Gapped
from regard.report.units import MISSING

NAN, INF = float("nan"), float("inf")


def browser(test: Any) -> Any:
    """Mark a test that opens a page in Chromium."""
    for mark in NEEDS_BROWSER:
        test = mark(test)
    return test


@lru_cache(maxsize=16)
def html_of(run: str) -> str:
    return training.evaluation_page(evaluation()) if run == "evaluation" else training.training_page(RUNS[run]())


@lru_cache(maxsize=16)
def page_of(run: str) -> Document:
    return Document(html_of(run))


def trace_of(run: str, chart: str, group: str, view: int = 0) -> dict[str, Any]:
    (found,) = [t for t in page_of(run).data()["charts"][chart][view]["data"] if t["legendgroup"] == group]
    return found


def tiles_of(run: str) -> dict[str, str]:
    cards = re.findall(r'<article class="card answer">.*?</article>', html_of(run), re.DOTALL)
    parts = [re.findall(r"<p[^>]*>(.*?)</p>", card, re.DOTALL) for card in cards]
    return {question: re.sub("<.*?>", "", f"{name} | {sentence}") for question, name, sentence in parts}


@pytest.mark.parametrize("run", [*RUNS, "evaluation"])
def test_every_run_gives_a_well_formed_page_without_a_way_out(run: str) -> None:
    page = page_of(run)
    assert html_of(run).startswith("<!DOCTYPE html>")
    assert len(page.tags("h1")) == 1
    identities = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(identities) == len(set(identities))
    assert not re.search(r"\b(nan|inf|None|undefined)\b", page.text)
    for tag, attrs in page.elements:
        assert tag not in ("iframe", "img", "object", "embed", "base", "form")
        for name, value in attrs.items():
            assert not name.startswith("on"), f"<{tag} {name}> would run a script"
            if name in ("src", "href", "srcset", "action", "data"):
                assert (value or "").startswith(("#", "data:")), f"<{tag} {name}={value!r}>"


def test_the_headline_names_the_best_step_size_time_and_the_share_of_waiting() -> None:
    tiles = tiles_of("normal")
    best = math.exp(1.5 + 3.9 * 1800**-0.36)
    assert tiles["validation perplexity"] == f"{best:.3f} | best, at step 1,800; lower is better"
    assert tiles["test perplexity"].startswith("5.012 |")
    assert tiles["parameters"] == "413 k | 412,736 exactly"
    assert tiles["steps"] == "2,000 | all steps done"
    assert tiles["time per step"] == "56.1 ms | 18.2 k tokens per second"
    assert tiles["waiting for data"] == "2.1 % | of each step&#39;s time"


def test_everything_of_a_run_is_on_its_page() -> None:
    text = page_of("normal").text
    assert "Three novels, 2.1 million bytes" in text
    assert "Ended: all steps done. Resumed from step 1,200." in text
    assert "The validation part is shorter than one batch" in text
    assert "regard train transnormer_lm --steps 2000 --data 'my text.txt'" in text
    assert "optimizer AdamW, betas 0.9 and 0.95, weight decay 0.1" in text
    assert "Metrics with the weights that were kept metric validation test perplexity" in text
    assert "accuracy 51.3 % 50.8 %" in text
    assert "Perplexity by position position perplexity tokens 0\u2013255 5.400 81,920" in text
    assert "Continuation 2, temperature 0.8 the little house" in text
    assert set(page_of("normal").data()["charts"]) == {"loss", "validation", "rate", "chart-0"}


def test_the_loss_is_drawn_raw_and_smoothed_and_beside_the_validation_loss() -> None:
    run = normal()
    raw, mean = (trace_of("normal", "loss", group) for group in ("raw", "smooth"))
    assert raw["line"]["width"] < mean["line"]["width"]
    assert raw["opacity"] < 1
    values = np.array(run.loss, dtype=float)
    # window(2000) is 41 records: 20 on either side where there are as many before.
    for x, y in list(zip(mean["x"], mean["y"], strict=True))[:: len(mean["x"]) // 20]:
        at = int(x) - 1
        assert y == pytest.approx(values[at - min(at, 20) : at + min(at, 20) + 1].mean(), rel=1e-5)
    assert mean["x"][-1] == 2000
    validation = trace_of("normal", "loss", "validation")
    assert validation["y"] == pytest.approx([figures["loss"] for _, figures in run.evaluations], rel=1e-5)
    assert "mean over 41 neighbouring records" in page_of("normal").text


def test_the_second_view_of_the_loss_is_logarithmic_and_holds_the_start() -> None:
    linear, logarithmic = page_of("normal").data()["charts"]["loss"]
    assert linear["layout"]["yaxis"]["type"] == "linear"
    assert logarithmic["layout"]["yaxis"]["type"] == "log"
    losses = [loss for loss in normal().loss if loss is not None]
    low, high = (10**end for end in logarithmic["layout"]["yaxis"]["range"])
    assert low < min(losses) < max(losses) < high
    low, high = linear["layout"]["yaxis"]["range"]
    outside = sum(not low <= loss <= high for loss in losses)
    named = re.search(r"(\d+) values are outside of the linear plot", page_of("normal").text)
    assert named is not None
    # The axis has room beyond the values that it was made for.
    assert 0 < outside <= int(named[1]) < outside + 10


def test_a_loss_below_zero_has_no_logarithmic_view_and_one_at_zero_is_a_gap_there() -> None:
    run = TrainingRecord(title="t", steps=[1, 2], loss=[1.0, -1.0])
    assert len(Document(training.training_page(run)).data()["charts"]["loss"]) == 1
    linear, logarithmic = (trace_of("gaps", "loss", "raw", view)["y"] for view in (0, 1))
    assert linear == [None, 2.0, None, None, 1.0, None, None, 0.0]
    assert logarithmic == [None, 2.0, None, None, 1.0, None, None, None]


def test_the_learning_rate_is_drawn_and_its_ends_are_named() -> None:
    rate = trace_of("normal", "rate", "rate")
    assert rate["y"][0] == pytest.approx(3e-5)
    assert max(rate["y"]) == pytest.approx(3e-3)
    assert "Highest 0.003 at step 100, last 0.0003." in page_of("normal").text


def test_each_validation_metric_has_a_view_with_the_primary_one_first_and_the_best_step_marked() -> None:
    views = page_of("normal").data()["charts"]["validation"]
    assert [view["layout"]["yaxis"]["title"]["text"] for view in views] == ["perplexity", "loss", "accuracy"]
    run = normal()
    for view, metric in zip(views, ("perplexity", "loss", "accuracy"), strict=True):
        curve, best = view["data"]
        assert curve["y"] == pytest.approx([figures[metric] for _, figures in run.evaluations], rel=1e-5)
        assert best["x"] == [1800]
        assert best["y"] == [curve["y"][curve["x"].index(1800)]]
    assert all(label.endswith("&#37;") for label in views[2]["layout"]["yaxis"]["ticktext"])


def test_what_is_missing_or_not_finite_is_a_gap_or_a_dash() -> None:
    page = page_of("gaps")
    assert tiles_of("gaps")["validation accuracy"].startswith("75.0 %")
    assert tiles_of("gaps")["time per step"] == f"{MISSING} | "
    assert "5 records are without a finite loss" in page.text
    assert f"accuracy {MISSING} {MISSING} f1 {MISSING} {MISSING}" in page.text
    assert f"T a b x {MISSING} {MISSING} 3 only one Empty No rows." in page.text
    assert trace_of("gaps", "chart-0", "s0")["y"] == [1.0, None, 3.0]
    assert trace_of("gaps", "chart-0", "s0")["mode"] == "lines+markers"
    assert "no learning rate was recorded" in page.text


def test_an_empty_run_and_one_of_one_step_say_what_they_lack() -> None:
    empty = page_of("empty").text
    assert empty.count("Nothing to draw") == 3
    assert "no evaluation took place" in empty
    assert tiles_of("empty")["steps"] == f"{MISSING} | "
    assert tiles_of("empty")["validation loss"] == f"{MISSING} | not evaluated"
    assert trace_of("one_step", "loss", "raw")["y"] == [5.25]
    assert trace_of("one_step", "loss", "raw")["mode"] == "lines+markers"
    axis = page_of("one_step").data()["charts"]["loss"][0]["layout"]["xaxis"]
    assert axis["ticktext"] == ["0", "1"]


def test_a_best_step_without_an_evaluation_takes_the_final_figure() -> None:
    run = TrainingRecord(title="t", best_step=7, final={"validation": {"loss": 0.5}}, evaluations=[(7, {"loss": NAN})])
    assert "0.5000" in Document(training.training_page(run)).text


def test_a_long_run_is_thinned_and_keeps_its_peak_and_its_gap() -> None:
    raw = trace_of("long", "loss", "raw")
    assert len(raw["x"]) <= 3 * 600
    assert max(y for y in raw["y"] if y is not None) == 41.5
    assert [x for x, y in zip(raw["x"], raw["y"], strict=True) if y is None] == [150_001]
    assert raw["x"] == sorted(raw["x"])
    assert "1 record is without a finite loss" in page_of("long").text
    low, high = page_of("long").data()["charts"]["loss"][0]["layout"]["yaxis"]["range"]
    assert 0.8 < low < high < 3, "the first steps and the peak do not flatten the rest"
    assert len(html_of("long")) < 6_000_000


@pytest.mark.parametrize("length", [1, 2, 1199, 1201, 5003])
def test_thinning_keeps_the_extremes_of_every_stretch(length: int) -> None:
    generator = np.random.default_rng(length)
    values = generator.normal(size=length)
    points: Gapped = [(float(i), None if i % 97 == 5 else float(v)) for i, v in enumerate(values)]
    kept = series.thinned(points)
    assert len(kept) <= 1800
    assert set(kept) <= set(points)
    assert kept == sorted(kept, key=lambda point: point[0])
    held = series.known(points)
    assert min(held, key=lambda point: point[1]) in kept
    assert max(held, key=lambda point: point[1]) in kept


def test_smoothing_averages_what_is_there_and_keeps_the_gaps() -> None:
    points: Gapped = [(i, None if i in (50, 51) else float(i)) for i in range(300)]
    assert series.window(300) == 7
    means = dict(series.smoothed(points))
    assert means[50] is None
    assert means[20] == 20.0
    assert means[49] == pytest.approx((46 + 47 + 48 + 49 + 52) / 5)
    assert (means[0], means[1], means[299]) == (0, 1, pytest.approx(297.5))
    assert series.smoothed([]) == []


def test_a_step_recorded_again_after_a_resumption_counts_once_and_as_it_was_last() -> None:
    assert series.by_step([1, 2, 3, 2, 3, 4], [5, 4, 9, 3, 2, 1]) == [(1, 5), (2, 3), (3, 2), (4, 1)]


def test_numbers_of_other_libraries_count_and_what_no_plot_can_hold_does_not() -> None:
    assert series.number(np.float32(0.5)) == 0.5
    assert series.number(np.int64(3)) == 3
    assert series.number(5e-324) == 0
    for value in (None, True, "1", NAN, -INF, 10**400, 1e101):
        assert series.number(value) is None


@pytest.mark.parametrize(
    "values", [[1e-13, 1e-13], [1e-14, 0.0], [1e-99], [1e-7, 3e-5], [-9e99, 9e99], [3.0, 3.0], [1.0, 1.0 + 1e-15], []]
)
def test_an_axis_covers_values_of_any_size_with_ticks_that_differ(values: list[float]) -> None:
    axis = series.value_axis("y", values)
    assert axis.low < axis.high
    assert all(axis.low <= value <= axis.high for value in values)
    labels = [label for _, label in axis.ticks]
    assert len(labels) == len(set(labels)) >= 3
    assert all(axis.low <= place <= axis.high for place, _ in axis.ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, MISSING),
        (0.0, "0"),
        (2.0811, "2.081"),
        (0.000431, "0.0004310"),
        (1234.4, "1,234"),
        (-5.12e12, f"{units.MINUS}5.120e+12"),
        (3e-5, f"3.000e{units.MINUS}05"),
    ],
)
def test_a_figure_of_unknown_size_has_four_significant_digits(value: float | None, text: str) -> None:
    assert units.figure(value) == text


def test_hostile_strings_are_text_wherever_they_stand() -> None:
    html, page = html_of("hostile"), page_of("hostile")
    assert len(page.scripts) == len(page_of("normal").scripts)
    assert not page.tags("img")
    assert not [attrs for attrs in page.tags("a") if not (attrs.get("href") or "").startswith("#")]
    for text in HOSTILE[:5]:
        assert " ".join(text.split()) in page.text
    data = re.findall(r'<script type="application/json" id="report-data">(.*?)</script>', html, re.DOTALL)[0]
    assert not set(data) & set("<>&\u2028\u2029")
    assert "\u202e" not in html
    html.encode("utf-8")

    def strings(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for item in value.values() for text in strings(item)]
        if isinstance(value, list):
            return [text for item in value for text in strings(item)]
        return [value] if isinstance(value, str) else []

    for text in strings(page.data()["charts"]):
        assert not set(re.sub(r"</?b>|<br>", "", text)) & set("<>%"), text


def test_whatever_is_endless_is_cut_and_the_page_says_so() -> None:
    text = page_of("hostile").text
    assert "500 more rows are left out here." in text
    assert "20 further series are left out." in text
    assert "10 and 49 more" in text
    assert "x" * 20_001 not in text
    run = EvaluationRecord(title="t", samples=[("s", "text")] * 103, notes=["n"] * 23)
    text = Document(training.evaluation_page(run)).text
    assert "3 more samples are left out here." in text
    assert "3 more warnings are left out." in text


def test_an_evaluation_has_its_figures_and_no_curves() -> None:
    page = page_of("evaluation")
    assert tiles_of("evaluation")["test accuracy"] == "91.3 % | higher is better"
    assert tiles_of("evaluation")["tokens per second"] == "45.2 k | "
    assert "Confusion matrix truth \\ prediction walking running sitting walking 96 4 0" in page.text
    assert "regard evaluate runs/best --out report" in page.text
    assert set(page.data()["charts"]) == {"chart-0"}
    predicted = Document(training.evaluation_page(EvaluationRecord(title="p"), kind="predict"))
    assert "p · regard predict" in predicted.text
    assert "No figure was given." in predicted.text


def test_a_column_of_words_wraps_and_one_of_figures_does_not() -> None:
    (table,) = re.findall(r"<bdi>Worst tokens</bdi>.*?</table>", html_of("normal"), re.DOTALL)
    assert re.findall(r'<th scope="col"( class="words")?>', table) == ["", "", ' class="words"']


def test_records_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 1 losses for 2 steps"):
        TrainingRecord(title="t", steps=[1, 2], loss=[1.0])
    with pytest.raises(ValueError, match="there are 3 learning rates for 2 steps"):
        TrainingRecord(title="t", steps=[1, 2], loss=[1.0, 2.0], learning_rate=[1, 2, 3])
    with pytest.raises(ValueError, match='must be "lower" or "higher", got \'less\''):
        TrainingRecord(title="t", better="less")  # type: ignore[arg-type]


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    training.write_training_report(RUNS["one_step"](), tmp_path / "report.html")
    training.write_evaluation_page(evaluation(), tmp_path / "evaluation.html", kind="predict")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html_of("one_step")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.html", "report.html"]
    with pytest.raises(OSError, match="missing"):
        training.write_training_report(RUNS["empty"](), tmp_path / "missing" / "report.html")


def test_the_report_needs_no_torch() -> None:
    code = (
        "import sys; from regard.report.training import training_page, evaluation_page;"
        "from regard.report.record import TrainingRecord; training_page(TrainingRecord(title='t'));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def opened(open_html: Any, tmp_path: Path, run: str, **how: Any) -> Any:
    path = tmp_path / f"{run}.html"
    path.write_text(html_of(run), encoding="utf-8")
    return open_html(path, **how)


@pytest.mark.parametrize(
    "run", ["empty", "normal", "hostile", *in_the_slow_run("one_step", "gaps", "constant", "evaluation")]
)
@browser
def test_curves_are_drawn_without_a_complaint_or_a_request(open_html: Any, tmp_path: Path, run: str) -> None:
    seen = opened(open_html, tmp_path, run)
    plots = seen.page.evaluate(
        "[...document.querySelectorAll('[data-chart]')]"
        ".map((plot) => plot.querySelectorAll('.scatterlayer .trace path').length)"
    )
    assert all(plots)
    assert len(plots) == len(page_of(run).data()["charts"])
    assert seen.complaints == []
    assert seen.outside() == []
    assert seen.page.evaluate("window.hacked") is None
    assert seen.page.query_selector_all("img, main a") == []


@pytest.mark.parametrize(
    ("run", "scheme"), [pytest.param("normal", "light", marks=pytest.mark.slow), ("hostile", "dark")]
)
@browser
def test_a_run_on_a_phone_scrolls_only_down(open_html: Any, tmp_path: Path, run: str, scheme: str) -> None:
    seen = opened(open_html, tmp_path, run, viewport=PHONE, touch=True, scheme=scheme)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    places = [box.bounding_box() for box in seen.page.query_selector_all("[data-chart] svg.main-svg, .card, h1")]
    assert places
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["width"] <= PHONE["width"]
    assert seen.complaints == []


@pytest.mark.slow
@browser
def test_the_logarithmic_view_and_the_dark_theme_redraw_the_loss(open_html: Any, tmp_path: Path) -> None:
    page = opened(open_html, tmp_path, "normal").page
    kind = "document.querySelector('#loss .plot').layout.yaxis.type"
    assert page.evaluate(kind) == "linear"
    page.locator("#loss [data-view='1']").click()
    page.wait_for_function(f"{kind} === 'log'")
    paper = "document.querySelector('#loss .main-svg').style.background"
    light = page.evaluate(paper)
    page.click("#theme")
    page.wait_for_function(f"{paper} !== {light!r}")
    assert page.evaluate(kind) == "log"
    page.locator("#loss .key", has_text="every record").click()
    page.wait_for_function(
        "document.querySelector('#loss .plot').data.filter((trace) => trace.visible !== false).length === 2"
    )
