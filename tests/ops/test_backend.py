"""The choice between PyTorch and kernels, where none run."""

from __future__ import annotations

import pytest
import torch

from regard.metadata import No
from regard.ops import triton as kernels
from regard.ops.backend import in_kernels


def not_asked() -> str | None:
    raise AssertionError("the kernels are not asked where they do not run")


def test_the_cpu_computes_in_pytorch() -> None:
    x = torch.zeros(2)
    assert not in_kernels(x, "auto", not_asked)
    assert not in_kernels(x, "torch", not_asked)


def test_a_device_without_kernels_falls_back_or_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: No("there is none"))
    on_gpu = torch.zeros(2, device="meta")
    assert not in_kernels(on_gpu, "auto", not_asked)
    with pytest.raises(ValueError, match="backend='triton' was asked for, but there is none"):
        in_kernels(on_gpu, "triton", not_asked)


def test_kernels_run_unless_they_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: True)
    x = torch.zeros(2)
    assert in_kernels(x, "triton", lambda: None)
    with pytest.raises(ValueError, match="backend='triton' was asked for, but it is too wide"):
        in_kernels(x, "triton", lambda: "it is too wide")


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, torch, triton, got 'cuda'"):
        in_kernels(torch.zeros(2), "cuda", not_asked)  # type: ignore[arg-type]
