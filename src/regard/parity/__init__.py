"""Parity with the authors' code: cases stored as files, adapters that call our code, a strict runner.

A case is a pair `<case>.safetensors` and `<case>.json`. `regard.parity.<system>` holds the adapters of a system.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.parity.runner import Report, verify

__all__ = ["Report", "verify"]


def __getattr__(name: str) -> Any:
    # on demand: listing the package (`regard info`) needs no torch
    if name in __all__:
        from regard.parity import runner

        return getattr(runner, name)
    raise AttributeError(f"module 'regard.parity' has no attribute {name!r}")
