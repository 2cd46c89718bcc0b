"""Shared by all tests: one thread, fixed seeds, and library memory that is never accidentally zero."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# a test has a core to itself: threads of the processes that it starts would only wait for those of other tests
os.environ.setdefault("OMP_NUM_THREADS", "1")

OUTSIDERS = Path(__file__).parent / "compare" / "outsiders.py"
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


@pytest.fixture(autouse=True)
def _no_compiled_code_of_other_tests() -> Iterator[None]:
    """Dynamo keeps at most eight graphs of one function: those of a finished test must not count against the next."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets; a test that needs one skips where it is absent."""
    folder = Path(os.environ.get("REGARD_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder} (set REGARD_DATA)")
    return folder


@pytest.fixture
def outsiders() -> Iterator[str]:
    """The file of toy mechanisms, imported for the time of one test."""
    from regard import registry
    from regard.compare.mechanisms import import_outsider

    runtime, classes = dict(registry._runtime), dict(registry._classes)
    import_outsider(str(OUTSIDERS))
    yield str(OUTSIDERS)
    registry._runtime.clear()
    registry._runtime.update(runtime)
    registry._classes.clear()
    registry._classes.update(classes)
    for name in [name for name in sys.modules if name.startswith("regard_import_outsiders")]:
        del sys.modules[name]
