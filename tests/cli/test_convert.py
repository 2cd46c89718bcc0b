"""`regard convert`: from a softmax network to Hedgehog and SEA, stage by stage."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

from regard.models.language.decoder import Decoder, DecoderConfig
from regard.tasks import checkpoint
from regard.tasks.evaluation import evaluate
from regard.tasks.language import Language, LanguageSettings
from regard.tasks.runs import Wishes, write_wishes

QUICK = ("--transfer-steps", "3", "--finetune-steps", "2", "--batch", "2", "--accelerator", "cpu")
SEA = ("--set", "keys_per_query=4,estimate_width=8,max_positions=64")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def save(task: Language, folder: str, mixer: str = "softmax") -> Decoder:
    config = DecoderConfig(dim=8, num_layers=1, num_heads=2, hidden=8, mixer=mixer)
    model = Decoder(config).eval()
    Path(folder).mkdir()
    header = checkpoint.header_of(task, "decoder_lm", config)
    checkpoint.save(Path(folder, "model.safetensors"), header, model.state_dict())
    return model


@pytest.fixture
def task(tmp_path) -> Language:
    path = tmp_path / "text.txt"
    path.write_text("the dog sleeps and the fox runs\n" * 30)
    task = Language(LanguageSettings(length=16, evaluation_tokens=64))
    task.read(path, cache=tmp_path)
    return task


@pytest.fixture
def teacher(task, tmp_path) -> Decoder:
    """A softmax network in the folder `run`."""
    model = save(task, "run")
    data = str(tmp_path / "text.txt")
    write_wishes(Path("run"), Wishes(system="softmax", task=None, data=data, settings={}, recipe={}))
    return model


def stages(out: str) -> dict[str, float]:
    found = re.findall(r"^(\w+): +bits per byte ([\d.]+), perplexity [\d.]+ \([\d.]+ of the teacher's\)$", out, re.M)
    return {name: float(bits) for name, bits in found}


@pytest.mark.parametrize(("to", "options"), [("hedgehog", ("--set", "tied=true")), ("sea", SEA)])
def test_every_stage_is_told_and_the_last_one_written(regard, task, teacher, tmp_path, to, options):
    before = Path("run/model.safetensors").read_bytes()
    ran = regard("convert", "run", "--to", to, "--out", "out", *options, *QUICK)
    assert ran.status == 0, ran.err
    assert "Traceback" not in ran.err
    assert f"data: {tmp_path / 'text.txt'}" in ran.out
    assert list(stages(ran.out)) == ["teacher", "swapped", "distilled", "finetuned"]
    assert ran.out.endswith("out/model.safetensors\nout/conversion.json\n")
    stored = json.loads(Path("out/conversion.json").read_text())
    assert list(stored) == ["teacher", "swapped", "distilled", "finetuned"]
    assert stored["teacher"] == pytest.approx(evaluate(task, teacher, "validation", 8))
    loaded = checkpoint.load(Path("out"))
    assert loaded.model.config.mixer == to
    assert stored["finetuned"] == pytest.approx(evaluate(task, loaded.model, "validation", 8))
    assert loaded.header.metrics == stored["finetuned"]
    for name, bits in stages(ran.out).items():
        assert bits == pytest.approx(stored[name]["bits_per_byte"], abs=1e-4)
    distilled = checkpoint.load(Path("out/transfer/last.safetensors")).model.state_dict()
    for name, value in teacher.state_dict().items():
        assert torch.equal(distilled[name], value), name
    assert Path("run/model.safetensors").read_bytes() == before


def test_stages_may_be_left_out(regard, teacher):
    ran = regard("convert", "run", "--to", "hedgehog", "--out", "out", "--transfer-steps", "0", "--finetune-steps", "0")
    assert ran.status == 0, ran.err
    assert list(stages(ran.out)) == ["teacher", "swapped"]
    assert not Path("out/transfer").exists()
    student = checkpoint.load(Path("out")).model.state_dict()
    assert all(torch.equal(student[name], value) for name, value in teacher.state_dict().items())


def test_other_text_may_be_given(regard, teacher, tmp_path):
    (tmp_path / "other.txt").write_text("0123456789 " * 60)
    other = ("--data", str(tmp_path / "other.txt"))
    ran = regard("convert", "run/model.safetensors", "--to", "hedgehog", "--out", "out", *other, *QUICK)
    assert ran.status == 0, ran.err
    assert f"data: {tmp_path / 'other.txt'}" in ran.out


def test_an_interrupted_conversion_goes_on(regard, teacher):
    assert regard("convert", "run", "--to", "hedgehog", "--out", "whole", *QUICK).status == 0
    assert regard("convert", "run", "--to", "hedgehog", "--out", "out", *QUICK).status == 0
    # as if it had been interrupted while finetuning
    for name in ("model.safetensors", "conversion.json", "finetune/last.safetensors", "finetune/model.safetensors"):
        Path("out", name).unlink()
    ran = regard("convert", "run", "--to", "hedgehog", "--out", "out", "--resume", *QUICK)
    assert ran.status == 0, ran.err
    one, two = (checkpoint.load(Path(folder)).model.state_dict() for folder in ("whole", "out"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert json.loads(Path("out/conversion.json").read_text()) == json.loads(Path("whole/conversion.json").read_text())


WRONG = {
    "unknown mechanism": (("--to", "hedgehg"), r".*hedgehg.*did you mean hedgehog.*"),
    "a mechanism that cannot": (("--to", "lightning"), r"lightning cannot take over softmax attention: .*"),
    "the same with options": (
        ("--to", "lightning", "--set", "a=1"),
        r"lightning cannot take over softmax attention: .*",
    ),
    "a gate": (("--to", "eca"), r"eca cannot take over softmax attention: it has no from_softmax"),
    "an option": (("--to", "hedgehog", "--set", "nope=1"), r"hedgehog takes over softmax with feature_map, .* 'nope'"),
    "the teacher": (("--to", "hedgehog", "--set", "teacher=1"), r"hedgehog takes over softmax with .* 'teacher'"),
    "a value": (("--to", "hedgehog", "--set", "feature_map=magic"), r"hedgehog: .*magic.*"),
    "no value": (("--to", "hedgehog", "--set", "tied"), r"--set takes NAME=VALUE,NAME=VALUE, got 'tied'"),
    "steps": (("--to", "hedgehog", "--transfer-steps", "-1"), r"--transfer-steps must not be negative, got -1"),
    "more steps": (("--to", "hedgehog", "--finetune-steps", "-1"), r"--finetune-steps must not be negative, got -1"),
    "batch": (("--to", "hedgehog", "--batch", "0"), r"transfer: batch must be at least 1, got 0"),
    "rate": (("--to", "hedgehog", "--finetune-rate", "-1"), r"finetune: learning_rate must be positive, got -1\.0"),
    "seed": (("--to", "hedgehog", "--seed", "-1"), r"transfer: seed must not be negative, got -1"),
    "no data": (("--to", "hedgehog", "--data", "nothing"), r"there is no file or folder nothing"),
    "no mechanism": ((), r"missing --to"),
}


@pytest.mark.parametrize(("arguments", "line"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(refused, teacher, arguments, line):
    said = refused("convert", "run", *arguments, "--out", "out")
    assert re.fullmatch(f"regard convert: {line}", said), said
    assert os.listdir() == ["run"]


def test_what_is_no_softmax_network_is_refused(refused, task, teacher):
    save(task, "linear", mixer="lightning")
    to = ("--to", "hedgehog", "--out", "out")
    assert "only softmax attention can be converted" in refused("convert", "linear", *to)
    assert refused("convert", "nothing", *to) == "regard convert: there is no checkpoint nothing"
    assert refused("convert", ".", *to) == "regard convert: there is no checkpoint model.safetensors"
    Path("run/model.safetensors").write_bytes(b"short")
    assert "is no safetensors file, or a damaged one" in refused("convert", "run", *to)
    assert not Path("out").exists()


def test_a_network_of_another_kind_is_refused(refused, task):
    from regard.registry import get_class
    from regard.tasks.networks import configure

    config = configure("transnormer", "transnormer_lm", task.model_fields(), {"dim": "8", "num_layers": "1"})
    Path("run").mkdir()
    header = checkpoint.header_of(task, "transnormer_lm", config)
    checkpoint.save(Path("run/model.safetensors"), header, get_class("transnormer_lm")(config).state_dict())
    said = refused("convert", "run", "--to", "hedgehog", "--out", "out")
    assert said == "regard convert: run is no language model of regard train softmax: it holds transnormer_lm"


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_the_teacher_is_never_overwritten(refused, teacher, resume):
    before = Path("run/model.safetensors").read_bytes()
    for checkpoint_path in ("run", "run/model.safetensors"):
        said = refused("convert", checkpoint_path, "--to", "hedgehog", "--out", "run/../run", *resume)
        assert said.endswith("holds the network that is to be converted: name another folder")
    assert Path("run/model.safetensors").read_bytes() == before


def test_a_folder_with_another_network_is_not_overwritten(refused, task, teacher):
    save(task, "out")
    before = Path("out/model.safetensors").read_bytes()
    said = refused("convert", "run", "--to", "hedgehog", "--out", "out")
    assert said == "regard convert: out already has model.safetensors: go on with --resume, or name another --out"
    assert Path("out/model.safetensors").read_bytes() == before


def test_hardware_that_is_not_there_is_one_line(regard, teacher):
    ran = regard("convert", "run", "--to", "hedgehog", "--out", "out", *QUICK[:-1], "abacus")
    assert ran.status == 2
    assert ran.err.startswith("regard convert: these devices cannot be used: ")
    assert ran.err.count("\n") == 1


def test_help_has_examples(regard):
    ran = regard("convert", "--help")
    assert ran.status == 0
    assert "examples:\n  regard convert runs/softmax --to hedgehog --out runs/hedgehog\n" in ran.out
