"""The races can be imported beside what they race, and all of them are run."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
NOT_RACES = {"run", "harness", "lightning_attention_gpu", "hip_gpu", "long_prompt"}


def test_no_file_has_the_name_of_a_package() -> None:
    """A script's folder comes first on Python's path: benchmarks/lightning.py would hide the package lightning."""
    taken = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names)
    assert {"torch", "numpy", "json"} <= taken
    assert not {path.stem for path in FOLDER.glob("*.py")} & taken


def test_every_file_is_run_and_exists() -> None:
    tree = ast.parse((FOLDER / "run.py").read_text(encoding="utf-8"))
    (files,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "FILES"
    )
    assert set(files) == {path.stem for path in FOLDER.glob("*.py")} - NOT_RACES
