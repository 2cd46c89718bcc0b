from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from regard.compare.mechanisms import choose, fitting, import_outsider, title_of, why_unfit
from regard.compare.race_tasks import TASKS
from regard.compare.settings import DEFAULTS, Settings, make_settings, parse_lengths, threads_per_job
from regard.errors import UserError
from regard.metadata import No
from regard.registry import systems


def test_what_is_left_out_is_the_default_of_the_task():
    text, image, series = (make_settings({"task": task}) for task in ("text", "image", "series"))
    assert (series.train_length, series.steps, series.batch) == (96, 300, 32)
    assert series.mechanisms == text.mechanisms
    assert (text.lengths, text.batch) == (DEFAULTS["text"]["lengths"], DEFAULTS["text"]["batch"])
    assert (image.lengths, image.batch) == (DEFAULTS["image"]["lengths"], DEFAULTS["image"]["batch"])
    assert text.mechanisms[0] == "softmax"


def test_settings_survive_json(settings):
    before = settings(seeds=3, data="/somewhere/odd \udcff name", time_limit_s=30.0)
    assert Settings.from_json(json.loads(json.dumps(before.as_json()))) == before


def test_settings_of_another_version_are_refused(settings):
    stored = settings().as_json() | {"optimizer": "lion"}
    with pytest.raises(UserError, match="not this version's: optimizer"):
        Settings.from_json(stored)


def test_differences_name_what_differs_and_ignore_what_may_differ(settings):
    before = settings(jobs=1)
    assert settings(jobs=2, time_limit_s=5.0).differences(before) == []
    assert settings(steps=5, lengths=(8, 32)).differences(before) == [
        "lengths 8,16 there, 8,32 now",
        "steps 3 there, 5 now",
    ]


def test_a_resumed_race_keeps_what_is_not_given(settings):
    before = settings(steps=77, seeds=2)
    assert make_settings({"steps": None, "jobs": 3}, earlier=before) == settings(steps=77, seeds=2, jobs=3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"seeds": -1}, "--seeds must be at least 1, got -1"),
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"num_layers": 0}, "--layers must be at least 1, got 0"),
        ({"train_length": 1}, "--train-length must be at least 2, got 1"),
        ({"lengths": ()}, "--lengths must be positive"),
        ({"dim": 10, "num_heads": 3}, "--dim must be a multiple of twice --heads .*--dim 10 and --heads 3"),
        ({"image_size": 20}, "--image-size must be a positive multiple of 8, got 20"),
        ({"time_limit_s": -60.0}, "--time-limit must be positive, got -1 minutes"),
    ],
)
def test_senseless_values_are_refused(settings, changed, message):
    with pytest.raises(UserError, match=message):
        settings(**changed)


def test_lengths_are_sorted_and_each_once():
    assert parse_lengths("512, 64,512") == (64, 512)


@pytest.mark.parametrize("text", ["", "a", "1.5", "8,-8", "0", "8,,16", "8;16", "nan"])
def test_lengths_that_are_not_positive_whole_numbers(text):
    with pytest.raises(UserError, match="--lengths must be positive whole numbers separated by commas, got"):
        parse_lengths(text)


def test_the_command_line_gives_the_same_settings_again(settings):
    before = settings(data="/a b/c", seeds=2, jobs=1)
    words = shlex.split(before.command_line())
    assert words[:3] == ["regard", "compare", "text"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options["--data"] == "/a b/c"
    assert (options["--lengths"], options["--seeds"], options["--dim"]) == ("8,16", "2", "12")
    assert "--jobs" not in options


def test_threads_are_shared_among_jobs(settings, monkeypatch):
    monkeypatch.setattr("regard.compare.settings.cores", lambda: 8)
    three = ("softmax", "lightning", "linear")
    assert threads_per_job(settings(jobs=3, mechanisms=three)) == 2
    assert threads_per_job(settings(jobs=3)) == 8
    assert threads_per_job(settings(jobs=20, mechanisms=three)) == 2


# --------------------------------------------------------------------------------------------------- mechanisms


def test_all_means_every_mechanism_that_fits(outsiders):
    text, image = fitting("text"), fitting("image")
    assert text[0] == image[0] == "softmax"
    assert "toy_mean" in text
    assert "toy_mean" in image
    assert "toy_gate" in image
    assert "toy_gate" not in text
    for name, entry in systems().items():
        assert (name in text) == (not why_unfit(entry, "text"))


def test_unknown_mechanisms_suggest_the_nearest():
    with pytest.raises(UserError, match=r"unknown mechanism 'lightnin': did you mean lightning\?"):
        choose("text", "softmax,lightnin")
    with pytest.raises(UserError, match="unknown mechanism 'zzz': for text there are softmax"):
        choose("text", "zzz")


def test_a_mechanism_that_does_not_fit_is_refused_with_its_reason(outsiders):
    with pytest.raises(UserError, match="toy_gate cannot race in text: it acts on feature maps"):
        choose("text", "toy_gate")


def test_naming_nobody_is_refused_and_twice_is_once():
    with pytest.raises(UserError, match="names no mechanism"):
        choose("text", " , ")
    assert choose("text", "linear, softmax,linear") == ("linear", "softmax")


@pytest.mark.parametrize(
    ("task", "name", "why"),
    [
        ("series", "toy_gate", "it acts on feature maps"),
        ("series", "ninformer", "a forecast is read after the last time step, which needs a causal form, and every"),
        ("series", "palm", "a forecast is read after the last time step, which needs a causal form, and keys are the"),
        ("text", "palm", "a language model needs a causal form, and keys are the source's alone"),
        ("image", "ninformer", "it is timed at several lengths, and token-mixing weights belong to fixed positions"),
        ("image", "softmax", ""),
        ("series", "aaren", ""),
    ],
)
def test_who_cannot_race_and_why(outsiders, task, name, why):
    found = why_unfit(systems()[name], task)
    assert found.startswith(why)
    assert bool(found) == bool(why)


def test_what_only_reads_a_context_cannot_race():
    entry = systems()["palm"]
    cross_only = replace(entry, traits=replace(entry.traits, bidirectional=No("it reads a context")))
    assert why_unfit(cross_only, "image") == "it does not mix a sequence with itself: it reads a context"
    one_length = replace(systems()["softmax"].traits, any_length=No("it has 7 positions"))
    fixed = replace(systems()["softmax"], traits=one_length)
    for task in TASKS:
        assert why_unfit(fixed, task) == "it is timed at several lengths, and it has 7 positions"


def test_titles_are_words():
    assert title_of(systems()["softmax"]) == "Softmax Attention"
    assert title_of(systems()["softplus"]) == "LSSAR Attention"
    assert title_of(systems()["se_var1"]) == "SE Var1"
    assert title_of(systems()["maxvit_grid"]) == "MaxViT Grid Attention"
    assert title_of(systems()["agent_2d"]) == "Agent Attention 2d"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("x = 1", "registers no mechanism"),
    ],
)
def test_an_import_that_fails_is_one_line(tmp_path, content, message):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        import_outsider(str(path))
    assert "\n" not in str(caught.value)


def test_an_import_that_is_not_there():
    with pytest.raises(UserError, match=r"cannot import /nowhere/mine.py: there is no such file"):
        import_outsider("/nowhere/mine.py")
    with pytest.raises(UserError, match="cannot import no_such_module_at_all: ModuleNotFoundError"):
        import_outsider("no_such_module_at_all")
