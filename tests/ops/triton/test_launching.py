"""What the launchers share, where nothing is launched."""

from __future__ import annotations

import importlib.util

import pytest
import torch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def test_tiles_are_powers_of_two_from_16_on() -> None:
    from regard.ops.triton.launching import tile

    assert [tile(size) for size in (1, 16, 17, 97, 128)] == [16, 16, 32, 128, 128]


def test_products_are_of_the_stored_type_where_that_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton.language as tl

    from regard.ops.triton.launching import products

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    assert products(torch.float32, keep_float16=True) == {"WORK": tl.float32, "PRECISION": "tf32x3"}
    assert products(torch.bfloat16, keep_float16=False)["WORK"] == tl.bfloat16
    assert products(torch.float16, keep_float16=True)["WORK"] == tl.float16
    assert products(torch.float16, keep_float16=False) == {"WORK": tl.float32, "PRECISION": "tf32"}
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert products(torch.bfloat16, keep_float16=True)["WORK"] == tl.float32


def test_only_numbers_that_do_not_lie_side_by_side_are_copied() -> None:
    from regard.ops.triton.launching import in_rows

    x = torch.randn(2, 3, 5, 4)
    assert in_rows(x.transpose(1, 2)).data_ptr() == x.data_ptr()
    assert in_rows(x.mT).stride(-1) == 1
    assert torch.equal(in_rows(x.mT), x.mT)


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((1, 1, 3, 4), torch.float64, "got torch.float64"),
        ((1, 1, 3, 257), torch.float32, "at most 256 wide, got 257"),
        ((0, 1, 3, 4), torch.float32, r"got shape \(0, 1, 3, 4\)"),
    ],
)
def test_what_is_refused(shape: tuple[int, ...], dtype: torch.dtype, told: str) -> None:
    from regard.ops.triton.launching import refused

    fits = torch.zeros(1, 1, 3, 256, dtype=torch.bfloat16)
    assert refused(fits, fits) is None
    reason = refused(fits, torch.zeros(shape, dtype=dtype))
    assert reason is not None
    with pytest.raises(ValueError, match=told):
        raise ValueError(reason)
