"""The lightning kernels under Triton's interpreter; run by `test_lightning.py` in a process of its own.

The interpreter is chosen when Triton is first imported: TRITON_INTERPRET=1 must be set before.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from regard.mixers.sequence.hedgehog import HedgehogAttention
from regard.mixers.sequence.lightning import LightningAttention
from regard.ops import linear_attention as op
from regard.ops.linear_attention import linear_attention, linear_attention_with_state
from regard.ops.triton import available

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("these tests need TRITON_INTERPRET=1 before Triton is imported")

SLOPES = (0.3, 40.0)


def by_formula(
    q: Tensor, k: Tensor, v: Tensor, slopes: tuple[float, ...] | None, state: Tensor, tokens: list[int]
) -> tuple[Tensor, Tensor]:
    """Each row of a batch for itself, the masked quadratic form in float64: sums, 0 after its tokens, and the state."""
    rates = torch.zeros(q.shape[1]) if slopes is None else torch.tensor(slopes)
    sums, states = [], []
    for row, length in enumerate(tokens):
        queries, keys, values, before = (x[row].double() for x in (q, k, v, state))
        queries, keys, values = (x[:, :length] for x in (queries, keys, values))
        position = torch.arange(length, dtype=torch.float64)
        age = position[:, None] - position
        decay = torch.exp(-rates[:, None, None] * age.clamp(min=0)) * (age >= 0)
        since_start = torch.exp(-rates[:, None] * (position + 1))
        to_end = torch.exp(-rates[:, None] * (length - 1 - position))
        y = (queries @ keys.mT * decay) @ values + since_start[..., None] * (queries @ before)
        sums.append(torch.nn.functional.pad(y, (0, 0, 0, q.shape[2] - length)))
        kept = before * torch.exp(-rates * length)[:, None, None]
        states.append(kept + (keys * to_end[..., None]).mT @ values)
    return torch.stack(sums), torch.stack(states)


def tensors(batch: int, tokens: int, key_width: int, value_width: int) -> list[Tensor]:
    shapes = [(batch, 2, tokens, key_width)] * 2 + [(batch, 2, tokens, value_width), (batch, 2, key_width, value_width)]
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def compare(leaves: list[Tensor], slopes: tuple[float, ...] | None, lengths: list[int] | None = None) -> None:
    q, k, v, state = leaves
    tokens = q.shape[2]
    mask = None if lengths is None else torch.arange(tokens) < torch.tensor(lengths)[:, None]
    ours = linear_attention_with_state(q, k, v, state, slopes=slopes, mask=mask, block_size=16, backend="triton")
    expected = by_formula(q, k, v, slopes, state, lengths or [tokens] * len(q))
    weights = [torch.randn(x.shape) for x in ours]
    results = []
    for pair in (ours, expected):
        loss = sum((x * weight).sum() for x, weight in zip(pair, weights, strict=True))
        results.append([*pair, *torch.autograd.grad(loss, leaves)])
    for name, found, wanted in zip(("y", "state", "dq", "dk", "dv", "dstate"), *results, strict=True):
        scale = float(wanted.detach().abs().max())
        message = f"{name} differs"
        torch.testing.assert_close(
            found.double(), wanted.double(), rtol=1e-5, atol=2e-6 * scale, msg=lambda m, name=message: f"{name}: {m}"
        )


def test_the_interpreter_makes_kernels_available_everywhere() -> None:
    assert available("cpu") is True


@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["plain", "decay"])
@pytest.mark.parametrize("tokens", [1, *(pytest.param(tokens, marks=pytest.mark.slow) for tokens in (7, 17)), 33])
def test_values_states_and_gradients(tokens: int, slopes: tuple[float, ...] | None) -> None:
    compare(tensors(1, tokens, 16, 16), slopes)


@pytest.mark.parametrize("widths", [(7, 20), (67, 5), (5, 67)], ids=["padded", "key slices", "value slices"])
def test_any_widths(widths: tuple[int, int]) -> None:
    compare(tensors(1, 19, *widths), SLOPES)


def test_keys_wider_than_two_slices() -> None:
    compare(tensors(1, 5, 131, 3), None)


@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["plain", "decay"])
def test_the_state_stands_still_at_padding(slopes: tuple[float, ...] | None) -> None:
    compare(tensors(3, 18, 3, 5), slopes, lengths=[17, 16, 0])


def test_strided_inputs_are_read_in_place() -> None:
    leaves = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in tensors(1, 9, 4, 6)[:3]]
    compare([*leaves, torch.randn(1, 2, 6, 4).mT.requires_grad_()], SLOPES)


@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["plain", "decay"])
def test_without_a_state_and_with_a_normaliser(slopes: tuple[float, ...] | None) -> None:
    q, k, v, _ = tensors(1, 19, 6, 5)
    leaves = [q.detach().abs().requires_grad_(), k.detach().abs().requires_grad_(), v]
    weight = torch.randn(1, 2, 19, 5)
    results = []
    for backend in ("triton", "torch"):
        y = linear_attention(*leaves, slopes=slopes, normaliser_eps=1e-12, block_size=16, backend=backend)
        results.append([y, *torch.autograd.grad((y * weight).sum(), leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_narrow_storage_and_a_wide_state(dtype: torch.dtype) -> None:
    wide = tensors(1, 18, 8, 8)
    narrow = [x.detach().to(dtype).requires_grad_() for x in wide[:3]]
    y, state = linear_attention_with_state(*narrow, wide[3], slopes=SLOPES, block_size=16, backend="triton")
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    expected, after = by_formula(*narrow, SLOPES, wide[3], [18])
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state.double(), after, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(y.float().square().sum(), narrow)
    wanted = torch.autograd.grad(expected.square().sum(), narrow)
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert ours.dtype == dtype
        assert (ours.float() - theirs.float()).norm() <= 0.02 * theirs.float().norm()


def test_large_numbers_and_steep_decay_stay_finite() -> None:
    leaves = [1e8 * x.detach() for x in tensors(1, 18, 3, 3)[:3]]
    for x in leaves:
        x.requires_grad_()
    y = linear_attention(*leaves, slopes=(0.0, 1000.0), block_size=16, backend="triton")
    found = torch.autograd.grad(y.sum(), leaves)
    assert all(bool(x.isfinite().all()) for x in (y, *found))


def test_compiles_as_one_graph() -> None:
    q, k, v, state = tensors(1, 5, 4, 4)

    def run(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return linear_attention_with_state(q, k, v, state, slopes=SLOPES, backend="triton")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, run):
        y, after = function(q, k, v, state)
        results.append([y, after, *torch.autograd.grad(y.sum() + after.square().sum(), (q, k, v, state))])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


def test_the_operators_keep_pytorchs_rules() -> None:
    from regard.ops.triton.lightning import lightning_operator

    q, k, v, state = tensors(1, 3, 4, 5)
    lengths = torch.tensor([2])
    for arguments in ((q, k, v, SLOPES, state, lengths, 16, False), (q, k, v, None, None, None, 16, True)):
        torch.library.opcheck(lightning_operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("cls", [LightningAttention, HedgehogAttention])
def test_mixers_give_the_same_through_the_kernels(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = cls(12, num_heads=2, causal=True).eval()
    x = torch.randn(2, 6, 12)
    mask = torch.tensor([[True] * 6, [False, True, True, False, True, False]])
    results = {}
    for backend in ("triton", "torch"):
        decide = lambda *_, packed, backend=backend, **__: backend == "triton" and not packed  # noqa: E731
        monkeypatch.setattr(op, "_in_kernels", decide)
        y, state = mixer.step(x, mixer.init_state(2), mask=mask)
        results[backend] = [mixer(x, mask=mask), y, state.kv]
    for ours, expected in zip(results["triton"], results["torch"], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
