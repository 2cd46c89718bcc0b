"""Reading a report in tests as a browser's parser would: elements, attributes, text, scripts."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from typing import Any

from sample_results import hostile_results, image_results, many_results, pretrained_results, results, series_results

VOID = {"meta", "link", "br", "img", "input", "hr", "path"}


class Document(HTMLParser):
    """The elements of a page, its visible text, and the content of its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        if tag not in VOID:
            assert self._open.pop() == tag, f"</{tag}> is not the innermost open element"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        elif not self._open or self._open[-1] != "style":
            self.texts.append(data)

    def tags(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    def data(self) -> dict[str, Any]:
        (text,) = [text for attrs, text in self.scripts if attrs.get("id") == "report-data"]

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(text, parse_constant=refuse)


def _one_row() -> dict[str, Any]:
    race = results()
    race["rows"] = race["rows"][1:2]
    race["recommendation"] = []
    return race


def _all_failed() -> dict[str, Any]:
    race = results()
    kept = ("name", "title", "system", "kind")
    rows = [{key: row[key] for key in kept} for row in race["rows"]]
    race["rows"] = [row | {"status": "failed", "why": "killed", "rank": None, "pareto": False} for row in rows]
    race["recommendation"] = []
    return race


def _one_seed() -> dict[str, Any]:
    race = results()
    for row in race["rows"][:-1]:
        row["quality"] |= {"spread": None, "per_seed": [row["quality"]["mean"]]}
        row["curves"] = row["curves"][:1]
        for point in row["extrapolation"]:
            point["spread"] = None
    return race


def _gaps() -> dict[str, Any]:
    """Everything that a row may lack, one thing per row, and figures that are not finite."""
    race = results()
    rows = race["rows"]
    rows[0] |= {"decode": None, "decode_why": "it keeps no state"}
    rows[1] |= {"map": None, "map_why": "it never forms a map"}
    rows[2]["cost"]["peak_bytes"] = [None] * len(rows[2]["cost"]["lengths"])
    rows[2]["cost"] |= {"memory_exponent": None, "time_exponent": float("nan")}
    rows[3]["quality"] = {"metric": "bits_per_byte", "better": "lower", "mean": float("nan"), "spread": float("inf")}
    rows[3]["curves"][0]["train"][3] = float("nan")
    rows[3]["curves"][1]["validation"] = [None] * 13
    rows[4]["cost"]["ratio"][-2:] = [None, float("nan")]
    rows[4]["map"]["heads"] = rows[4]["map"]["heads"][:2]
    rows[4]["map"]["heads"][0][5][2] = float("nan")
    rows[5] |= {"training": None, "curves": [], "extrapolation": [], "params": None, "rank": None}
    rows[6] = {"name": "sliding_window", "status": "unfinished", "why": "stopped"}
    rows.append({"status": "failed"})
    race |= {"baselines": None, "machine": None, "data": None, "settings": {"steps": None, "lengths": []}}
    return race


def _unfinished() -> dict[str, Any]:
    race = results()
    race["finished"] = False
    for row in race["rows"][3:6]:
        row |= {"status": "unfinished", "why": "the race was stopped", "rank": None, "cost": None, "map": None}
    return race


def _empty() -> dict[str, Any]:
    return {"schema": 1, "task": "text", "rows": [], "finished": False}


def _constant() -> dict[str, Any]:
    """Every figure the same, so that no axis has an extent of its own."""
    race = results()
    first = race["rows"][0]
    first["cost"] |= {"lengths": [256], "forward_s": [1e-3], "ratio": [1.0], "peak_bytes": [4096]}
    first["decode"] |= {"positions": [16], "s_per_token": [1e-5], "ratio": [1.0], "state_bytes": [64]}
    first["extrapolation"] = first["extrapolation"][:1]
    first["curves"] = [{"seed": 0, "steps": [0], "train": [2.0], "validation_steps": [0], "validation": [2.0]}]
    first["quality"]["spread"] = 0.0
    race["rows"] = [copy.deepcopy(first) | {"name": name} for name in ("softmax", "same", "equal")]
    return race


RACES = {
    "text": results,
    "image": image_results,
    "series": series_results,
    "pretrained": pretrained_results,
    "hostile": hostile_results,
    "many": many_results,
    "one_row": _one_row,
    "all_failed": _all_failed,
    "one_seed": _one_seed,
    "gaps": _gaps,
    "unfinished": _unfinished,
    "empty": _empty,
    "constant": _constant,
}
