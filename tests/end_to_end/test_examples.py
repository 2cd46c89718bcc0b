"""Every example runs as its docstring says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_example(name: str, folder: Path) -> str:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd=folder, capture_output=True, text=True, check=False, timeout=600
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_every_example_is_run_here() -> None:
    named = {
        "choose.py",
        "use.py",
        "trust.py",
        "see.py",
        "train.py",
        "backbone.py",
        "fine_tune.py",
        "language_model.py",
    }
    assert {path.name for path in EXAMPLES.glob("*.py")} == named


@pytest.mark.slow
def test_backbone(tmp_path: Path) -> None:
    lines = run_example("backbone.py", tmp_path).splitlines()
    assert lines[0].split()[1:3] == ["networks", "are"]
    assert [line.split(": ")[1] for line in lines if line.startswith("stride")] == [
        "map of (64, 60, 80)",
        "map of (64, 30, 40)",
        "map of (64, 15, 20)",
        "map of (64, 8, 10)",
    ]
    assert float(lines[-1].rpartition(" ")[2]) < 0.1


@pytest.mark.slow
def test_language_model(tmp_path: Path) -> None:
    lines = run_example("language_model.py", tmp_path).splitlines()
    assert lines[0].startswith("registered: regard_softmax, regard_hip, ")
    assert lines[2] == "regard_softmax the same tokens"
    assert [line.split(":")[0] for line in lines[3:]] == [
        "regard_hip",
        "recycled",
        "streaming_llm",
        "lightning in two layers",
    ]


@pytest.mark.slow
def test_fine_tune(tmp_path: Path) -> None:
    lines = run_example("fine_tune.py", tmp_path).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1::2]] == ["accuracy on the validation part"] * 3
    _, head, whole = (float(line.split()[-2]) for line in lines[1::2])
    # half of the digits are odd
    assert head > 60
    assert whole > 85


def test_use(tmp_path: Path) -> None:
    lines = run_example("use.py", tmp_path).splitlines()
    assert any(line.startswith("softmax ") for line in lines)
    assert all("padded = unpadded" in line for line in lines)


def test_trust(tmp_path: Path) -> None:
    printed = run_example("trust.py", tmp_path)
    assert "RunningMean keeps the contract" in printed
    assert "LeakingMean fails future-causal" in printed


def test_see(tmp_path: Path) -> None:
    run_example("see.py", tmp_path)
    assert (tmp_path / "attention_maps.png").read_bytes().startswith(b"\x89PNG")


def test_train(tmp_path: Path) -> None:
    lines = run_example("train.py", tmp_path).splitlines()
    assert lines[1].startswith("all steps done")
    # an untrained network has 8 bits per byte
    assert float(lines[2].removeprefix("bits per byte: ")) < 5.5
    assert lines[3].startswith("generated: 'def ")


@pytest.mark.slow
def test_choose(tmp_path: Path) -> None:
    printed = run_example("choose.py", tmp_path)
    for question in ("Best quality", "Best at long context", "Best decoding"):
        assert f"{question}: " in printed
