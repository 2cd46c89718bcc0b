"""`regard verify`: a row per system, a line per failing case, and the counts alone on the last line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from regard.parity import adapters
from regard.parity.adapters import Case, Outcome, adapter


def write(folder: Path, system: str, case: str, *, off_by: float = 0.0) -> None:
    """A case of a reference that doubles its input."""
    x = torch.randn(2, 5)
    described = {
        "system": system,
        "case": case,
        "reference": {"repo": "r", "commit": "c", "entry": "double"},
        "config": {},
        "call": {"inputs": ["x"], "kwargs": {}},
        "outputs": ["y"],
        "mode": "eval",
        "tolerance": {"rtol": 1e-4, "atol": 1e-5},
        "notes": "",
    }
    (folder / system).mkdir(parents=True, exist_ok=True)
    (folder / system / f"{case}.json").write_text(json.dumps(described))
    save_file({"in.x": x, "out.y": 2 * x + off_by}, folder / system / f"{case}.safetensors")


@pytest.fixture
def cases(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(adapters, "_adapters", {})

    def double(case: Case) -> Outcome:
        return Outcome(outputs={"y": case.inputs["x"] * 2})

    for system in ("one", "two"):
        adapter("double", system=system)(double)
    write(tmp_path / "cases", "one", "first")
    write(tmp_path / "cases", "one", "second")
    write(tmp_path / "cases", "two", "third")
    return tmp_path / "cases"


def test_all_passed_is_exit_0(regard, cases) -> None:
    ran = regard("verify", str(cases))
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert lines[-1] == "3 passed, 0 failed"
    rows = {line.split()[0]: line.split() for line in lines[1:-1]}
    assert rows["one"][1:3] == ["2", "2"]
    assert rows["two"][1:3] == ["1", "1"]
    assert rows["one"][-1] == rows["two"][-1] == "passed"
    assert not any(line.startswith("FAILED") for line in lines)


def test_a_failing_case_is_one_line_with_the_reason_and_exit_1(regard, cases, tmp_path) -> None:
    write(cases, "two", "wrong", off_by=1.0)
    ran = regard("verify", str(cases), "--json", str(tmp_path / "report.json"))
    assert ran.status == 1
    lines = ran.out.splitlines()
    assert lines[-1] == "3 passed, 1 failed"
    (failed,) = [line for line in lines if line.startswith("FAILED")]
    assert failed.startswith("FAILED two/wrong: out.y is off by")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["passed"], report["failed"]) == (3, 1)
    assert {case["case"]: case["passed"] for case in report["cases"]} == {
        "first": True,
        "second": True,
        "third": True,
        "wrong": False,
    }
    assert report["cases"][-1]["problems"][0].startswith("out.y is off by")


def test_systems_choose(regard, cases) -> None:
    write(cases, "two", "wrong", off_by=1.0)
    assert regard("verify", str(cases), "--systems", "one").out.splitlines()[-1] == "2 passed, 0 failed"
    assert regard("verify", str(cases), "--systems", "one, two").out.splitlines()[-1] == "3 passed, 1 failed"


def test_no_case_at_all_is_exit_1(regard, tmp_path) -> None:
    ran = regard("verify", str(tmp_path))
    assert ran.status == 1
    assert ran.out.splitlines()[-1] == "0 passed, 0 failed"


def test_wrong_arguments_are_one_line_and_exit_2(refused, cases, tmp_path) -> None:
    assert "is not a folder" in refused("verify", str(tmp_path / "nowhere"))
    assert "no case of the system 'three'" in refused("verify", str(cases), "--systems", "one,three")
    assert "separated by commas" in refused("verify", str(cases), "--systems", "one,,two")
    assert "there is no folder" in refused("verify", str(cases), "--json", str(tmp_path / "nowhere" / "a.json"))
    assert "it is a folder" in refused("verify", str(cases), "--json", str(tmp_path))
