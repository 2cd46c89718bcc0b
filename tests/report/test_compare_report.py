from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import RACES, Document
from PIL import Image
from sample_results import HOSTILE, results

from regard.report.compare import render, write_pngs
from regard.report.palette import SCALES, THEMES
from regard.report.units import MISSING, TIMES

PICTURES = ["quality_vs_cost.png", "cost_vs_length.png", "training_curves.png", "overview.png"]


@lru_cache(maxsize=16)
def html_of(race: str) -> str:
    return render(RACES[race]())


@lru_cache(maxsize=16)
def page_of(race: str) -> Document:
    return Document(html_of(race))


def rows_of(html: str) -> list[str]:
    (table,) = re.findall(r'<table class="ranking sortable">.*?</table>', html, re.DOTALL)
    (body,) = re.findall(r"<tbody>(.*)</tbody>", table, re.DOTALL)
    return [" ".join(Document(row).text.split()) for row in re.findall(r"<tr.*?</tr>", body, re.DOTALL)]


@pytest.mark.parametrize("race", RACES)
def test_every_race_gives_a_well_formed_page(race: str) -> None:
    page = page_of(race)
    assert html_of(race).startswith("<!DOCTYPE html>")
    assert len(page.tags("h1")) == 1
    identities = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(identities) == len(set(identities))
    assert not re.search(r"\b(nan|inf|None|undefined)\b", page.text)


@pytest.mark.parametrize("race", RACES)
def test_nothing_refers_to_anything_outside_the_page(race: str) -> None:
    for tag, attrs in page_of(race).elements:
        assert tag not in ("iframe", "img", "object", "embed", "base", "form")
        for name, value in attrs.items():
            assert not name.startswith("on"), f"<{tag} {name}> would run a script"
            if name in ("src", "href", "srcset", "action", "data"):
                assert value is not None
                assert value.startswith(("#", "data:")), f"<{tag} {name}={value!r}>"
    style = "".join(re.findall(r"<style>(.*?)</style>", html_of(race), re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("race", ["text", "hostile"])
def test_the_content_policy_allows_exactly_the_scripts_of_the_page(race: str) -> None:
    page = page_of(race)
    (policy,) = [m["content"] for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    scripts = [text for attrs, text in page.scripts if "type" not in attrs]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert rules["script-src"].split() == [f"'sha256-{value}'" for value in hashes]
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    assert "connect-src" not in rules


def test_plotly_is_inlined_once_and_the_page_stays_small() -> None:
    page = page_of("text")
    assert sum("plotly.js v" in text for _, text in page.scripts) == 1
    assert len(html_of("text").encode()) < 7 * 2**20
    assert len(html_of("many").encode()) < 12 * 2**20


@pytest.mark.parametrize("race", RACES)
def test_every_figure_is_valid_plotly_in_both_themes(race: str) -> None:
    from plotly import graph_objects

    def paint(value: Any, theme: str) -> Any:
        if isinstance(value, dict):
            return {key: paint(item, theme) for key, item in value.items()}
        if isinstance(value, list):
            return [paint(item, theme) for item in value]
        if isinstance(value, str) and value.startswith("theme:"):
            return (THEMES[theme] | SCALES[theme])[value.removeprefix("theme:")]
        return value

    charts = page_of(race).data()["charts"]
    for theme in ("light", "dark"):
        for views in charts.values():
            for view in views:
                graph_objects.Figure(paint(view, theme))
    assert bool(charts) == (race not in ("all_failed", "empty"))


def test_the_page_says_what_was_raced_and_what_to_take() -> None:
    page, race = page_of("text"), results()
    assert "8 attention mechanisms on byte\u2011level language modelling" in page.text
    assert race["data"]["description"] in page.text
    for item in race["recommendation"]:
        assert item["question"] in page.text
        assert item["sentence"] in page.text
    for row in race["rows"]:
        assert row["title"] in page.text
    assert race["command"] in page.text
    assert "AMD EPYC 7B13" in page.text
    assert "11.4 MiB" in page.text
    assert "uniform 8.000" in page.text


def test_rows_are_ranked_and_failed_ones_come_last_with_their_reason() -> None:
    rows = rows_of(html_of("text"))
    order = sorted(results()["rows"], key=lambda row: row["rank"] or 99)
    assert len(rows) == len(order)
    for text, row in zip(rows, order, strict=True):
        assert row["title"] in text
    assert rows[0].startswith("1 Length Scaled Softplus Attention with Re-weighting lssar Pareto 2.069 ± 0.008 2.129")
    assert rows[-1].endswith("failed: out of memory at 16,384 tokens: 2.1 GiB asked for, 1.4 GiB free")
    assert sum("Pareto" in row for row in rows) == 4


def test_a_row_holds_every_figure_in_units_for_people() -> None:
    (aaren,) = [row for row in rows_of(html_of("text")) if "aaren" in row]
    row = results()["rows"][3]
    expected = [
        "2.246 ± 0.015",
        "2.266",
        "2.286",
        "2.306",
        "20.7 k",
        f"0.740{TIMES}",
        f"{row['cost']['ratio'][-1]:.4f}{TIMES}",
        "1.06",
        f"{row['decode']['ratio'][-1]:.3f}{TIMES}",
        "2.00 KiB",
        "463 k",
        "0.0 %",
        "578 k",
    ]
    assert aaren.split("Pareto ")[1] == " ".join(expected)


def test_the_best_figures_of_a_column_are_marked() -> None:
    table = re.findall(r"<tbody>.*?</tbody>", html_of("text"), re.DOTALL)[0]
    cells = re.findall(r'<td data-value="([^"]*)" class="(?:first )?(best)?">', table)
    columns = 13
    for index, best in ((0, min), (4, max), (5, min), (6, min), (8, min), (9, min)):
        column = [(float(value), bool(mark)) for value, mark in cells[index::columns]]
        assert len(column) == 7
        expected = best(value for value, _ in column)
        assert [mark for _, mark in column] == [value == expected for value, _ in column]
    assert not any(mark for _, mark in cells[10::columns])


def test_charts_show_fitted_exponents_ratios_and_every_mechanism() -> None:
    page = page_of("text")
    charts = page.data()["charts"]
    assert set(charts) == {"pareto", "time", "memory", "decode", "state", "curves", "extrapolation"}
    for name, power in (("softmax", "1.86"), ("lightning", "1.02")):
        assert f"{name} n^{power}" in page.text
    time, relative = charts["time"]
    assert {trace["name"] for trace in time["data"]} == {row["name"] for row in results()["rows"][:-1]}
    softmax = next(trace for trace in time["data"] if trace["name"] == "softmax")
    assert softmax["y"][0] == pytest.approx(2.1e-3)
    assert f"1.00{TIMES} the yardstick" in softmax["hovertext"][0]
    assert "fitted: n^1.86" in softmax["hovertext"][0]
    twin = next(trace for trace in relative["data"] if trace["name"] == "softmax")
    assert twin["y"] == [1.0] * len(twin["y"])
    memory = next(trace for trace in charts["memory"][1]["data"] if trace["name"] == "linear")
    ours, theirs = results()["rows"][5]["cost"], results()["rows"][0]["cost"]
    expected = [a / b for a, b in zip(ours["peak_bytes"], theirs["peak_bytes"], strict=True)]
    assert memory["y"] == pytest.approx(expected, rel=1e-5)


def test_one_mechanism_has_one_colour_in_all_charts() -> None:
    colours: dict[str, set[str]] = {}
    for views in page_of("text").data()["charts"].values():
        for view in views:
            for trace in view["data"]:
                if "legendgroup" in trace:
                    colours.setdefault(trace["legendgroup"], set()).add(trace["line"]["color"])
    assert len(colours) == 7
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 7


def test_thirty_mechanisms_differ_by_colour_dash_or_marker() -> None:
    time = page_of("many").data()["charts"]["time"][0]["data"]
    looks = {(t["line"]["color"], t["line"]["dash"]) for t in time}
    assert len(time) == len(looks) == 30


def test_the_learning_curves_show_each_seed_and_their_mean() -> None:
    validation, train = page_of("text").data()["charts"]["curves"]
    row = results()["rows"][1]
    traces = [trace for trace in validation["data"] if trace["name"] == "lightning"]
    assert len(traces) == 4
    seeds = np.array([curve["validation"] for curve in row["curves"]])
    assert traces[-1]["y"] == pytest.approx(seeds.mean(0).tolist(), abs=1e-4)
    assert [trace.get("opacity", 1) for trace in traces] == [0.28, 0.28, 0.28, 1]
    assert len([trace for trace in train["data"] if trace["name"] == "lightning"]) == 4
    single = page_of("one_seed").data()["charts"]["curves"][0]["data"]
    assert len([trace for trace in single if trace["name"] == "lightning"]) == 1


def test_the_front_is_drawn_through_the_pareto_rows_from_cheap_to_dear() -> None:
    traces = page_of("text").data()["charts"]["pareto"][0]["data"]
    front = traces[0]
    assert front["mode"] == "lines"
    chosen = [row for row in results()["rows"] if row["pareto"]]
    expected = sorted((row["cost"]["ratio"][-1], row["quality"]["mean"]) for row in chosen)
    assert front["x"] == pytest.approx([x for x, _ in expected], rel=1e-5)
    assert front["y"] == pytest.approx([y for _, y in expected], rel=1e-5)


def test_maps_carry_every_head_and_a_signed_one_is_centred_on_zero() -> None:
    page = page_of("text")
    maps = dict(zip([row["name"] for row in _ranked()], page.data()["maps"], strict=True))
    assert maps["lssa"] is None
    assert "No map: failed: out of memory" in page.text
    assert [len(maps[name]["heads"]) for name in ("softmax", "lightning")] == [4, 4]
    assert maps["lightning"]["signed"]
    assert maps["lightning"]["low"] == -maps["lightning"]["high"] < 0
    assert maps["softmax"]["low"] == 0 < maps["softmax"]["high"] <= 1
    assert maps["softmax"]["heads"][2] == results()["rows"][0]["map"]["heads"][2]
    assert "it never forms a map" in page_of("gaps").text


def _ranked() -> list[dict[str, Any]]:
    return sorted(results()["rows"], key=lambda row: row["rank"] or 99)


def test_every_chart_and_map_has_a_text_alternative() -> None:
    page = page_of("text")
    drawn = [attrs for _, attrs in page.elements if "data-chart" in attrs or "data-map" in attrs]
    assert len(drawn) == 7 + 7
    for attrs in drawn:
        assert attrs["role"] == "img"
        assert len(attrs["aria-label"] or "") > 40
    labels = {attrs["data-chart"]: attrs["aria-label"] or "" for attrs in drawn if "data-chart" in attrs}
    assert "On the Pareto front: lssar, softmax, lightning and aaren." in labels["pareto"]
    assert f"softmax from 2.10 ms to {2.1e-3 * 64**1.86:.2f} s, n^1.86" in labels["time"]


def test_an_image_race_speaks_of_accuracy_and_has_no_extrapolation() -> None:
    page = page_of("image")
    assert "on image classification" in page.text
    assert "Higher is better" in page.text
    assert "96.4 %" in page.text
    assert "Beyond the training length" not in page.text
    assert f"at 2{TIMES}" not in page.text
    assert "MACs/image" in page.text
    assert "images/s" in page.text
    assert "tokens/s" not in page.text
    assert "Patches of the sample, by row and column" in page.text
    assert "a channel gate has no map between tokens" in page.text
    assert set(page.data()["charts"]) == {"pareto", "time", "memory", "curves"}


def test_a_series_race_speaks_of_mse_and_time_steps() -> None:
    page = page_of("series")
    assert "on time\u2011series forecasting" in page.text
    assert "Ranked by validation mse; lower is better." in page.text
    assert "repeating the last value 0.620, training mean 1.08" in page.text
    assert rows_of(html_of("series"))[0].split("Pareto ")[1].startswith("0.341 ± 0.0041 ")
    assert "Beyond the training length" not in page.text
    assert "MACs/time step" in page.text
    assert "time steps/s" in page.text
    assert "Time steps of the sample, counted back from the last, t" in page.text
    assert "t\u22122 t\u22121 t" in page.text
    assert "standardised by the mean and the standard deviation of the training part" in page.text
    assert "Mean validation mse by training step" in page.text
    charts = page.data()["charts"]
    assert set(charts) == {"pareto", "time", "memory", "decode", "state", "curves"}
    assert charts["pareto"][0]["layout"]["yaxis"]["title"]["text"] == "mse (lower is better)"
    notes = [note["text"] for note in charts["curves"][0]["layout"]["annotations"]]
    assert notes == ["repeating the last value 0.62", "training mean 1.08"]


def test_a_race_inside_a_model_speaks_of_prompts_and_shows_no_learning() -> None:
    page = page_of("pretrained")
    for text in (
        "Perplexity against length",
        "Hidden numbers found",
        "Attention mass recovered",
        "Prompt time against",
    ):
        assert text in page.text
    assert "Nothing is trained" in page.text
    for text in ("Learning curves", "Forward time", "Attention maps", "same parameter budget"):
        assert text not in page.text
    first = rows_of(html_of("pretrained"))[0]
    assert "100.0 %" in first
    assert "80.0 %" in first


def test_baselines_stand_only_beside_curves_of_the_same_quality() -> None:
    race = RACES["image"]()
    race["baselines"] = {"most frequent class": 2.3}
    layout = Document(render(race)).data()["charts"]["curves"][0]["layout"]
    assert layout["yaxis"]["range"][0] < 2.3 < layout["yaxis"]["range"][1]
    assert layout["annotations"] == layout["shapes"] == []


def test_a_tiny_error_is_not_rounded_to_nothing() -> None:
    race = RACES["series"]()
    race["rows"][0]["quality"] |= {"mean": 0.000412, "spread": 0.0000123}
    race["rows"][0]["curves"] = [
        {"seed": 0, "steps": [1], "train": [0.000433], "validation_steps": [1], "validation": [0.000412]}
    ]
    html = render(race)
    assert "0.000412 ± 1.2e\u221205" in " ".join(rows_of(html))
    assert "softplus 0.000" not in Document(html).text
    assert "lssar 0.000412" in Document(html).text


def test_one_seed_shows_no_spread() -> None:
    assert "±" not in " ".join(rows_of(html_of("one_seed")))
    assert "error_y" not in json.dumps(page_of("one_seed").data()["charts"])


def test_an_unfinished_race_says_so_and_a_failed_one_too() -> None:
    assert "This race is unfinished" in page_of("unfinished").text
    assert "unfinished" not in page_of("text").text
    failed = page_of("all_failed")
    assert "Every mechanism failed" in failed.text
    assert failed.text.count("failed: killed") == 2 * 8  # in the table and instead of the map
    assert failed.data()["charts"] == {}
    assert failed.text.count("Nothing to draw") == 7
    assert "No recommendation" in failed.text
    assert "no rows yet" in page_of("empty").text


def test_what_is_missing_is_a_dash_or_a_reason_and_never_a_figure() -> None:
    page = page_of("gaps")
    rows = {re.split(r" (?:Pareto|\d\.)", row)[0].split()[-1]: row for row in rows_of(html_of("gaps"))}
    assert "it keeps no state" in page.text
    assert f"aaren Pareto {MISSING} 2.266" in rows["aaren"]
    assert "at 4,096" in rows["lssar"]  # measured at a shorter length only
    names = {trace["name"] for trace in page.data()["charts"]["memory"][0]["data"]}
    assert "hedgehog" not in names
    assert "failed: no reason was recorded" in page.text


def test_hostile_strings_are_text_wherever_they_stand() -> None:
    html, page = html_of("hostile"), page_of("hostile")
    assert len(page.scripts) == len(page_of("text").scripts)
    assert not page.tags("img")
    assert not [attrs for attrs in page.tags("a") if not (attrs.get("href") or "").startswith("#")]
    for text in HOSTILE[:5]:
        assert " ".join(text.split()) in page.text
    data = re.findall(r'<script type="application/json" id="report-data">(.*?)</script>', html, re.DOTALL)[0]
    assert not set(data) & set("<>&\u2028\u2029")
    assert "\u202e" not in html
    html.encode("utf-8")


def test_plotly_gets_no_markup_and_no_template_from_strings() -> None:
    def strings(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for item in value.values() for text in strings(item)]
        if isinstance(value, list):
            return [text for item in value for text in strings(item)]
        return [value] if isinstance(value, str) else []

    for text in strings(page_of("hostile").data()["charts"]):
        bare = re.sub(r"</?b>|<br>", "", text)
        assert not set(bare) & set("<>%"), text


def test_another_schema_and_ill_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="schema 2, and this report reads schema 1"):
        render({"schema": 2, "rows": []})
    with pytest.raises(ValueError, match="must be a list, got str"):
        render({"schema": 1, "rows": "softmax"})


def test_rendering_leaves_the_results_as_they_were() -> None:
    race, untouched = results(), results()
    render(race)
    assert race == untouched


def test_the_report_needs_neither_torch_nor_pyplot(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from regard.report.compare import render, write_pngs;"
        "race = {'schema': 1, 'task': 'text', 'rows': []}; render(race); write_pngs(race, Path(sys.argv[1]));"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


@pytest.mark.parametrize("race", RACES)
def test_pictures_are_written_for_every_race(race: str, tmp_path: Path) -> None:
    paths = write_pngs(RACES[race](), tmp_path)
    pictures = [
        name if race != "pretrained" else name.replace("training_curves", "quality_vs_length") for name in PICTURES
    ]
    assert [path.name for path in paths] == pictures
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(pictures)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[1] == (1280 if path.name.startswith("quality") else 1600)
        assert (pixels == 255).all(-1).mean() < 0.999
    coloured = np.ptp(pixels.astype(int), axis=-1) > 60
    assert coloured.any() == (race not in ("all_failed", "empty"))


def test_pictures_need_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        write_pngs(results(), tmp_path / "missing")
