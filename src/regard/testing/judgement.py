"""How checks judge: a condition, two tensors that must agree, a call that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from regard.contract import ContractError

EXACT = 1e-8
"""Relative tolerance in float64: far above rounding, far below any defect."""
SINGLE = 1e-5
"""The same in float32."""
HALF = 0.02
"""Relative Frobenius error that bfloat16 may have against float32: one bound for all."""

_SMALLEST_SCALE = 1e-3


def require(condition: bool, message: str) -> None:
    """Raise `ContractError(message)` unless `condition` holds."""
    if not condition:
        raise ContractError(message)


def require_finite(value: Tensor, what: str) -> None:
    """Refuse NaN and infinity, with their number."""
    bad = int((~torch.isfinite(value)).sum())
    require(bad == 0, f"{what} has {bad} of {value.numel()} values that are not finite")


def require_zero(value: Tensor, what: str) -> None:
    """Refuse anything that is not exactly 0."""
    bad = int((value != 0).sum())
    worst = value.abs().nan_to_num(torch.inf).max().item() if value.numel() else 0.0
    require(bad == 0, f"{what} must be exactly 0, {bad} of {value.numel()} values are not (largest {worst:.3g})")


def agree(actual: Tensor, expected: Tensor, what: str, *, tolerance: float = EXACT) -> None:
    """Refuse a largest difference above `tolerance` times the largest expected magnitude; NaN never agrees."""
    require(actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    if actual.numel() == 0:
        return
    actual, expected = actual.detach().double(), expected.detach().double()
    error = (actual - expected).abs().nan_to_num(torch.inf)
    scale = max(expected.abs().max().item(), _SMALLEST_SCALE)
    worst = int(error.argmax())
    place = tuple(int(index) for index in torch.unravel_index(torch.tensor(worst), actual.shape))
    require(
        error.max().item() <= tolerance * scale,
        f"{what}: {actual.flatten()[worst].item():.6g} instead of {expected.flatten()[worst].item():.6g} at {place}, "
        f"error {error.max().item():.3g}, allowed {tolerance * scale:.3g}",
    )


def agree_on_the_whole(actual: Tensor, expected: Tensor, what: str, *, tolerance: float = HALF) -> None:
    """Refuse a relative Frobenius error above `tolerance`."""
    error = (torch.linalg.norm(actual.double() - expected.double()) / torch.linalg.norm(expected.double())).item()
    require(error <= tolerance, f"{what}: relative error {error:.2%}, allowed {tolerance:.0%}")


def refused(call: Callable[[], Any], what: str, *fragments: object, error: type[Exception] = ValueError) -> None:
    """Require that `call` raises `error` with a message that contains every fragment."""
    try:
        call()
    except error as raised:
        message = str(raised)
        missing = [str(fragment) for fragment in fragments if str(fragment) not in message]
        if missing:
            raise ContractError(f"{what} is refused without naming {', '.join(missing)}: {message!r}") from None
        return
    except Exception as raised:
        raise ContractError(
            f"{what} must raise {error.__name__}, it raised {type(raised).__name__}: {raised}"
        ) from raised
    raise ContractError(f"{what} must raise {error.__name__}, it was accepted")
