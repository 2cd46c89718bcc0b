"""Contestants and settings of a race inside a trained model."""

from __future__ import annotations

import pytest

from regard.compare.pretrained.contestants import KNOWN, choose, contestants
from regard.compare.pretrained.results import kept, recommend, with_distance
from regard.compare.pretrained.settings import PretrainedSettings, default_lengths, parse_budgets
from regard.errors import UserError
from regard.integrations.transformers.attention import MECHANISMS


def settings(**changes):
    return PretrainedSettings(**{"model": "m", "mechanisms": ("sdpa",), "lengths": (64,), "budgets": (32,), **changes})


@pytest.mark.parametrize("budget", [16, 31, 64, 509])
def test_a_budget_is_what_a_mechanism_attends_to(budget):
    for each in contestants(KNOWN, (budget,), num_layers=12):
        if each.budget is None:
            continue
        options = each.options
        total = {
            "hip": lambda o: o["mask_k"] + o["window"] + o["sinks"],
            "recycled": lambda o: o["top_k"],
            "streaming_llm": lambda o: o["cache_size"],
            "h2o": lambda o: o["cache_size"],
            "landmark": lambda o: o["block_size"] * (o["top_k"] + o["recent"] + o["sinks"] + 1),
        }[each.mechanism](options)
        assert budget - (7 if each.mechanism == "landmark" else 1) <= total <= budget
        MECHANISMS[each.mechanism](**options)


def test_dense_layers_of_hip_follow_the_depth():
    dense = [contestants(("hip",), (64,), num_layers=n)[0].options["dense_layers"] for n in (2, 4, 8, 32)]
    assert dense == [0, 1, 2, 3]


def test_the_yardstick_always_takes_part_and_names_are_checked():
    assert choose("h2o,hip,h2o") == ("sdpa", "h2o", "hip")
    assert choose(None) == choose("all") == KNOWN
    with pytest.raises(UserError, match=r"'recycle' is no training-free attention .* did you mean recycled"):
        choose("recycle")
    with pytest.raises(UserError, match="names no mechanism"):
        choose(" , ")
    with pytest.raises(UserError, match="--budgets 1 does not suit hip"):
        contestants(("hip",), (1,), num_layers=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passages": 0}, "--passages must be at least 1, got 0"),
        ({"scored": 4}, "--scored must be more than 4 tokens, got 4"),
        ({"lengths": ()}, "--lengths must be positive"),
        ({"budgets": (0,)}, "--budgets must be positive whole numbers, got 0"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(UserError, match=message):
        settings(**changes)


def test_settings_survive_a_file_and_tell_what_differs():
    first = settings()
    assert PretrainedSettings.from_json(first.as_json()) == first
    assert settings(budgets=(16, 32)).differences(first) == ["budgets 32 there, 16,32 now"]
    with pytest.raises(UserError, match="not this version's: extra"):
        PretrainedSettings.from_json({**first.as_json(), "extra": 1})
    assert settings(scored=9, data="a b").command_line() == (
        "regard compare text --model m --data 'a b' --mechanisms sdpa --lengths 64 --budgets 32 --scored 9"
    )
    with pytest.raises(UserError, match="--budgets must be positive whole numbers separated by commas, got 'x'"):
        parse_budgets("x")


def test_default_lengths_leave_room_for_the_scored_tokens():
    assert default_lengths(512, 64) == (128, 256)
    assert default_lengths(2048, 64) == (256, 512, 1024)
    assert default_lengths(131072, 64) == (1024, 2048, 4096)
    assert default_lengths(100, 64) == (36,)
    assert default_lengths(None, 64) == (512, 1024, 2048)


def row(name, perplexity, needle, *, ratio=1.0, cache=100):
    inference = {"lengths": [64], "perplexity": [perplexity], "needle": [needle], "mass": [1.0]}
    quality = {"metric": "perplexity", "better": "lower", "mean": perplexity, "spread": None, "per_seed": [perplexity]}
    return {
        "name": name,
        "status": "ok",
        "quality": quality,
        "inference": inference,
        "cost": {"lengths": [64], "ratio": [ratio]},
        "decode": {"positions": [64], "ratio": [ratio], "state_bytes": [cache]},
    }


def test_only_what_keeps_the_quality_is_recommended():
    rows = with_distance(
        [
            row("sdpa", 10.0, 0.9),
            row("a", 10.1, 0.85, ratio=0.7, cache=50),
            row("b", 9.0, 0.2, ratio=0.1, cache=5),
            row("c", 10.3, 0.9, ratio=0.2, cache=5),
        ]
    )
    assert [each["name"] for each in kept(rows)] == ["sdpa", "a"]
    assert rows[1]["inference"]["excess"] == [pytest.approx(0.01)]
    answers = recommend(rows)
    assert {answer["name"] for answer in answers} == {"a"}
    assert answers[0]["sentence"].startswith("0.70 times sdpa's time for 64 tokens, the only one that keeps")
    without = recommend([rows[0], rows[3]])
    assert [answer["question"] for answer in without] == ["Nearest to full attention"]
    assert recommend([]) == []


def test_the_models_own_attention_is_recommended_where_nothing_takes_less():
    rows = with_distance(
        [
            row("sdpa", 10.0, 0.9, ratio=1.0, cache=100),
            row("a", 10.1, 0.9, ratio=1.3, cache=100),
            row("b", 10.0, 0.9, ratio=1.7, cache=40),
        ]
    )
    answers = {answer["question"]: answer for answer in recommend(rows)}
    assert [answers[question]["name"] for question in ("Shortest prompt", "Fastest decoding", "Smallest cache")] == [
        "sdpa",
        "sdpa",
        "b",
    ]
    assert answers["Shortest prompt"]["sentence"] == (
        "The model's own attention: none that keeps its quality to 2% takes less. "
        "a comes next, with 1.30 times sdpa's time for 64 tokens."
    )
    alone = recommend(with_distance([row("sdpa", 10.0, 0.9, ratio=1.0), row("a", 10.1, 0.9, ratio=1.3)]))
    assert "a takes 1.30 times sdpa's time" in alone[0]["sentence"]
