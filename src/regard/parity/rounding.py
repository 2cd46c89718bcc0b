"""Whether a mismatch is rounding: settled in float64, by how far one rounding of the inputs moves the exact result.

A float32 result can be known only as exactly as its computation is well conditioned. Where a tensor of a case misses
the tolerance, the case is run again in float64, and again with every number of its state and inputs moved by one
float32 rounding (relative 2^-24, up or down at random). The largest move of the tensor is what float32 leaves open at
the least, since a computation rounds at every operation and not at its inputs alone. The mismatch is rounding if the
stored tensor lies within tolerance plus that of our float64 result, and our float32 result does too. An error of ours
moves the float64 result away from the stored one by more, so it stays a failure. See decision 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from regard.parity.cases import Case, Tensors

UNIT = 2.0**-24
"""Half the distance of neighbouring float32 numbers, relative."""
DRAWS = 8

Collect = Callable[[Case], Mapping[str, Tensor]]
"""Runs a case and gives all its outputs and gradients under their names in the file."""


def rounding_allowance(case: Case, collect: Collect) -> tuple[Mapping[str, Tensor], dict[str, float]]:
    """The case's exact results, and for each how far float32 leaves it open.

    Args:
        case: the case.
        collect: runs it.

    Returns:
        Results in float64 by name, and the absolute allowance by name.
    """
    with _float64_by_default():
        exact = collect(_moved(case, None))
        allowance = dict.fromkeys(exact, 0.0)
        for seed in range(DRAWS):
            moved = collect(_moved(case, torch.Generator().manual_seed(seed)))
            for name, tensor in moved.items():
                if tensor.is_floating_point() and tensor.shape == exact[name].shape and tensor.numel():
                    allowance[name] = max(allowance[name], float((tensor - exact[name]).abs().max()))
    return exact, allowance


def is_rounding(stored: Tensor, ours: Tensor, exact: Tensor, allowance: float, *, rtol: float, atol: float) -> bool:
    """Whether stored and our float32 results are both as near to the exact one as float32 can be.

    Args:
        stored: the reference's.
        ours: in float32.
        exact: ours in float64.
        allowance: how far float32 leaves it open.
        rtol: relative tolerance of the case.
        atol: absolute tolerance of the case.
    """
    if not (stored.is_floating_point() and stored.shape == ours.shape == exact.shape):
        return False
    allowed = atol + rtol * stored.double().abs() + allowance
    return all(
        bool(((tensor.detach().double() - exact.detach().double()).abs() <= allowed).all()) for tensor in (stored, ours)
    )


def _moved(case: Case, generator: torch.Generator | None) -> Case:
    """The case in float64, with its numbers moved by one float32 rounding where there is a generator."""

    def move(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        wide = tensor.detach().double()
        if generator is not None:
            signs = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
            wide = wide * (1 + UNIT * signs)
        return wide.requires_grad_(tensor.requires_grad)

    return replace(
        case,
        state=Tensors({name: move(case.state.peek(name)) for name in case.state}),
        inputs=Tensors({name: move(case.inputs.peek(name)) for name in case.inputs}),
    )


@contextmanager
def _float64_by_default() -> Iterator[None]:
    """Modules that an adapter builds then have float64 parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


__all__ = ["Collect", "is_rounding", "rounding_allowance"]
