"""From the children's parts to `results.json` and `results.csv`."""

from __future__ import annotations

import csv
import io
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from regard._version import VERSION
from regard.compare.job import Part
from regard.compare.mechanisms import YARDSTICK, title_of
from regard.compare.race_tasks import TASKS
from regard.compare.rank import cost_ratio, longest, rank, recommend
from regard.compare.settings import Settings, cores
from regard.registry import entry_of
from regard.wording import shown

SCHEMA = 1
_CPU_INFO = Path("/proc/cpuinfo")
_UNFINISHED = "not finished yet"


def machine(device: str) -> dict[str, Any]:
    """What the race runs on."""
    name = _cpu_name()
    if device == "cuda":
        import torch

        name = torch.cuda.get_device_name()
    return {
        "device": device,
        "device_name": name,
        "cores": cores(),
        "threads": 1,
        "torch": version("torch"),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }


def _cpu_name() -> str:
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def assemble(
    settings: Settings,
    parts: Mapping[str, Part],
    described: Mapping[str, Any],
    *,
    created: str,
    finished: bool,
    on_machine: Mapping[str, Any],
) -> dict[str, Any]:
    """The whole content of `results.json`.

    Args:
        settings: of the race.
        parts: by name of the mechanism.
        described: the prepared data's description.
        created: when the race was started.
        finished: whether every row is ok or failed.
        on_machine: see `machine`.
    """
    rows = rank([row_of(name, parts[name], settings) for name in settings.mechanisms])
    data = {
        key: value
        for key, value in described.items()
        if value != [] and key not in ("baselines", "factors", "labels", "sample_bytes", "shape")
    }
    return {
        "schema": SCHEMA,
        "regard": VERSION,
        "task": settings.task,
        "created": created,
        "finished": finished,
        "command": settings.command_line(),
        "settings": settings.as_json(),
        "machine": dict(on_machine),
        "data": data,
        "yardstick": YARDSTICK,
        "baselines": dict(described.get("baselines", {})),
        "rows": rows,
        "recommendation": recommend(rows, yardstick=YARDSTICK),
    }


def row_of(name: str, part: Part, settings: Settings) -> dict[str, Any]:
    """One mechanism's row, with as much as its part holds."""
    entry = entry_of(name)
    row: dict[str, Any] = {
        "name": name,
        "title": title_of(entry),
        "system": entry.system,
        "kind": entry.kind,
        **_status(part, settings),
        "rank": None,
        "pareto": False,
        "notes": [shown(note) for note in part.notes],
    }
    measured = part.measured
    if "size" in measured:
        size = measured["size"]
        row |= {key: size[key] for key in ("params", "mixer_params", "budget", "budget_deviation")}
        row[TASKS[settings.task].macs] = size["macs"]
    row |= _quality(part, settings)
    if "speed" in measured:
        row["training"] = {key: value for key, value in measured["speed"].items() if key != "took_s"}
    if "cost" in measured:
        row["cost"] = {key: value for key, value in measured["cost"].items() if key != "took_s"}
    if "decode" in measured:
        row |= {"decode": measured["decode"]["decode"], "decode_why": measured["decode"]["why"]}
    if "map" in measured:
        row |= {"map": measured["map"]["map"], "map_why": measured["map"]["why"]}
    return row


def _status(part: Part, settings: Settings) -> dict[str, Any]:
    if part.failed is not None:
        return {"status": "failed", "why": shown(part.failed, 300), "final": part.final}
    if part.done(settings):
        return {"status": "ok", "why": ""}
    return {"status": "unfinished", "why": _UNFINISHED}


def _quality(part: Part, settings: Settings) -> dict[str, Any]:
    runs = [part.runs[seed] for seed in sorted(part.runs)]
    curves = [run["curve"] for run in runs]
    if "broken_curve" in part.measured:
        curves.append(part.measured["broken_curve"])
    found: dict[str, Any] = {"curves": curves} if curves else {}
    if not runs:
        return found
    metric = TASKS[settings.task].metric
    per_seed = [run["quality"] for run in runs]
    found["quality"] = {
        "metric": metric.name,
        "better": metric.better,
        **_mean_and_spread(per_seed),
        "per_seed": per_seed,
    }
    found["extrapolation"] = [
        {
            "factor": point["factor"],
            "length": point["length"],
            **_mean_and_spread([run["extrapolation"][index]["value"] for run in runs]),
        }
        for index, point in enumerate(runs[0]["extrapolation"])
        if all(index < len(run["extrapolation"]) for run in runs)
    ]
    return found


def _mean_and_spread(values: Sequence[float]) -> dict[str, float | None]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "spread": spread}


# --------------------------------------------------------------------------------------------------- csv

_COLUMNS = (
    "rank",
    "name",
    "system",
    "kind",
    "status",
    "why",
    "metric",
    "quality",
    "spread",
    "at_2x",
    "at_4x",
    "at_8x",
    "params",
    "budget_deviation",
    "macs",
    "tokens_per_s",
    "step_ratio",
    "longest",
    "forward_ratio",
    "time_exponent",
    "memory_exponent",
    "decode_position",
    "decode_ratio",
    "state_bytes",
    "pareto",
)


def as_csv(results: Mapping[str, Any]) -> str:
    """The main figures as a table, one line per mechanism; the rest is in `results.json`."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    at = longest(results["rows"])
    for row in results["rows"]:
        writer.writerow({key: cell(value) for key, value in _flat(row, at).items()})
    return stream.getvalue()


def _flat(row: Mapping[str, Any], at: int | None) -> dict[str, Any]:
    quality, cost, training = (row.get(key) or {} for key in ("quality", "cost", "training"))
    decode = row.get("decode") or {"positions": []}
    beyond = {point["factor"]: point["mean"] for point in row.get("extrapolation", [])}
    flat = {key: row.get(key) for key in _COLUMNS if key in row}
    flat |= {
        "metric": quality.get("metric"),
        "quality": quality.get("mean"),
        "spread": quality.get("spread"),
        **{f"at_{factor}x": beyond.get(factor) for factor in (2, 4, 8)},
        "macs": row.get("macs_per_token", row.get("macs_per_image")),
        "tokens_per_s": training.get("tokens_per_s"),
        "step_ratio": training.get("ratio"),
        "longest": at,
        "forward_ratio": cost_ratio(row, at),
        "time_exponent": cost.get("time_exponent"),
        "memory_exponent": cost.get("memory_exponent"),
    }
    if decode["positions"]:
        flat |= {
            "decode_position": decode["positions"][-1],
            "decode_ratio": decode["ratio"][-1],
            "state_bytes": decode["state_bytes"][-1],
        }
    return flat


def cell(value: Any) -> Any:
    """A value that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
