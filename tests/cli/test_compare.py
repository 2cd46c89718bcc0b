"""`regard compare`: what it refuses, in one line each, and its plan."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from regard.cli import compare
from regard.compare.race import require_memory
from regard.compare.settings import DEFAULTS, SHARED_DEFAULTS, make_settings

TINY = ("--lengths", "8,16", "--steps", "2", "--train-length", "16", "--dim", "12", "--heads", "3", "--layers", "1")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("some words\n" * 100)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--data", "nothing"), r"there is no file or folder .*/nothing"),
        (("--lengths", "0"), r"--lengths must be positive whole numbers separated by commas, got '0'"),
        (("--lengths", "-3"), r"--lengths must be positive whole numbers separated by commas, got '-3'"),
        (("--lengths", "128,x"), r"--lengths must be positive whole numbers separated by commas, got '128,x'"),
        (("--lengths", "1.5"), r"--lengths must be positive whole numbers separated by commas, got '1.5'"),
        (("--steps", "0"), r"--steps must be at least 1, got 0"),
        (("--steps", "many"), r"--steps must be a whole number, got many"),
        (("--seeds", "0"), r"--seeds must be at least 1, got 0"),
        (("--jobs", "0"), r"--jobs must be at least 1, got 0"),
        (("--dim", "30", "--heads", "4"), r"--dim must be a multiple of twice --heads .*"),
        (("--mechanisms", "softmax,lightnin"), r"unknown mechanism 'lightnin': did you mean lightning\?"),
        (("--import", "nothing.py"), r"cannot import nothing.py: there is no such file"),
        (("--time-limit", "0"), r"--time-limit must be positive, got 0 minutes"),
        (("--device", "tpu"), r"--device must be auto or cpu or cuda, got tpu"),
    ],
)
def test_bad_options_are_one_line(refused, arguments, line):
    said = refused("compare", "text", *arguments)
    assert re.fullmatch(f"regard compare: {line}", said), said
    assert os.listdir() == []


def test_an_unknown_task_is_one_line(refused):
    assert "text" in refused("compare", "sound")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is empty"),
        (b"\x7fELF\0\0" * 100, "is not UTF-8 text: byte 4 is zero"),
        (b"caf\xe9" * 100, "is not UTF-8 text: byte 3 is 0xe9"),
        (b"too few", "has 8 bytes, and one training and one validation window of 128 bytes need 258"),
    ],
)
def test_bad_files_are_one_line_and_leave_nothing(refused, tmp_path, content, line):
    (tmp_path / "bad").write_bytes(content)
    assert line in refused("compare", "text", "--data", "bad")
    assert os.listdir() == ["bad"]


def test_images_need_two_classes_that_decode(refused, tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.png").write_bytes(b"no image")
    said = refused("compare", "image", "--data", "photos")
    assert "class 'cats'" in said
    assert said.endswith("these do not decode: cats/1.png")
    (tmp_path / "photos" / "dogs" / "1.png").unlink()
    (tmp_path / "photos" / "dogs").rmdir()
    assert "has only 'cats': at least two classes are needed" in refused("compare", "image", "--data", "photos")


def test_an_out_that_cannot_be_written(refused, text, tmp_path):
    (tmp_path / "taken").write_text("a file")
    assert "--out taken is a file" in refused("compare", "text", "--data", text, "--out", "taken")
    below = refused("compare", "text", "--data", text, "--out", "taken/below")
    assert below == "regard compare: cannot write in taken/below: Not a directory; what was written before is kept"
    assert "cannot write in /proc/nowhere: " in refused("compare", "text", "--data", text, "--out", "/proc/nowhere")
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_is_closed_to_us(refused, text, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "Permission denied" in refused("compare", "text", "--data", text, "--out", "closed")


def write_earlier(out: Path, *, finished: bool = False, rows: list | None = None, **changed) -> None:
    settings = make_settings({"mechanisms": "softmax", **changed})
    out.mkdir(parents=True)
    stored = {"task": settings.task, "finished": finished, "settings": settings.as_json(), "rows": rows or []}
    (out / "results.json").write_text(json.dumps(stored))


def test_a_folder_with_results_is_not_overwritten(refused, text, tmp_path):
    write_earlier(tmp_path / "out")
    before = (tmp_path / "out" / "results.json").read_bytes()
    said = refused("compare", "text", "--data", text, "--out", "out")
    assert said == (
        "regard compare: out already has results.json: continue that race with --resume, or name another --out"
    )
    assert (tmp_path / "out" / "results.json").read_bytes() == before


def test_resuming_with_other_settings_names_them(refused, text, tmp_path):
    write_earlier(tmp_path / "out", steps=50)
    said = refused(
        "compare", "text", "--resume", "--out", "out", "--steps", "60", "--data", text, "--mechanisms", "linear"
    )
    assert said == (
        f"regard compare: cannot resume out with other settings: data none there, {text} now; "
        "mechanisms softmax there, linear now; steps 50 there, 60 now"
    )
    assert "task text there, image now" in refused("compare", "image", "--resume", "--out", "out")


def test_resume_takes_the_newest_unfinished_race_of_the_task(refused, tmp_path):
    write_earlier(tmp_path / "runs" / "a", steps=11)
    write_earlier(tmp_path / "runs" / "b", steps=12, finished=True)
    write_earlier(tmp_path / "runs" / "c", steps=13, task="image")
    (tmp_path / "runs" / "d").mkdir()
    (tmp_path / "runs" / "d" / "results.json").write_text("{broken")
    os.utime(tmp_path / "runs" / "a" / "results.json", (1, 1))
    assert "cannot resume runs/a with other settings: steps 11 there, 9 now" in refused(
        "compare", "text", "--resume", "--steps", "9"
    )
    assert "cannot resume runs/c with other settings" in refused("compare", "image", "--resume", "--steps", "9")


@pytest.mark.parametrize("content", ["{broken", "[]", '{"settings": 3}', '{"settings": {"task": "text"}}'])
def test_a_damaged_race_is_not_resumed(refused, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text(content)
    refused("compare", "text", "--resume", "--out", "out")
    assert (tmp_path / "out" / "results.json").read_text() == content


def test_a_race_whose_work_is_gone_is_not_begun_again(refused, tmp_path):
    write_earlier(tmp_path / "out", rows=[{"name": "softmax", "status": "ok", "params": 3}])
    assert "its folder work is gone" in refused("compare", "text", "--resume", "--out", "out")


def test_two_races_do_not_share_a_folder(refused, text, tmp_path):
    import fcntl

    (tmp_path / "out" / "work").mkdir(parents=True)
    with (tmp_path / "out" / "work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another race is running in out" in refused("compare", "text", "--data", text, "--out", "out")


def test_without_free_memory_nothing_is_started(refused, text, monkeypatch):
    monkeypatch.setattr("regard.compare.race.available_memory_bytes", lambda: 700 * 2**20)
    said = refused("compare", "text", "--data", text, "--mechanisms", "softmax,linear", "--jobs", "2")
    assert said == (
        "regard compare: only 700 MiB of memory are free, and 2 at a time need 1.5 GiB: free some, or try --jobs 1"
    )
    assert "need 768 MiB: free some first" in refused("compare", "text", "--data", text, "--jobs", "1")
    assert "and 1 at a time need 768 MiB" in refused("compare", "text", "--data", text)
    monkeypatch.setattr("regard.compare.race.available_memory_bytes", lambda: 1600 * 2**20)
    settings = make_settings({"jobs": 4, "mechanisms": "softmax,linear,lightning"})
    assert require_memory(settings, jobs_given=False).jobs == 2


def test_cuda_that_is_not_there(refused, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda: PyTorch finds no CUDA device here" in refused("compare", "text", "--device", "cuda")


def test_the_plan_shows_rows_parameters_and_minutes(regard, text):
    ran = regard("compare", "text", "--dry-run", "--data", text, "--mechanisms", "softmax,linear", *TINY)
    assert ran.status == 0
    assert re.search(r"softmax +[\d,]+ +[\d,]+ +\+0\.00%", ran.out)
    assert re.search(r"linear +[\d,]+ +[\d,]+ +[+-]\d\.\d\d%", ran.out)
    assert re.search(r"about \d+ minutes?", " ".join(ran.out.split()))
    assert os.listdir() == ["text.txt"]


def test_the_help_states_the_defaults_that_hold(regard):
    ran = regard("compare", "--help")
    words = " ".join(ran.out.split())
    text, image, series = (DEFAULTS[task] for task in ("text", "image", "series"))
    for option, default in {
        "steps": f"{text['steps']}, for series {series['steps']}",
        "train length": f"{text['train_length']}, for series {series['train_length']}",
        "batch": f"{text['batch']}, for images and series {image['batch']}",
        "seeds": f"{SHARED_DEFAULTS['seeds']}",
        "dim": f"{SHARED_DEFAULTS['dim']}",
        "lengths": f"{min(text['lengths'])} to {max(text['lengths'])}, for images "
        f"{min(image['lengths'])} to {max(image['lengths'])}",
    }.items():
        assert f"(default {default})" in words, option
    assert text["steps"] == image["steps"]
    assert (series["batch"], series["lengths"]) == (image["batch"], text["lengths"])
    assert "--import IMPORT " in words


def test_every_option_reaches_the_settings():
    source = inspect.getsource(compare.run)
    for name in inspect.signature(compare.run).parameters:
        assert len(re.findall(rf"\b{name}\b", source)) >= 3, name


def test_asking_for_help_needs_no_torch():
    code = "import sys; from regard.cli import main; main(['compare', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
