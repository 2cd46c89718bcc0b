"""The loader accounts for every tensor of every stored case, also of the systems that are not there yet."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from regard.parity.cases import find_cases, load_case

REPOSITORY = Path(__file__).resolve().parents[2]
STORED = REPOSITORY / "tests" / "parity" / "cases"
SYSTEMS = {"aaren", "eca", "hedgehog", "lightning", "softplus"}


def names_in_header(path: Path) -> set[str]:
    """Tensor names, read from the file's own header without the loader."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return set(json.loads(data[8 : 8 + size])) - {"__metadata__"}


def account(folder: Path) -> dict[str, int]:
    """Load every case; every tensor of its file must have found exactly one place. Cases per system."""
    files = {path for path in folder.rglob("*") if path.is_file()}
    counts: dict[str, int] = {}
    for path in find_cases(folder):
        case = load_case(path)
        placed = [f"state.{name}" for name in case.state] + [f"in.{name}" for name in case.inputs]
        placed += [f"out.{name}" for name in case.expected]
        for loss, gradients in case.gradients.items():
            placed += [f"grad.{loss}.{name}" if loss else f"grad.{name}" for name in gradients]
        tensors = path.with_suffix(".safetensors")
        assert sorted(placed) == sorted(names_in_header(tensors)), path
        assert case.system == path.parent.name
        assert set(case.input_leaves) <= {f"in.{name}" for name in case.inputs}
        files -= {path, tensors}
        counts[case.system] = counts.get(case.system, 0) + 1
    assert not files, f"files that belong to no case: {sorted(files)}"
    return counts


def test_every_tensor_of_the_stored_cases_is_accounted_for() -> None:
    counts = account(STORED)
    assert set(counts) >= SYSTEMS
    assert sum(counts.values()) >= 15


def test_every_tensor_of_all_golden_cases_is_accounted_for() -> None:
    folder = Path(os.environ.get("REGARD_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no golden cases at {folder} (set REGARD_GOLDEN)")
    counts = account(folder)
    assert set(counts) >= SYSTEMS


def test_the_stored_cases_are_those_of_the_golden_folder() -> None:
    folder = Path(os.environ.get("REGARD_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no golden cases at {folder} (set REGARD_GOLDEN)")
    for path in sorted(STORED.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (folder / path.relative_to(STORED)).read_bytes(), path
    for system in sorted(path.name for path in STORED.iterdir()):
        assert {path.name for path in (STORED / system).iterdir()} == {
            path.name for path in (folder / system).iterdir()
        }
