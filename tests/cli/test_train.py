"""`regard train`: what it writes, goes on with, plans, and refuses in one line."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_images import write_images
from tiny_translation import write_pairs

from regard.tasks import checkpoint

TINY = "dim=8,num_layers=1,num_heads=2,length=16,evaluation_tokens=64"
QUICK = ("--set", TINY, "--steps", "3", "--batch", "2", "--evaluate-every", "2", "--accelerator", "cpu")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("REGARD_LEADERS_FOLDER", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("the dog sleeps and the fox runs\n" * 30)
    return str(path)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_mechanism_is_trained_on_a_file(regard, text):
    ran = regard("train", "lightning", "--data", text, "--out", "out", *QUICK)
    assert ran.status == 0, ran.err
    assert "Traceback" not in ran.err
    assert {"model.safetensors", "last.safetensors", "log.csv", "evaluations.csv", "report.html", "run.json"} <= set(
        os.listdir("out")
    )
    assert not [name for name in os.listdir("out") if name.endswith(".tmp")]
    assert [row["step"] for row in rows(Path("out/log.csv"))] == ["1", "2", "3"]
    assert [row["step"] for row in rows(Path("out/evaluations.csv"))] == ["2", "3"]
    loaded = checkpoint.load(Path("out"))
    assert (loaded.model.config.mixer, loaded.model.config.dim, loaded.task.settings.length) == ("lightning", 8, 16)
    assert f"decoder_lm on language: {sum(p.numel() for p in loaded.model.parameters()):,} parameters" in ran.out
    assert "3 steps of 2 rows" in ran.out
    assert re.search(r"all steps done; best at step [23]\n", ran.out)
    assert re.search(r"validation: bits_per_byte \d\.\d+, perplexity \d+", ran.out)
    assert ran.out.endswith("out/model.safetensors\nout/log.csv\nout/report.html\n")
    page = Path("out/report.html").read_text()
    assert "decoder_lm on language" in page
    assert "lightning" in page
    stored = json.loads(Path("out/run.json").read_text())
    assert stored["recipe"] == {"steps": 3, "batch": 2, "evaluate_every": 2}


def test_two_runs_with_a_seed_are_equal_and_another_seed_is_not(regard, text):
    for name, seed in (("a", "4"), ("b", "4"), ("c", "5")):
        assert regard("train", "lightning", "--data", text, "--out", name, "--seed", seed, *QUICK).status == 0
    first, second, third = (checkpoint.load(Path(name)).model.state_dict() for name in "abc")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["head.weight"], third["head.weight"])


def test_without_out_a_folder_in_runs_is_made(regard, text):
    assert regard("train", "softmax", "--data", text, *QUICK).status == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("train-softmax-language-20")
    assert (folder / "model.safetensors").is_file()


def test_a_run_goes_on_as_it_was(regard, refused, text):
    assert regard("train", "lightning", "--data", text, *QUICK).status == 0
    (folder,) = Path("runs").iterdir()
    whole = (folder / "log.csv").read_bytes()
    # as if it had been interrupted before its first checkpoint
    for name in ("last.safetensors", "model.safetensors", "log.csv", "evaluations.csv"):
        (folder / name).unlink()
    ran = regard("train", "--resume", "--accelerator", "cpu")
    assert ran.status == 0, ran.err
    assert (folder / "log.csv").read_bytes() == whole
    assert os.listdir("runs") == [folder.name]
    again = regard("train", "lightning", "--resume", "--out", str(folder), "--accelerator", "cpu")
    assert again.status == 0
    assert "all steps done" in again.out
    assert (folder / "log.csv").read_bytes() == whole
    said = refused("train", "titans", "--resume", "--out", str(folder))
    assert said == f"regard train: the run in {folder} has system lightning, not titans"
    said = refused("train", "--resume", "--data", "other.txt", "--out", str(folder))
    assert said == f"regard train: the run in {folder} has data {text}, not other.txt"


def test_other_settings_are_no_continuation(regard, text):
    assert regard("train", "lightning", "--data", text, "--out", "out", *QUICK).status == 0
    ran = regard("train", "--resume", "--out", "out", "--set", "dropout=0.5", "--accelerator", "cpu")
    assert ran.status == 2
    assert "another config" in ran.err
    ran = regard("train", "--resume", "--out", "out", "--steps", "9", "--accelerator", "cpu")
    assert ran.status == 2
    assert "steps=3, not 9" in ran.err
    assert ran.err.count("\n") == 1
    assert regard("train", "--resume", "--out", "out", "--accelerator", "cpu").status == 0


@pytest.mark.parametrize("out", [None, "new", "there"])
def test_a_dry_run_shows_the_plan_and_writes_nothing(regard, text, out):
    Path("there").mkdir()
    where = () if out is None else ("--out", out)
    ran = regard("train", "lightning", "--data", text, *where, "--dry-run", *QUICK)
    assert ran.status == 0, ran.err
    assert os.listdir() == ["there"]
    assert os.listdir("there") == []
    assert "data: " in ran.out
    for name, value in (("dim", "8"), ("mixer", "lightning"), ("length", "16"), ("learning_rate", "0.003")):
        assert re.search(rf"^\S+ +{name} +{value}\s*$", ran.out, re.MULTILINE), name


def test_a_dry_run_of_a_run_leaves_it_as_it_is(regard, text):
    assert regard("train", "lightning", "--data", text, "--out", "out", *QUICK).status == 0
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    assert regard("train", "--resume", "--out", "out", "--dry-run").status == 0
    assert {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()} == before


WRONG = {
    "no system": ((), r"missing SYSTEM: regard list shows all names"),
    "unknown system": (("lightnin",), r".*lightnin.*did you mean lightning\?"),
    "a gate": (("eca",), r"eca is a feature mixer without a network that can be trained on its own"),
    "unknown task": (("softmax", "--task", "langauge"), r"unknown task 'langauge': did you mean language\?"),
    "another task": (("transnormer_lm", "--task", "events"), r"transnormer_lm has no network for events: .*"),
    "no data": (("softmax", "--data", "nothing"), r"there is no file or folder nothing"),
    "steps": (("softmax", "--steps", "0"), r"steps must be at least 1, got 0"),
    "steps in words": (("softmax", "--steps", "many"), r"--steps must be a whole number, got many"),
    "batch": (("softmax", "--batch", "-1"), r"batch must be at least 1, got -1"),
    "rate": (("softmax", "--learning-rate", "0"), r"learning_rate must be positive, got 0.0"),
    "seed": (("softmax", "--seed", "-1"), r"seed must not be negative, got -1"),
    "setting": (("softmax", "--set", "dimm=8"), r"no setting 'dimm': did you mean dim\?"),
    "no setting": (("softmax", "--set", "dim"), r"--set takes NAME=VALUE,NAME=VALUE, got 'dim'"),
    "value": (("softmax", "--set", "dim=wide"), r"decoder_lm: dim must be a whole number, got 'wide'"),
    "sizes": (("softmax", "--set", "dim=10,num_heads=3"), r"decoder_lm: .*3.*"),
    "option of the mechanism": (("softmax", "--set", 'mixer_options={"nope": 1}'), r"decoder_lm: softmax has no .*"),
    "argument": (("softmax", "--step", "3"), r"unknown argument --step; did you mean --steps\?"),
    "import": (("softmax", "--import", "nothing.py"), r"cannot import nothing\.py: there is no such file"),
    "nothing to resume": (("--resume",), r"missing SYSTEM: there is no run to resume"),
}


@pytest.mark.parametrize(("arguments", "line"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(regard, text, arguments, line):
    given = arguments if "--data" in arguments or not arguments or arguments[0].startswith("-") else None
    for out in ((), ("--out", "out")):
        ran = regard("train", *(given or (*arguments, "--data", text)), *out)
        assert ran.status == 2
        assert re.fullmatch(f"regard train: {line}\n", ran.err), ran.err
        assert not Path("out").exists()
        assert not Path("runs").exists() or os.listdir("runs") == []


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"", "is empty"), (b"\x7fELF\0", "is not UTF-8 text: byte 4 is zero"), (b"short", "give more text or a smaller")],
)
def test_bad_files_are_one_line(refused, tmp_path, content, line):
    (tmp_path / "bad").write_bytes(content)
    assert line in refused("train", "softmax", "--data", str(tmp_path / "bad"), "--out", "out")
    assert os.listdir() == []


@pytest.mark.parametrize(
    "arguments", [("--accelerator", "abacus"), ("--devices", "0"), ("--precision", "7-bit"), ("--strategy", "luck")]
)
def test_hardware_that_is_not_there_is_one_line(regard, text, arguments):
    ran = regard("train", "softmax", "--data", text, "--out", "out", *QUICK[:-2], *arguments)
    assert ran.status == 2
    assert ran.err.startswith("regard train: these devices cannot be used: ")
    assert ran.err.count("\n") == 1
    # what never began does not keep its folder from the next run
    assert regard("train", "softmax", "--data", text, "--out", "out", *QUICK).status == 0


def test_a_folder_with_a_run_is_not_overwritten(regard, refused, text):
    Path("out").mkdir()
    Path("out/run.json").write_text("{}")
    said = refused("train", "softmax", "--data", text, "--out", "out")
    assert said == "regard train: out already has run.json: go on with --resume, or name another --out"
    assert "cannot resume from out/run.json" in refused("train", "--resume", "--out", "out")
    assert Path("out/run.json").read_text() == "{}"
    Path("file").write_text("mine")
    assert "--out file is a file" in refused("train", "softmax", "--data", text, "--out", "file")


def test_a_loss_that_is_no_number_is_one_line(regard, text):
    ran = regard("train", "softmax", "--data", text, "--out", "out", *QUICK, "--learning-rate", "1e30")
    assert ran.status == 2
    assert re.match(r"regard train: the loss became (NaN|infinite) at step \d with learning rate", ran.err), ran.err
    assert ran.err.count("\n") == 1


def test_a_terminal_gets_a_bar_that_goes_away(regard, text, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    ran = regard("train", "softmax", "--data", text, "--out", "out", *QUICK)
    assert ran.status == 0, ran.err
    assert "Traceback" not in ran.err
    assert "all steps done" in ran.out


def test_a_mechanism_of_ones_own(regard, text):
    Path("own.py").write_text(
        "from pathlib import Path\n"
        "import regard.mixers.sequence.softmax as softmax\n"
        "source = Path(softmax.__file__).read_text()\n"
        "for name, mine in (('name=', 'own_softmax'), ('system=', 'own')):\n"
        "    source = source.replace(name + '\"softmax\"', name + repr(mine))\n"
        "exec(source)\n"
    )
    from regard import registry

    runtime, classes = dict(registry._runtime), dict(registry._classes)
    try:
        ran = regard("train", "own_softmax", "--import", "own.py", "--data", text, "--out", "out", *QUICK)
    finally:
        for kept, earlier in ((registry._runtime, runtime), (registry._classes, classes)):
            kept.clear()
            kept.update(earlier)
    assert ran.status == 0, ran.err


@pytest.mark.parametrize("task", ["translation", "classification"])
def test_other_tasks_are_trained_the_same_way(regard, tmp_path, task):
    quick = ("--steps", "2", "--batch", "2", "--accelerator", "cpu", "--out", "out")
    if task == "translation":
        data = write_pairs(tmp_path / "pairs")
        small = "tokenizer=bytes,max_length=60,dim=8,num_heads=2,num_kv_heads=2,mlp_dim=8,num_layers=1,beams=1"
        ran = regard("train", "palm", "--data", str(data), "--set", small + ",bleu_lines=2", *quick)
    else:
        data = write_images(tmp_path / "photos", {"cats": 5, "dogs": 5})
        ran = regard("train", "ninformer", "--data", str(data), "--set", "image_size=16", *quick)
    assert ran.status == 0, ran.err
    loaded = checkpoint.load(Path("out"))
    assert loaded.task.name == task
    assert re.search(rf"validation: .*{'perplexity' if task == 'translation' else 'accuracy'}", ran.out)
    assert np.isfinite(float(rows(Path("out/log.csv"))[-1]["loss"]))


def test_help_has_examples(regard):
    ran = regard("train", "--help")
    assert ran.status == 0
    assert "examples:\n  regard train transnormer\n" in ran.out
    assert "--resume" in ran.out


@pytest.fixture
def photos(tmp_path) -> str:
    return str(write_images(tmp_path / "photos", {"cats": 6, "dogs": 6}))


IMAGES = ("--set", "dims=[8,16],num_heads=[2,2],image_size=8", "--steps", "2", "--batch", "4", "--accelerator", "cpu")


def test_bad_images_are_listed_or_refused(regard, refused, photos):
    for number in range(7):
        Path(photos, "cats", f"{number}.jpg").write_bytes(b"")
    ran = regard("train", "davit", "--data", photos, "--out", "out", *IMAGES)
    assert ran.status == 0, ran.err
    assert "note: 7 files skipped: cats/0.jpg (is empty), " in ran.out
    assert "note: all of them are listed in out/bad_files.csv" in ran.out
    assert len(rows(Path("out/bad_files.csv"))) == 7
    said = refused("train", "davit", "--data", photos, "--out", "other", "--on-bad-image", "refuse", *IMAGES)
    assert re.search(r"photos has 7 files that cannot be used: cats/0\.jpg \(is empty\), .* and 2 more$", said)
    assert not Path("other").exists()


def test_a_run_starts_from_another_and_trains_its_classifier_alone(regard, refused, photos):
    assert regard("train", "davit", "--data", photos, "--out", "first", *IMAGES).status == 0
    arguments = ("--data", photos, "--pretrained", "first", "--freeze", "body", "--out", "second")
    ran = regard("train", "davit", *arguments, "--set", "ema=0.9,layer_decay=0.8,warmup=0", *IMAGES[2:])
    assert ran.status == 0, ran.err
    assert re.search(r"\n34 of the parameters are trained\n", ran.out)
    assert re.search(r"\n(\d+) of \1 weights and buffers are pretrained\n", ran.out)
    stored = json.loads(Path("second/run.json").read_text())
    assert (stored["pretrained"], stored["recipe"]["freeze"]) == ("first", "body")
    one, two = (checkpoint.load(Path(name)).model.state_dict() for name in ("first", "second"))
    assert {name for name, value in one.items() if not torch.equal(value, two[name])} <= {"head.weight", "head.bias"}
    (again,) = [regard("train", "--resume", "--out", "second", "--accelerator", "cpu")]
    assert again.status == 0, again.err
    said = refused("train", "--resume", "--out", "second", "--pretrained", "other")
    assert said == "regard train: the run in second has pretrained first, not other"
    said = refused("train", "davit", "--data", photos, "--pretrained", "nothing.pth", "--out", "third", *IMAGES)
    assert said == "regard train: there is no file nothing.pth"
    assert not Path("third").exists()


def test_an_option_for_images_is_refused_elsewhere(refused, text):
    said = refused("train", "lightning", "--data", text, "--on-bad-image", "skip", "--out", "out")
    assert said.startswith("regard train: no setting 'on_bad_image': ")
