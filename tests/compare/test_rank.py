from __future__ import annotations

import pytest

from regard.compare.rank import cost_ratio, longest, pareto_front, rank, recommend, within_spread


def row(name, mean, *, ratio=1.0, spread=None, at8=None, decode=None, metric="bits_per_byte", status="ok", state=4096):
    return {
        "name": name,
        "status": status,
        "quality": {
            "metric": metric,
            "better": "higher" if metric == "accuracy" else "lower",
            "mean": mean,
            "spread": spread,
            "per_seed": [mean] * (1 if spread is None else 3),
        },
        "extrapolation": [] if at8 is None else [{"factor": 1, "mean": mean}, {"factor": 8, "mean": at8}],
        "cost": {"lengths": [64, 512], "ratio": [1.0, ratio]},
        "decode": None
        if decode is None
        else {
            "positions": [64, 512],
            "ratio": [1.0, decode],
            "s_per_token": [1e-4, 1e-4 * decode],
            "state_bytes": [state, state],
        },
    }


def names(rows):
    return [item["name"] for item in rows]


def test_the_best_quality_is_first_and_failures_are_last():
    rows = [
        row("broken", 1.0, status="failed"),
        row("worse", 2.5),
        row("halfway", 1.0, status="unfinished"),
        row("best", 2.1),
    ]
    ranked = rank(rows)
    assert names(ranked) == ["best", "worse", "halfway", "broken"]
    assert [item["rank"] for item in ranked] == [1, 2, None, None]
    assert not any(item["pareto"] for item in ranked[2:])


def test_higher_accuracy_is_better():
    assert names(rank([row("a", 0.7, metric="accuracy"), row("b", 0.9, metric="accuracy")])) == ["b", "a"]


def test_nobody_on_the_front_is_beaten():
    rows = [
        row("good", 2.0, ratio=1.0),
        row("cheap", 2.5, ratio=0.1),
        row("beaten", 2.6, ratio=0.2),
        row("equal", 2.0, ratio=1.0),
        row("between", 2.3, ratio=0.5),
    ]
    assert names(pareto_front(rows)) == ["good", "cheap", "equal", "between"]


def test_what_was_not_measured_at_the_longest_length_is_infinitely_dear():
    rows = [row("good", 2.0, ratio=None), row("other", 2.5, ratio=3.0), row("lost", 2.6, ratio=None)]
    assert longest(rows) == 512
    assert cost_ratio(rows[0], 512) is None
    assert names(pareto_front(rows)) == ["good", "other"]
    assert longest([row("nothing", 2.0, ratio=None)]) == 64
    assert longest([{"name": "none", "status": "ok"}]) is None


def test_differences_are_judged_by_the_spread():
    assert within_spread(row("a", 2.0, spread=0.05), row("b", 2.04, spread=0.01)) is True
    assert within_spread(row("a", 2.0, spread=0.01), row("b", 2.04, spread=0.01)) is False
    assert within_spread(row("a", 2.0), row("b", 2.04, spread=0.01)) is None


def answers(rows):
    return {item["question"]: item for item in recommend(rank(rows), yardstick="softmax")}


def test_the_recommendation_follows_from_the_figures():
    found = answers(
        [
            row("softmax", 2.00, ratio=1.0, at8=3.0, decode=1.0, state=2**20),
            row("steady", 2.10, ratio=0.2, at8=2.2, decode=0.5),
            row("cheap", 2.15, ratio=0.1, at8=2.3, decode=0.6),
            row("poor", 2.90, ratio=0.01, at8=2.9, decode=0.1),
        ]
    )
    best = found["Best quality"]
    assert best["name"] == "softmax"
    assert best["sentence"].startswith("2.000 bits per byte. steady follows 0.100 behind; with one seed, chance")
    far = found["Best at long context"]
    assert far["name"] == "cheap"
    assert far["sentence"] == (
        "2.300 bits per byte at 8 times the training length (0.100 behind the best), in 0.10 times softmax's forward "
        "time at 512 tokens: the cheapest of the 2 that are within 10% of the best there. "
        "Faster, but further behind: poor, 0.010 times."
    )
    decoding = found["Best decoding"]
    assert decoding["name"] == "steady"
    assert decoding["sentence"] == (
        "50 µs per token at position 512, 0.50 times softmax's, from a state of 4.0 KiB: the fastest of the 3 that "
        "decode and are within 10% of the best quality (2.100 bits per byte, 0.100 behind the best). "
        "Faster, but further behind: poor, 0.10 times."
    )


def test_seeds_decide_how_sure_the_sentence_is():
    close = answers([row("a", 2.00, spread=0.03), row("softmax", 2.02, spread=0.01)])["Best quality"]["sentence"]
    assert close == (
        "2.000 bits per byte (± 0.030 over 3 seeds), 0.020 better than softmax. softmax is only 0.020 behind, within "
        "the spread of the seeds: no winner between the two."
    )
    clear = answers([row("a", 2.00, spread=0.01), row("b", 2.02, spread=0.01)])["Best quality"]["sentence"]
    assert clear.endswith("b follows 0.020 behind, more than the spread of the seeds.")


def test_images_are_recommended_by_accuracy():
    found = answers(
        [
            row("softmax", 0.95, ratio=1.0, metric="accuracy"),
            row("cheap", 0.93, ratio=0.2, metric="accuracy"),
            row("poor", 0.60, ratio=0.01, metric="accuracy"),
        ]
    )
    assert set(found) == {"Best quality", "Best at long context"}
    assert found["Best quality"]["sentence"].startswith("95.0% accuracy. cheap follows 2.0 points behind")
    assert found["Best at long context"]["name"] == "cheap"
    assert "within 3% of the best" in found["Best at long context"]["sentence"]


def test_series_are_recommended_by_mse_with_the_digits_that_it_has():
    found = answers(
        [
            row("softmax", 0.000412, ratio=1.0, metric="mse", decode=1.0),
            row("cheap", 0.000431, ratio=0.2, metric="mse", decode=0.5),
            row("poor", 0.341, ratio=0.01, metric="mse"),
        ]
    )
    assert set(found) == {"Best quality", "Best at long context", "Best decoding"}
    assert found["Best quality"]["sentence"].startswith("0.000412 mse. cheap follows 1.90e-05 behind")
    far = found["Best at long context"]
    assert far["name"] == found["Best decoding"]["name"] == "cheap"
    assert far["sentence"].startswith("0.000431 mse (1.90e-05 behind the best), in 0.20 times softmax's forward")
    assert "within 10% of the best" in far["sentence"]


@pytest.mark.parametrize("rows", [[], [row("a", 2.0, status="failed")]])
def test_without_finished_rows_there_is_no_recommendation(rows):
    assert recommend(rows, yardstick="softmax") == []


def test_a_lone_row_is_recommended_without_comparison():
    found = answers([row("only", 2.0, decode=0.7, at8=2.1)])
    assert found["Best quality"]["sentence"] == "2.000 bits per byte."
    assert "the only one that is within 10%" in found["Best at long context"]["sentence"]
    assert "the only one that decodes and is within 10%" in found["Best decoding"]["sentence"]
