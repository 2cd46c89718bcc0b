"""What a benchmark file is made of: a race's outcome, and inputs of the usual sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

HEADS, WIDTH = 8, 64


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One race: what was measured, beside the target that was set before.

    Args:
        name: short name, unique.
        what: what was raced, at which sizes.
        value: the measured ratio.
        measured: the figure as shown.
        target: the target as shown.
        met: whether the target is met.
        detail: further figures: times, other ratios.
    """

    name: str
    what: str
    value: float
    measured: str
    target: str
    met: bool
    detail: str = ""

    def as_json(self) -> dict[str, object]:
        """Plain data for the results file."""
        return asdict(self)


def at_least(name: str, what: str, value: float, target: float, *, unit: str = "x", detail: str = "") -> Outcome:
    """An outcome that is met when `value >= target`."""
    return Outcome(
        name=name,
        what=what,
        value=value,
        measured=f"{value:.2f}{unit}",
        target=f">= {target:g}{unit}",
        met=value >= target,
        detail=detail,
    )


def at_most(name: str, what: str, value: float, target: float, *, unit: str = "x", detail: str = "") -> Outcome:
    """An outcome that is met when `value <= target`."""
    return Outcome(
        name=name,
        what=what,
        value=value,
        measured=f"{value:.2f}{unit}",
        target=f"<= {target:g}{unit}",
        met=value <= target,
        detail=detail,
    )


def queries_keys_values(tokens: int, dtype: torch.dtype, *, gradients: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Random `(1, 8, tokens, 64)` tensors."""
    generator = torch.Generator().manual_seed(tokens)
    made = (torch.randn(1, HEADS, tokens, WIDTH, generator=generator).to(dtype) for _ in range(3))
    q, k, v = (x.requires_grad_(gradients) for x in made)
    return q, k, v


def short(dtype: torch.dtype) -> str:
    """`torch.bfloat16` as `bfloat16`."""
    return str(dtype).removeprefix("torch.")
