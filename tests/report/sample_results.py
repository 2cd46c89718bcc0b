"""A race's results as `regard compare` writes them, made up but plausible and always the same."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

SAMPLE = "def merge(left, right):\n    out = []\n    while left and right:\n"
LENGTHS = [256, 512, 1024, 2048, 4096, 8192, 16384]
POSITIONS = [256, 1024, 4096, 16384]
STEPS = 300
TRAIN_LENGTH = 256
NUM_HEADS = 4
HOSTILE = (
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "</script><script>window.hacked=1</script>",
    "{{7*7}} {% raw %} ${7*7} %{x}",
    "<a href='https://evil.example/'>x</a><b>bold</b>",
    "名前 ✨ \u202eright-to-left \ud800 $\\frac{1}{2}$ _under_ &amp; \x00 \u2028",
    "long-" * 60,
)

TITLES = {
    "softmax": "Softmax attention",
    "lightning": "Lightning Attention",
    "hedgehog": "Hedgehog",
    "aaren": "Aaren",
    "lssar": "Length Scaled Softplus Attention with Re-weighting",
    "linear": "Linear attention (1 + elu)",
    "sliding_window": "Sliding-window attention",
}
# bits per byte, spread, loss per doubling beyond the training length, step ratio
QUALITY = {
    "softmax": (2.081, 0.009, 0.31, 1.0),
    "lightning": (2.104, 0.012, 0.01, 0.81),
    "hedgehog": (2.118, 0.011, 0.05, 1.12),
    "aaren": (2.246, 0.015, 0.02, 0.74),
    "lssar": (2.069, 0.008, 0.06, 1.42),
    "linear": (2.197, 0.018, 0.09, 0.78),
    "sliding_window": (2.122, 0.007, 0.004, 0.92),
}
# forward seconds at 256, time exponent, MiB at 256, memory exponent
COST = {
    "softmax": (2.1e-3, 1.86, 1.1, 1.02),
    "lightning": (2.3e-3, 1.02, 1.2, 1.0),
    "hedgehog": (3.1e-3, 1.04, 1.9, 1.0),
    "aaren": (1.6e-3, 1.06, 0.9, 1.01),
    "lssar": (3.4e-3, 1.93, 2.6, 1.97),
    "linear": (1.9e-3, 1.01, 1.0, 1.0),
    "sliding_window": (2.2e-3, 1.05, 1.1, 1.0),
}
# seconds per token at 256, its exponent, state bytes at 256, their exponent
DECODE = {
    "softmax": (46e-6, 0.42, 2**18, 1.0),
    "lightning": (51e-6, 0.0, 2**16, 0.0),
    "hedgehog": (63e-6, 0.0, 2**17, 0.0),
    "aaren": (31e-6, 0.0, 2**11, 0.0),
    "lssar": (58e-6, 0.5, 2**18, 1.0),
    "linear": (44e-6, 0.0, 2**16, 0.0),
    "sliding_window": (45e-6, 0.05, 2**16, 0.02),
}
RANKS = {name: rank for rank, name in enumerate(sorted(QUALITY, key=lambda name: QUALITY[name][0]), start=1)}


def results() -> dict[str, Any]:
    """Return a finished text race of eight mechanisms, one of which failed."""
    rows = [_row(index, name) for index, name in enumerate(TITLES)]
    rows.append(
        {
            "name": "lssa",
            "title": "Length Scaled Softplus Attention",
            "system": "softplus",
            "kind": "sequence",
            "status": "failed",
            "why": "out of memory at 16,384 tokens: 2.1 GiB asked for, 1.4 GiB free",
            "rank": None,
            "pareto": False,
        }
    )
    return {
        "schema": 1,
        "regard": "0.1.0",
        "task": "text",
        "created": "2026-03-14T09:26:53Z",
        "finished": True,
        "command": "regard compare text --mechanisms all --lengths 256,512,1024,2048,4096,8192,16384 --seeds 3",
        "settings": {
            "mechanisms": [row["name"] for row in rows],
            "lengths": LENGTHS,
            "train_length": TRAIN_LENGTH,
            "steps": STEPS,
            "seeds": 3,
            "batch": 16,
            "dim": 128,
            "num_layers": 2,
            "num_heads": NUM_HEADS,
            "device": "cpu",
            "jobs": 1,
        },
        "machine": {
            "device": "cpu",
            "device_name": "AMD EPYC 7B13",
            "cores": 2,
            "threads": 1,
            "torch": "2.15.0",
            "python": "3.11.7",
            "platform": "Linux-6.1.0-x86_64",
        },
        "data": {
            "source": "the Python standard library's own sources",
            "description": "Python's standard library, 1,214 files of source text",
            "train_bytes": 11_904_112,
            "validation_bytes": 1_322_679,
            "sample": SAMPLE,
        },
        "yardstick": "softmax",
        "baselines": {"uniform": 8.0, "unigram": 4.72},
        "rows": rows,
        "recommendation": [
            {
                "question": "Best quality",
                "name": "lssar",
                "sentence": "2.069 bits/byte, 0.012 below softmax, at 2.21 times its forward time at 16,384 tokens.",
            },
            {
                "question": "Best at long context",
                "name": "lightning",
                "sentence": "2.134 bits/byte at 8 times the training length, in 0.03 times softmax's forward time.",
            },
            {
                "question": "Best decoding",
                "name": "aaren",
                "sentence": "31 µs per token at any position, from a state of 2 KiB.",
            },
        ],
    }


def image_results() -> dict[str, Any]:
    """Return an image race: accuracy, one seed, no extrapolation, no decoding, a feature mixer without a map."""
    race = results()
    race |= {"task": "image", "baselines": {"chance": 0.1}, "command": "regard compare image"}
    race["data"] = {
        "source": "scikit-learn's digits",
        "description": "1,797 handwritten digits, 8 by 8 pixels",
        "classes": [str(digit) for digit in range(10)],
        "train_images": 1437,
        "validation_images": 360,
    }
    for index, row in enumerate(race["rows"]):
        if row["status"] == "failed":
            continue
        mean = 0.964 - 0.007 * index
        row["quality"] = {"metric": "accuracy", "better": "higher", "mean": mean, "spread": None, "per_seed": [mean]}
        row["macs_per_image"] = row.pop("macs_per_token")
        row |= {"extrapolation": [], "decode": None, "decode_why": "images are not decoded", "rank": index + 1}
        row["pareto"] = index in (0, 1, 3)
        row["curves"] = row["curves"][:1]
    feature = copy.deepcopy(race["rows"][6])
    feature |= {"name": "eca", "title": "ECA", "system": "eca", "kind": "feature", "rank": 8, "pareto": False}
    feature["map"] = None
    feature["map_why"] = "a channel gate has no map between tokens"
    race["rows"].insert(7, feature)
    race["recommendation"] = race["recommendation"][:1]
    return race


def series_results() -> dict[str, Any]:
    """Return a race on a series: mean squared errors over three seeds, no extrapolation, maps over time steps."""
    race = results()
    baselines = {"repeating the last value": 0.62, "training mean": 1.08}
    race |= {"task": "series", "baselines": baselines, "command": "regard compare series --data ETTh1.csv"}
    race["data"] = {
        "source": "/data/ETTh1.csv",
        "description": "ETTh1.csv: 17,420 rows of 7 channels; 8,640 train, 2,880 validate, 2,880 test",
        "channels": ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"],
        "horizon": 96,
    }
    race["settings"]["train_length"] = 96
    ok = sorted((row for row in race["rows"] if row["status"] == "ok"), key=lambda row: row["rank"])
    for index, row in enumerate(ok):
        mean = 0.341 + 0.0123 * index
        per_seed = [mean - 0.0041, mean, mean + 0.0041]
        row["quality"] = {"metric": "mse", "better": "lower", "mean": mean, "spread": 0.0041, "per_seed": per_seed}
        row["extrapolation"] = []
        tokens = len(row["map"]["labels"])
        row["map"]["labels"] = [f"t\u2212{back}" if back else "t" for back in range(tokens - 1, -1, -1)]
        for curve in row["curves"]:
            curve |= {part: [round(value - 1.74, 4) for value in curve[part]] for part in ("train", "validation")}
    race["rows"].sort(key=lambda row: row["rank"] or 99)
    race["recommendation"] = race["recommendation"][:1]
    race["recommendation"][0]["sentence"] = "0.341 mse (± 0.0041 over 3 seeds)."
    return race


def pretrained_results() -> dict[str, Any]:
    """Return a race inside a trained model: nothing learned, no maps, quality by the length of the prompt."""
    race = results()
    race |= {"task": "pretrained", "yardstick": "sdpa", "baselines": {}}
    race["command"] = "regard compare text --model models/llama --lengths 1024,4096 --budgets 64,256"
    names = ("sdpa", "softmax", "hip 256", "streaming_llm 64", "recycled 64")
    ok = sorted((row for row in race["rows"] if row["status"] == "ok"), key=lambda row: row["rank"])
    for index, (row, name) in enumerate(zip(ok, names, strict=False)):
        perplexity = [4.2 + 0.07 * index, 4.1 + 0.11 * index]
        row |= {"name": name, "title": name, "kind": "inference", "extrapolation": [], "notes": []}
        row["quality"] = {
            "metric": "perplexity",
            "better": "lower",
            "mean": perplexity[-1],
            "spread": None,
            "per_seed": perplexity[-1:],
        }
        row["inference"] = {
            "lengths": [1024, 4096],
            "perplexity": perplexity,
            "excess": [value / own - 1 for value, own in zip(perplexity, (4.2, 4.1), strict=True)],
            "needle": [None, 0.8 - 0.15 * index],
            "mass": [1 - 0.04 * index, 1 - 0.07 * index],
        }
        for part in ("curves", "map", "params", "mixer_params", "budget_deviation", "training", "macs_per_token"):
            row.pop(part, None)
    race["rows"] = [*ok[: len(names)], *(row for row in race["rows"] if row["status"] == "failed")]
    race["recommendation"] = [{"question": "Fastest decoding", "name": "hip 256", "sentence": "0.61 times sdpa's."}]
    return race


def hostile_results() -> dict[str, Any]:
    """Return a race in which every string is an attack, an oddity or very long."""
    race = results()
    counter = iter(range(10**9))

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoil(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [spoil(item, key) for item in value]
        if isinstance(value, str) and key not in ("status", "metric", "better", "name", "yardstick", "task"):
            return HOSTILE[next(counter) % len(HOSTILE)]
        return value

    spoiled = {key: spoil(value, key) for key, value in race.items()}
    names = {row["name"]: HOSTILE[index % len(HOSTILE)] for index, row in enumerate(spoiled["rows"])}
    for row in spoiled["rows"]:
        row["name"] = names[row["name"]]
    for item in spoiled["recommendation"]:
        item["name"] = names[item["name"]]
    spoiled["yardstick"] = names["softmax"]
    spoiled["baselines"] = {text: 2.1 + index / 50 for index, text in enumerate(HOSTILE)}
    spoiled["data"] |= {text: text for text in HOSTILE}
    spoiled["settings"] |= {text: [text, {text: text}] for text in HOSTILE}
    spoiled["task"] = HOSTILE[0]
    return spoiled


def many_results(count: int = 30) -> dict[str, Any]:
    """Return a race of `count` mechanisms."""
    race = results()
    rows = []
    for index in range(count):
        row = copy.deepcopy(race["rows"][index % len(TITLES)])
        if index >= len(TITLES):
            row["name"] = f"{row['name']}_{index}"
            row["quality"]["mean"] += 0.005 * index
            row["pareto"] = False
        row["rank"] = index + 1
        row["cost"]["ratio"] = [value * (1 + 0.03 * index) for value in row["cost"]["ratio"]]
        row["cost"]["forward_s"] = [value * (1 + 0.03 * index) for value in row["cost"]["forward_s"]]
        rows.append(row)
    race["rows"] = rows
    return race


def _row(index: int, name: str) -> dict[str, Any]:
    mean, spread, fade, step = QUALITY[name]
    base, power, mebibytes, memory_power = COST[name]
    token, token_power, state, state_power = DECODE[name]
    random = np.random.default_rng(100 + index)
    softmax_s = [_grown(2.1e-3, 1.86, n, LENGTHS[0]) for n in LENGTHS]
    forward_s = [_grown(base, power, n, LENGTHS[0]) * float(random.uniform(0.96, 1.04)) for n in LENGTHS]
    if name == "softmax":
        forward_s = list(softmax_s)
    per_seed = [mean + spread * offset for offset in (-1.0, 0.0, 1.0)]
    token_s = [_grown(token, token_power, p, POSITIONS[0]) for p in POSITIONS]
    softmax_token_s = [_grown(46e-6, 0.42, p, POSITIONS[0]) for p in POSITIONS]
    return {
        "name": name,
        "title": TITLES[name],
        "system": "softplus" if name == "lssar" else name,
        "kind": "sequence",
        "status": "ok",
        "why": "",
        "rank": RANKS[name],
        "pareto": name in ("lssar", "softmax", "lightning", "aaren"),
        "params": 462_336 + 311 * index,
        "mixer_params": 131_072 + 311 * index,
        "budget_deviation": round((index - 3) * 0.0013, 4),
        "macs_per_token": 528_384 + 16_384 * index,
        "quality": {"metric": "bits_per_byte", "better": "lower", "mean": mean, "spread": spread, "per_seed": per_seed},
        "extrapolation": [
            {
                "factor": factor,
                "length": factor * TRAIN_LENGTH,
                "mean": mean + fade * math.log2(factor),
                "spread": spread * (1 + 0.5 * math.log2(factor)),
            }
            for factor in (1, 2, 4, 8)
        ],
        "training": {"tokens_per_s": 15_300 / step, "ratio": step, "steps": STEPS},
        "curves": [_curve(seed, final, random) for seed, final in enumerate(per_seed)],
        "cost": {
            "lengths": LENGTHS,
            "forward_s": forward_s,
            "yardstick_s": softmax_s,
            "ratio": [ours / theirs for ours, theirs in zip(forward_s, softmax_s, strict=True)],
            "peak_bytes": [_grown(mebibytes * 2**20, memory_power, n, LENGTHS[0]) for n in LENGTHS],
            "time_exponent": power,
            "memory_exponent": memory_power,
        },
        "decode": {
            "positions": POSITIONS,
            "s_per_token": token_s,
            "yardstick_s": softmax_token_s,
            "ratio": [ours / theirs for ours, theirs in zip(token_s, softmax_token_s, strict=True)],
            "state_bytes": [round(_grown(state, state_power, p, POSITIONS[0])) for p in POSITIONS],
        },
        "decode_why": "",
        "map": {"heads": _heads(name, random), "labels": list(SAMPLE), "signed": name == "lightning"},
        "map_why": "",
    }


def _grown(start: float, power: float, length: int, first: int) -> float:
    return float(start * (length / first) ** power)


def _curve(seed: int, final: float, random: np.random.Generator) -> dict[str, Any]:
    def loss(step: int) -> float:
        return final + 5.9 * math.exp(-step / 22) + 0.9 * math.exp(-step / 90)

    steps = list(range(1, STEPS + 1, 5))
    validation_steps = list(range(0, STEPS + 1, 25))
    return {
        "seed": seed,
        "steps": steps,
        "train": [round(loss(step) + float(random.normal(0, 0.05)), 4) for step in steps],
        "validation_steps": validation_steps,
        "validation": [round(loss(step) + float(random.normal(0, 0.012)), 4) for step in validation_steps],
    }


def _heads(name: str, random: np.random.Generator) -> list[list[list[float]]]:
    tokens = len(SAMPLE)
    query, key = np.mgrid[0:tokens, 0:tokens]
    causal = key <= query
    heads = []
    for head in range(NUM_HEADS):
        scores = random.normal(0, 1.1, (tokens, tokens))
        if name == "lightning":
            matrix = np.where(causal, random.normal(0, 0.3, (tokens, tokens)) * 0.9 ** ((query - key) / (head + 1)), 0)
            heads.append(np.round(matrix, 4).tolist())
            continue
        match name:
            case "aaren":
                scores = np.repeat(random.normal(0, 1.2, (1, tokens)), tokens, axis=0)
            case "sliding_window":
                scores = np.where(query - key < 16, scores, -np.inf)
            case "lssar":
                scores = 3 * scores
            case "linear":
                scores = 0.3 * scores
            case _:
                same = np.array([[a == b for b in SAMPLE] for a in SAMPLE])
                scores = scores + 1.8 * same * (head % 2) - 0.08 * (query - key) * ((head + 1) % 2)
        weights = np.where(causal, np.exp(scores), 0)
        heads.append(np.round(weights / weights.sum(-1, keepdims=True), 4).tolist())
    return heads
