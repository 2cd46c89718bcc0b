"""The blocked bfloat16 form against float64 and against PyTorch's fused kernel."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as fused

from regard.ops import blocked_softmax, precision
from regard.ops.blocked_softmax import blocked_is_faster, blocked_softmax_attention


@pytest.mark.parametrize("causal", [False, True])
def test_is_exact_in_float64_over_block_borders(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked_softmax, "QUERY_BLOCK", 7)
    q, k, v = (torch.randn(2, 3, 31, width, dtype=torch.float64, requires_grad=True) for width in (5, 5, 11))
    weight = torch.randn(2, 3, 31, 11, dtype=torch.float64)
    ours, theirs = blocked_softmax_attention(q, k, v, causal=causal), fused(q, k, v, is_causal=causal)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((theirs * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_error_is_within_one_and_a_half_of_the_fused_kernels(causal: bool) -> None:
    q, k, v = (torch.randn(1, 4, 600, 64) for _ in range(3))
    narrow = [x.bfloat16() for x in (q, k, v)]
    truth = fused(*(x.double() for x in narrow), is_causal=causal)
    ours = (blocked_softmax_attention(*narrow, causal=causal).double() - truth).norm()
    theirs = (fused(*narrow, is_causal=causal).double() - truth).norm()
    assert ours <= 1.5 * theirs


def test_it_is_chosen_where_the_cpu_multiplies_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = torch.randn(1, 2, 256, 8, dtype=torch.bfloat16)
    for native in (True, False):
        monkeypatch.setattr(precision, "NATIVE_BFLOAT16", native)
        assert blocked_is_faster(narrow, narrow, narrow) is native


def test_short_or_wide_inputs_keep_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "NATIVE_BFLOAT16", True)
    short = torch.randn(1, 2, 255, 8, dtype=torch.bfloat16)
    wide = torch.randn(1, 2, 256, 8)
    assert not blocked_is_faster(short, short, short)
    assert not blocked_is_faster(wide, wide, wide)
