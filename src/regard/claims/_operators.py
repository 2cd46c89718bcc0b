"""What claims about attention operators share: random inputs, how far two forms are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regard.contract import SequenceMixer

HEADS, WIDTH = 8, 64
"""The usual size of an operator that is timed."""


def random_tensors(*shapes: tuple[int, ...], seed: int, gradients: bool = False) -> list[Tensor]:
    """Normal float32 numbers that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_(gradients) for shape in shapes]


def timed_inputs(tokens: int, *, heads: int = HEADS, width: int = WIDTH) -> list[Tensor]:
    """Queries, keys and values `(1, heads, tokens, width)`."""
    return random_tensors(*[(1, heads, tokens, width)] * 3, seed=tokens)


@torch.no_grad()
def state_bytes_after(mixer: SequenceMixer, tokens: int) -> int:
    """Bytes of one row's decoding state after so many tokens, with room for no more; the count of tokens included."""
    _, state = mixer.step(torch.zeros(1, tokens, mixer.dim), mixer.init_state(1, max_len=tokens))
    return state.nbytes


def worst_error(actual: Tensor, expected: Tensor) -> float:
    """The largest relative error of an entry; entries below the root mean square count relative to it. NaN is infinite.

    An entry that is a small difference of large terms has no relative accuracy of its own.
    """
    actual, expected = actual.detach().double(), expected.detach().double()
    typical = expected.square().mean().sqrt()
    errors = (actual - expected).abs() / torch.maximum(expected.abs(), typical).clamp(min=1e-30)
    return float(errors.nan_to_num(torch.inf).max())


def worst_error_with_gradients(
    form: Callable[[], Tensor], reference: Callable[[], Tensor], leaves: Sequence[Tensor], *, seed: int
) -> float:
    """`worst_error` of two forms' values and of their gradients with respect to `leaves`, under random weights."""
    results = []
    for function in (form, reference):
        y = function()
        (upstream,) = random_tensors(tuple(y.shape), seed=seed)
        results.append([y, *torch.autograd.grad(y, list(leaves), upstream)])
    return max(worst_error(ours, expected) for ours, expected in zip(*results, strict=True))
