"""Rewriting a checkpoint's names."""

from __future__ import annotations

import pytest
import torch

from regard.layers.reference_names import rename, rename_all

RULES = ((r"^blocks\.(\d+)\.", r"stages.\1."), (r"\.proj\.", ".o_proj."))


def test_rules_follow_one_another() -> None:
    assert rename("blocks.3.proj.weight", RULES) == "stages.3.o_proj.weight"
    assert rename("my.blocks.3.weight", RULES) == "my.blocks.3.weight"


def test_two_names_must_not_become_one() -> None:
    tensors = {"a.proj.w": torch.zeros(1), "a.o_proj.w": torch.zeros(1)}
    with pytest.raises(KeyError, match=r"unknown keys: a\.o_proj\.w, beside another that stands for a\.o_proj\.w"):
        rename_all(tensors, RULES)
    assert list(rename_all({"blocks.0.proj.w": torch.zeros(1)}, RULES)) == ["stages.0.o_proj.w"]
