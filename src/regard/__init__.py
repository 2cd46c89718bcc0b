"""`regard`: attention mechanisms under one contract, each checked against its authors' code.

Importing this package imports no torch; `create`, `create_model` and the contract classes do, on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regard.metadata import Example, No, Paper, Traits
from regard.registry import UnknownSystemError, create, get_class, register, systems

if TYPE_CHECKING:
    from regard.contract import ContractError, FeatureMixer, Model, SequenceMixer, State, state
    from regard.tasks.creation import create_model

from regard._version import VERSION as __version__

__all__ = [
    "ContractError",
    "Example",
    "FeatureMixer",
    "Model",
    "No",
    "Paper",
    "SequenceMixer",
    "State",
    "Traits",
    "UnknownSystemError",
    "__version__",
    "create",
    "create_model",
    "get_class",
    "register",
    "state",
    "systems",
]

_IN_CONTRACT = {"ContractError", "FeatureMixer", "Model", "SequenceMixer", "State", "state"}


def __getattr__(name: str) -> Any:
    if name in _IN_CONTRACT:
        from regard import contract

        return getattr(contract, name)
    if name == "create_model":
        from regard.tasks.creation import create_model

        return create_model
    raise AttributeError(f"module 'regard' has no attribute {name!r}")
