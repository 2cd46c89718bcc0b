"""Maximum over cubes of 2 x 2 x 2 positions, whose gradient may go to all positions that are nearly the largest.

PyTorch gives the gradient to one position. TensorFlow's kernel for volumes on CPUs gives it, whole, to every position
within 1e-5 of the maximum (`tensorflow/core/kernels/pooling_ops_3d.cc`), so that networks trained there saw that.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import max_pool3d

Volumes = Float[Tensor, "batch channels x y z"]
Halved = Float[Tensor, "batch channels x_half y_half z_half"]

TENSORFLOW = 1e-5
"""The distance in TensorFlow's kernel."""


def tied_max_pool(x: Volumes, ties: float = 0.0) -> Halved:
    """The maximum of every cube.

    Args:
        x: the map, with even sides.
        ties: positions nearer than this to the maximum all get its gradient; 0 = the first of the largest alone.
    """
    return _TiedMaxPool.apply(x, ties) if ties else max_pool3d(x, 2)


class _TiedMaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ties: float) -> Tensor:
        y = max_pool3d(x, 2)
        ctx.save_for_backward(x, y)
        ctx.ties = ties
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors
        near = (x - _repeated(y)).abs() < ctx.ties
        return torch.where(near, _repeated(gradient), 0), None


def _repeated(x: Halved) -> Volumes:
    for axis in (2, 3, 4):
        x = x.repeat_interleave(2, dim=axis)
    return x
