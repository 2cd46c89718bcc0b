"""Packing: the real tokens of each row moved to its front, which is how the mask rule is kept, once for all."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def pack_rows(mask: Bool[Tensor, "batch tokens"]) -> tuple[Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """The order that moves the real tokens of each row to its front, and the mask in that order."""
    order = torch.argsort(mask.logical_not().to(torch.uint8), dim=1, stable=True)
    counts = mask.sum(dim=1, keepdim=True)
    return order, torch.arange(mask.shape[1], device=mask.device) < counts


def take_tokens(x: Tensor, order: Int[Tensor, "batch tokens"], *, dim: int) -> Tensor:
    """Reorder axis `dim` of `x` (batch on axis 0) by a different order in every row."""
    shape = [1] * x.ndim
    shape[0], shape[dim] = order.shape
    expanded = list(x.shape)
    expanded[0] = order.shape[0]
    return x.expand(expanded).gather(dim, order.view(shape).expand(expanded))
