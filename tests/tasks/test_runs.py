from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_images import write_images
from tiny_language import QUIET, SENTENCE
from tiny_translation import write_pairs

from regard.errors import UserError
from regard.tasks import checkpoint, runs
from regard.tasks.fit import BEST, LAST
from regard.tasks.logs import read_steps
from regard.tasks.runs import (
    RUN,
    Wishes,
    best_of,
    choose_task,
    claim_folder,
    claimed,
    latest_folder,
    new_folder,
    plan,
    read_wishes,
    train,
    write_wishes,
)
from regard.tasks.set_option import split_settings


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def wishes(**changes) -> Wishes:
    tiny = {"dim": "8", "num_layers": "1", "num_heads": "2", "length": "16", "evaluation_tokens": "64"}
    given = {"system": "lightning", "task": None, "data": None, "settings": tiny, "recipe": {"steps": 3, "batch": 2}}
    return Wishes(**{**given, **changes})


# --------------------------------------------------------------------------------------------------- which task


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


DATA = {
    "text": ("language", lambda base: write_csv(base / "a.txt", "words")),
    "folder of text": ("language", lambda base: write_csv(base / "a.txt", "words").parent),
    "table": ("forecasting", lambda base: write_csv(base / "a.csv", "date,load\n2020-01-01,1\n")),
    "events": ("events", lambda base: write_csv(base / "a.csv", "sequence,Time,mark\n0,1.5,2\n")),
    "labelled table": ("series_classification", lambda base: write_csv(base / "a.csv", "series,label,x\n0,a,1\n")),
    "series": ("series_classification", lambda base: write_csv(base / "a.ts", "@data\n")),
    "trajectories": ("control", lambda base: write_csv(base / "a.npz", "")),
    "folder of classes": ("classification", lambda base: write_images(base / "photos", {"a": 1, "b": 1})),
}


@pytest.mark.parametrize(("task", "make"), DATA.values(), ids=DATA)
def test_a_mechanism_does_what_the_data_look_like(tmp_path, task, make):
    system = "softmax" if task != "classification" else "ninformer"
    chosen, network = choose_task(system, None, make(tmp_path))
    assert chosen == task
    expected = {"language": "decoder_lm", "classification": "ninformer_classifier", "forecasting": "aaren_forecaster"}
    assert network == expected.get(task, network)


def test_parallel_text_is_for_networks_that_translate(tmp_path):
    folder = write_pairs(tmp_path / "pairs")
    assert choose_task("palm", None, folder)[0] == "translation"
    with pytest.raises(UserError, match=r"looks like data for translation, and lightning does language, .*--task"):
        choose_task("lightning", None, folder)
    assert choose_task("lightning", "language", folder) == ("language", "decoder_lm")


def test_idx_files_are_images(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"")
    assert choose_task("ninformer", None, tmp_path)[0] == "classification"


def test_a_network_with_one_task_takes_whatever_it_is_given(tmp_path):
    table = write_csv(tmp_path / "a.csv", "a,b\n1,2\n")
    assert choose_task("transnormer_lm", None, table) == ("language", "transnormer_lm")


def test_without_data_the_systems_own_task_comes_first():
    assert choose_task("lightning", None, None) == ("language", "decoder_lm")
    assert choose_task("aaren", None, None)[0] == "forecasting"
    assert choose_task("decoder_small", None, None) == ("language", "decoder_small")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lightnin", None, None), "did you mean lightning"),
        (("lightning", "langage", None), r"unknown task 'langage': did you mean language\?"),
        (("lightning", "translation", None), "lightning has no network for translation: it does language"),
        (("eca", None, None), "eca is a feature mixer without a network"),
        (("lightning", None, Path("nothing")), "there is no file or folder nothing"),
    ],
)
def test_what_cannot_be_trained_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        choose_task(*arguments)


# --------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, {}),
        ("", {}),
        ("dim=64", {"dim": "64"}),
        ("dim=64,mixer=aaren", {"dim": "64", "mixer": "aaren"}),
        (" dim = 64 , tied=true", {"dim": "64", "tied": "true"}),
        ("tokenizer=a=b", {"tokenizer": "a=b"}),
        ("mixer_options={},dim=8", {"mixer_options": "{}", "dim": "8"}),
        (
            'mixer_options={"form": "linear", "tied": true},dim=8',
            {"mixer_options": '{"form": "linear", "tied": true}', "dim": "8"},
        ),
        ('a={"b": {"c": 1, "d": 2}, "e": [1]},f=[3,4]', {"a": '{"b": {"c": 1, "d": 2}, "e": [1]}', "f": "[3,4]"}),
        ('a={"b": "c, d=e"},f=3', {"a": '{"b": "c, d=e"}', "f": "3"}),
        ('a={"b": "c, d=e", "f": {}},g=3', {"a": '{"b": "c, d=e", "f": {}}', "g": "3"}),
        ('a={"b": "}", "c": 1},g=3', {"a": '{"b": "}", "c": 1}', "g": "3"}),
        (r'a={"b": "\", c=", "d": 1},g=3', {"a": r'{"b": "\", c=", "d": 1}', "g": "3"}),
        ('a=],b=he said "x,c=3', {"a": "]", "b": 'he said "x', "c": "3"}),
        ("kernels=[3,5,7],dim=8", {"kernels": "[3,5,7]", "dim": "8"}),
        ("text=one,two,dim=8", {"text": "one,two", "dim": "8"}),
    ],
)
def test_settings_are_names_and_values_and_json_keeps_its_commas(text, found):
    assert split_settings(text) == found


@pytest.mark.parametrize("text", ["dim", "=3", "dim,heads=2", " =1"])
def test_settings_without_name_or_value_are_refused(text):
    with pytest.raises(UserError, match="--set takes NAME=VALUE,NAME=VALUE, got"):
        split_settings(text)


@pytest.fixture
def text_file(tmp_path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(SENTENCE * 20)
    return str(path)


def test_a_plan_has_data_network_and_recipe(text_file):
    settings = {**wishes().settings, "mixer_options": '{"decay": "paper", "norm": "srmsnorm"}'}
    planned = plan(wishes(data=text_file, settings=settings), cache=Path())
    assert planned.task.settings.length == 16
    assert planned.model_name == "decoder_lm"
    assert (planned.config.dim, planned.config.mixer, planned.config.vocab_size) == (8, "lightning", 256)
    assert planned.config.mixer_options == {"decay": "paper", "norm": "srmsnorm"}
    assert planned.recipe == replace(type(planned.task).recipe, steps=3, batch=2)
    first, second = planned.build(), planned.build()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = plan(wishes(data=text_file, recipe={"seed": 1}), cache=Path()).build()
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"dimm": "8"}}, r"no setting 'dimm': did you mean dim\?"),
        ({"settings": {"zzzz": "8"}}, r"no setting 'zzzz': language has evaluation_tokens, .*; decoder_lm has "),
        ({"settings": {"dim": "wide"}}, "dim must be a whole number, got 'wide'"),
        ({"settings": {"length": "0"}}, "length must be at least 1, got 0"),
        ({"settings": {"dim": "7", "num_heads": "2"}}, "7"),
        ({"settings": {"vocab_size": "9"}}, "vocab_size is decided by the data"),
        ({"settings": {"mixer_options": '{"nothing": 1}'}}, "nothing"),
        ({"settings": {"mixer_options": "{broken"}}, "mixer_options must be a JSON object"),
        ({"settings": {"length": "9999"}}, "give more text or a smaller --set length"),
        ({"recipe": {"steps": 0}}, "steps must be at least 1, got 0"),
        ({"recipe": {"learning_rate": float("nan")}}, "learning_rate must be positive"),
        ({"data": "nothing"}, "there is no file or folder nothing"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(text_file, changes, message):
    with pytest.raises(UserError, match=message):
        plan(wishes(**{"data": text_file, **changes}), cache=Path()).build()


# --------------------------------------------------------------------------------------------------- folders


def test_a_new_folder_is_named_for_the_run_and_is_new(monkeypatch):
    monkeypatch.setattr(runs.time, "strftime", lambda _: "20300102-030405")
    first = new_folder("aaren", "forecasting")
    assert first == Path("runs/train-aaren-forecasting-20300102-030405")
    claim_folder(first, resume=False)
    second = new_folder("aaren", "forecasting")
    assert second == Path("runs/train-aaren-forecasting-20300102-030405-2")
    claim_folder(second, resume=False)
    assert new_folder("aaren", "forecasting").name.endswith("-3")


def test_a_folder_is_claimed_once_unless_the_run_goes_on():
    folder = Path("a/b")
    claim_folder(folder, resume=False)
    claim_folder(folder, resume=False)
    for name in (RUN, LAST, BEST):
        (folder / name).write_text("")
        with pytest.raises(UserError, match=rf"a/b already has {name}: go on with --resume, or name another --out"):
            claim_folder(folder, resume=False)
        claim_folder(folder, resume=True)
        (folder / name).unlink()
    (folder / "notes.txt").write_text("mine")
    claim_folder(folder, resume=False)
    assert os.listdir(folder) == ["notes.txt"]


def test_a_run_that_cannot_start_leaves_no_new_folder():
    def prepare(folder: Path) -> None:
        with claimed(folder, resume=False):
            (folder / "tokens.bin").write_text("")
            raise UserError("no data")

    Path("there").mkdir()
    for folder in (Path("new"), Path("there"), Path("new/below"), Path("there/below")):
        with pytest.raises(UserError, match="no data"):
            prepare(folder)
    assert os.listdir() == ["there"]
    assert os.listdir("there") == ["tokens.bin"], "what was there before is not removed"
    with claimed(Path("new"), resume=False):
        pass
    assert Path("new").is_dir()


def test_a_folder_that_cannot_be_made_is_refused():
    Path("file").write_text("mine")
    with pytest.raises(UserError, match="--out file is a file; it must be a folder, or a new name"):
        claim_folder(Path("file"), resume=False)
    for impossible in ("file/below", "/proc/nowhere"):
        with pytest.raises(UserError, match=f"cannot make {impossible}: "):
            claim_folder(Path(impossible), resume=True)
    assert Path("file").read_text() == "mine"


def test_the_latest_run_of_a_system_is_found_and_damaged_ones_are_passed_over():
    assert latest_folder(None) is None
    for number, (name, system) in enumerate([("train-a", "aaren"), ("train-b", "titans"), ("train-c", "aaren")]):
        (Path("runs") / name).mkdir(parents=True)
        write_wishes(Path("runs") / name, wishes(system=system))
        os.utime(Path("runs") / name / RUN, (number, number))
    Path("runs/train-d").mkdir()
    Path("runs/train-d", RUN).write_text("{broken")
    os.utime(Path("runs/train-d", RUN), (1, 1))
    Path("runs/train-e").mkdir()
    assert latest_folder(None) == Path("runs/train-c")
    assert latest_folder("titans") == Path("runs/train-b")
    assert latest_folder("lightning") is None


def test_wishes_come_back():
    given = wishes(task="language", data="my text", settings={"dim": "8", "mixer_options": '{"a": 1}'})
    write_wishes(Path(), given)
    assert read_wishes(Path()) == given
    write_wishes(Path(), wishes())
    assert read_wishes(Path()) == wishes()


GOOD = {"system": "lightning", "task": None, "data": None, "settings": {"dim": "8"}, "recipe": {"steps": 3}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{broken",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        *(
            json.dumps({**GOOD, **wrong}).encode()
            for wrong in (
                {"system": None},
                {"system": ["lightning"]},
                {"task": "os.system"},
                {"task": ["language"]},
                {"data": 3},
                {"settings": []},
                {"settings": {"dim": 8}},
                {"recipe": "fast"},
                {"recipe": {"speed": 3}},
                {"recipe": {"steps": "many"}},
                {"recipe": {"steps": 2.5}},
            )
        ),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(content):
    Path(RUN).write_bytes(content)
    with pytest.raises(UserError, match=r"cannot resume from run\.json") as refused:
        read_wishes(Path())
    assert str(refused.value).isprintable()
    Path(RUN).write_bytes(json.dumps(GOOD).encode())
    assert read_wishes(Path()).system == "lightning"


def test_where_there_is_no_run_nothing_is_read():
    with pytest.raises(UserError, match=r"cannot resume from nothing/run\.json"):
        read_wishes(Path("nothing"))


# --------------------------------------------------------------------------------------------------- training


def test_a_plan_is_trained_and_taken_up_again(text_file):
    folders = [Path("whole"), Path("halves")]
    for folder in folders:
        folder.mkdir()
    recipe = {"steps": 4, "batch": 2, "evaluate_every": 2}
    planned = plan(wishes(data=text_file, recipe=recipe), cache=folders[0])
    outcome = train(planned, folders[0], QUIET, resume=False)
    assert outcome.finished
    interrupted = plan(wishes(data=text_file, recipe=recipe), cache=folders[1])
    draw, drawn = interrupted.task.batch, []

    def stop(random, rows):
        drawn.append(1)
        if len(drawn) == 4:
            raise RuntimeError("the lights went out")
        return draw(random, rows)

    interrupted.task.batch = stop
    with pytest.raises(RuntimeError, match="lights"):
        train(interrupted, folders[1], QUIET, resume=False)
    again = train(plan(wishes(data=text_file, recipe=recipe), cache=folders[1]), folders[1], QUIET, resume=True)
    assert again.finished
    assert read_steps(folders[1]) == read_steps(folders[0])
    one, two = (checkpoint.load(folder / LAST).model.state_dict() for folder in folders)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    best = best_of(planned, folders[0])
    assert not best.training
    (folders[0] / BEST).unlink()
    last = best_of(planned, folders[0]).state_dict()
    assert all(torch.equal(value, last[name]) for name, value in one.items())


def test_a_disk_that_is_full_is_told_in_one_line(text_file, monkeypatch):
    planned = plan(wishes(data=text_file), cache=Path())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    Path("out").mkdir()
    with pytest.raises(UserError, match="cannot write in out: No space left on device"):
        train(planned, Path("out"), QUIET, resume=False)


@pytest.mark.parametrize(("system", "task"), [("palm", "translation"), ("ninformer", "classification")])
def test_other_tasks_are_planned_the_same_way(tmp_path, system, task):
    data = write_pairs(tmp_path / "a") if task == "translation" else write_images(tmp_path / "a", {"x": 3, "y": 3})
    settings = {"tokenizer": "bytes"} if task == "translation" else {"image_size": "16"}
    planned = plan(wishes(system=system, data=str(data), settings=settings, recipe={"steps": 1, "batch": 2}))
    assert planned.task.name == task
    batch = planned.task.batch(np.random.default_rng(0), 2)
    assert torch.isfinite(planned.task.loss(planned.build(), batch))
