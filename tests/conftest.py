"""Shared by all tests: one thread, fixed seeds, and library memory that is never accidentally zero."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(20261)


@pytest.fixture(autouse=True)
def _uninitialised_memory_is_nan() -> Iterator[None]:
    """`torch.empty` made by the library is filled with NaN, so that a slot nobody wrote is seen."""
    import torch

    torch.utils.deterministic.fill_uninitialized_memory = True
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets; a test that needs one skips where it is absent."""
    folder = Path(os.environ.get("REGARD_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder} (set REGARD_DATA)")
    return folder
