"""Operators of maps and reductions, and what they compute with NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "+": (2, np.add),
    "-": (2, np.subtract),
    "*": (2, np.multiply),
    "/": (2, np.divide),
    "neg": (1, np.negative),
    "<=": (2, np.less_equal),
    "<": (2, np.less),
    ">=": (2, np.greater_equal),
    ">": (2, np.greater),
    "==": (2, np.equal),
    "and": (2, np.logical_and),
    "max": (2, np.maximum),
    "min": (2, np.minimum),
    "exp": (1, np.exp),
    "log": (1, np.log),
    "sqrt": (1, np.sqrt),
    "abs": (1, np.abs),
    "relu": (1, lambda x: np.maximum(x, 0.0)),
    "softplus": (1, _softplus),
    "pow": (2, np.power),
    "where": (3, np.where),
}
"""Number of arguments and what they become."""
REDUCTIONS: dict[str, Callable[..., Any]] = {"sum": np.sum, "max": np.max, "min": np.min, "prod": np.prod}
CONSTANTS = {"inf": np.inf}
COST_FREE = frozenset(("<=", "<", ">=", ">", "==", "and", "where", "neg"))
"""What selects, and computes nothing on data."""
