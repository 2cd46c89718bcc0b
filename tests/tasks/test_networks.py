from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import pytest

from regard.errors import UserError
from regard.registry import get_class, systems
from regard.tasks.networks import (
    HOSTS,
    TASKS,
    build,
    config_from_plain,
    config_to_plain,
    configure,
    default_config,
    from_plain,
    models_of,
    parse_fields,
    task_class,
)


def test_every_task_exists_under_its_name():
    for name in TASKS:
        assert task_class(name).name == name


def test_every_host_takes_any_mixer():
    for task, host in HOSTS.items():
        assert "mixer" in {item.name for item in fields(default_config(host))}
        assert get_class(host).task == task


@pytest.mark.parametrize(
    ("system", "first"),
    [
        ("lightning", {"language": ("decoder_lm",)}),
        ("transnormer", {"language": ("transnormer_lm",)}),
        ("transnormer_385m", {"language": ("transnormer_385m",)}),
        ("palm", {"translation": None}),
        ("ninformer", {"classification": None}),
        ("aaren", {"forecasting": ("aaren_forecaster",)}),
    ],
)
def test_a_name_leads_to_its_own_network_first(system, first):
    networks = models_of(system)
    ((task, names),) = first.items()
    assert next(iter(networks)) == task
    if names is not None:
        assert networks[task] == names
    assert networks[task][0].startswith(system.partition("_")[0]) or system == "lightning"


def test_every_network_with_a_task_builds_from_its_small_config():
    trained = [name for name in systems("model") if getattr(get_class(name), "task", "")]
    assert {"decoder_lm", "transnormer_lm", "palm_seq2seq", "ninformer_classifier"} <= set(trained)
    for name in trained:
        assert get_class(name).task in TASKS
        config = default_config(name)
        build(name, config)
        assert config_from_plain(type(config), config_to_plain(config)) == config


def test_gates_and_unknown_names_are_refused():
    with pytest.raises(UserError, match="eca is a feature mixer"):
        models_of("eca")
    with pytest.raises(UserError, match="did you mean lightning"):
        models_of("lightnin")


def test_the_users_fields_win_over_the_defaults_and_data_over_both():
    config = configure(
        "hedgehog", "decoder_lm", {"vocab_size": 99}, {"dim": "64", "mixer_options": '{"form": "linear"}'}
    )
    assert (config.vocab_size, config.dim, config.mixer) == (99, 64, "hedgehog")
    assert config.mixer_options == {"form": "linear"}
    with pytest.raises(UserError, match="decided by the data"):
        configure("hedgehog", "decoder_lm", {"vocab_size": 99}, {"vocab_size": "5"})
    with pytest.raises(UserError, match="dim must be positive"):
        configure("hedgehog", "decoder_lm", {}, {"dim": "-4"})


@dataclass(frozen=True)
class Sample:
    number: int = 1
    share: float = 0.5
    flag: bool = False
    word: Literal["a", "b"] = "a"
    maybe: int | None = None
    sizes: tuple[int, ...] = (1, 2)
    options: Mapping[str, Any] | None = None


def test_texts_become_values_of_the_fields_type():
    wanted = {"number": "3", "share": "2", "flag": "true", "word": "b", "maybe": "null", "sizes": "[4, 5, 6]"}
    assert parse_fields(Sample, wanted, what="sample") == {
        "number": 3,
        "share": 2.0,
        "flag": True,
        "word": "b",
        "maybe": None,
        "sizes": (4, 5, 6),
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("number", "x", "a whole number"),
        ("number", "1.5", "a whole number"),
        ("number", "true", "a whole number"),
        ("flag", "1", "true or false"),
        ("word", "c", "a or b"),
        ("sizes", "[1, x]", "a list"),
        ("nmber", "1", "did you mean number"),
    ],
)
def test_texts_of_another_type_are_refused(name, text, message):
    with pytest.raises(UserError, match=message):
        parse_fields(Sample, {name: text}, what="sample")


def test_plain_data_keep_their_types():
    assert from_plain([1, 2], tuple[int, ...]) == (1, 2)
    assert from_plain({"a": 1}, Mapping[str, Any] | None) == {"a": 1}
    for value, kind in ((True, int), ("1", int), ([1, "a"], tuple[int, ...]), (None, str)):
        with pytest.raises(TypeError):
            from_plain(value, kind)
