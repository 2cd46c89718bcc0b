"""In which type ops multiply, and that autocast does not reach into them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.ops import precision
from regard.ops.precision import compute_dtype, product_dtype, without_autocast


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_ops_compute_in_at_least_single_precision(given: torch.dtype, computed: torch.dtype) -> None:
    assert compute_dtype(torch.zeros(1, dtype=given)) == computed


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_multiplied_as_it_is_where_the_hardware_does(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "NATIVE_BFLOAT16", native)
    narrow = torch.zeros(1, dtype=torch.bfloat16)
    assert product_dtype(narrow) == (torch.bfloat16 if native else torch.float32)
    assert product_dtype(narrow.to("meta")) == torch.bfloat16
    assert product_dtype(narrow.half()) == torch.float32
    assert product_dtype(narrow.double()) == torch.float64


def test_a_release_that_knows_no_capabilities_multiplies_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert precision._multiplies_bfloat16() is False
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert precision._multiplies_bfloat16() is True


@without_autocast
def square(x: Tensor) -> Tensor:
    return x @ x


def test_autocast_stays_outside() -> None:
    x = torch.randn(3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        assert square(x).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
    assert square(x.to("meta")).shape == (3, 3)
    with pytest.raises(AssertionError, match="given by position"):
        square(x=x)
