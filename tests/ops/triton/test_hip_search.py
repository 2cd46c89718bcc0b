"""The kernel of HiP's search: under Triton's interpreter, compiled for a GPU that is not here, and large on CUDA."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from regard.ops import triton as kernels
from regard.ops.hip_search import search_key_blocks

INTERPRETED = Path(__file__).with_name("interpreted_hip_search.py")
SIZES: dict[str, Any] = {"mask_k": 12, "block_q": 4, "block_k": 3, "window": 5}
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@needs_triton
@pytest.mark.parametrize(("marked", "tests"), [("not slow", 21), pytest.param("slow", 6, marks=pytest.mark.slow)])
def test_the_kernel_under_the_interpreter(marked: str, tests: int) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marked, str(INTERPRETED)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= tests
    assert "skipped" not in done.stdout


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize(("center", "ones"), [(False, ("block_q", "blocks", "group")), (True, ())])
@pytest.mark.parametrize(("stored", "precision"), [("fp32", "tf32x3"), ("bf16", "tf32")])
def test_the_kernel_compiles_for_a_gpu_that_is_not_here(
    stored: str, precision: str, center: bool, ones: tuple[str, ...]
) -> None:
    """For compute capability 8.0, down to its instructions: products run on tensor cores, nothing spills.

    Triton compiles kernels anew for sizes of 1, as constants.
    """
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel

    from regard.ops.triton.hip_search_kernels import search_kernel

    chosen = {"BUDGET": 16, "BLOCK_K": 3, "PART": 4, "TILE": 8, "ROWS": 16, "HEAD": 16, "CENTER": center}
    chosen |= {"WORK": tl.float32 if stored == "fp32" else tl.bfloat16, "PRECISION": precision} | dict.fromkeys(ones, 1)
    kinds = dict.fromkeys(("q", "k"), f"*{stored}") | {"whole_kept": "*i32", "scores_kept": "*fp32"}
    kinds |= dict.fromkeys(("first", "last", "starts", "counts"), "*i64") | dict.fromkeys(chosen, "constexpr")
    names = search_kernel.arg_names
    source = ASTSource(fn=search_kernel, signature={name: kinds.get(name, "i32") for name in names}, constexprs=chosen)
    compiled = compile_kernel(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 4})
    assert "mma.sync" in compiled.asm["ptx"]
    assert "ld.local" not in compiled.asm["ptx"]


# ------------------------------------------------------------------------------- the choice, where nothing runs


@needs_triton
@pytest.mark.parametrize(
    ("changed", "width", "dtype", "told"),
    [
        ({}, 4, torch.float64, "got torch.float64"),
        ({}, 257, torch.float32, "at most 256 wide, got 257"),
        ({"mask_k": 9}, 4, torch.float32, r"power of two of blocks, at most 512, got mask_k / block_k = 3"),
        ({"mask_k": 3072}, 4, torch.float32, r"power of two of blocks, at most 512, got mask_k / block_k = 1024"),
        ({"block_q": 257}, 128, torch.float32, r"do not fit in shared memory: block_q=257 of width 128"),
    ],
)
def test_what_the_kernel_does_not_take(
    changed: dict[str, int], width: int, dtype: torch.dtype, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: True)
    q = torch.zeros(1, 1, 9, width, dtype=dtype)
    with pytest.raises(ValueError, match=told):
        search_key_blocks(q, q, first=0, backend="triton", **{**SIZES, **changed})


@needs_triton
def test_on_the_cpu_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q = torch.zeros(1, 1, 9, 4)
    with pytest.raises(ValueError, match=r"was asked for, but the tensors are on cpu"):
        search_key_blocks(q, q, first=0, backend="triton", **SIZES)


def test_torch_is_the_backend_of_the_cpu() -> None:
    q, k = torch.randn(2, 1, 2, 61, 7)
    by_default, named = (search_key_blocks(q, k, first=0, **SIZES, **extra) for extra in ({}, {"backend": "torch"}))
    assert torch.equal(by_default.starts, named.starts)
    assert torch.equal(by_default.counts, named.counts)


# --------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sample", ["first", "center"])
@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ((4099, 4099), {"mask_k": 512, "block_q": 64, "block_k": 2, "window": 256}),
        ((1, 8191), {"mask_k": 512, "block_q": 1, "block_k": 1, "window": 128}),
        ((257, 3001), {"mask_k": 48, "block_q": 7, "block_k": 3, "window": 5}),
        ((640, 9001), {"mask_k": 1024, "block_q": 128, "block_k": 128, "window": 128}),
    ],
    ids=["prefill", "decoding", "odd sizes", "wide blocks"],
)
def test_gpu_choice_is_that_of_the_plain_search(
    lengths: tuple[int, int], sizes: dict[str, int], sample: Any, dtype: torch.dtype
) -> None:
    """Equal in float64 but for scores that are equal in float32."""
    q = torch.randn(2, 4, lengths[0], 64, device="cuda", dtype=dtype)
    k = torch.randn(2, 2, lengths[1], 64, device="cuda", dtype=dtype)
    options: dict[str, Any] = {"first": lengths[1] - lengths[0], "sample": sample, **sizes}
    found = search_key_blocks(q, k, backend="triton", **options)
    expected = search_key_blocks(q.double(), k.double(), backend="torch", **options)
    assert torch.equal(found.counts, expected.counts)
    assert bool((found.starts.diff(dim=-1) > 0).all())
    assert (found.starts == expected.starts).all(dim=-1).float().mean() >= 0.99
    assert torch.equal(search_key_blocks(q, k, **options).starts, found.starts)
