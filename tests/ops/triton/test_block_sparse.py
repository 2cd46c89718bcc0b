"""The block-sparse kernels: under Triton's interpreter, compiled for a GPU that is not here, and large on CUDA."""

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
from torch import Tensor

from regard.ops import triton as kernels
from regard.ops.block_sparse import BlockChoice, Reach, block_sparse_attention, block_sparse_attention_reference
from regard.ops.hip import HiPSizes, hip_choice

INTERPRETED = Path(__file__).with_name("interpreted_block_sparse.py")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@needs_triton
@pytest.mark.parametrize(("marked", "tests"), [("not slow", 20), pytest.param("slow", 7, marks=pytest.mark.slow)])
def test_kernels_under_the_interpreter(marked: str, tests: int) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marked, str(INTERPRETED)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= tests
    assert "skipped" not in done.stdout


def compiled(kernel_name: str, stored: str, **sizes: Any) -> Any:
    """For compute capability 8.0, down to its instructions; products are of the type that is stored."""
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel

    from regard.ops.triton import block_sparse_kernels

    kernel = getattr(block_sparse_kernels, kernel_name)
    options = {"num_warps": sizes.pop("num_warps"), "num_stages": sizes.pop("num_stages")}
    types = {"WORK": tl.float32, "PRECISION": "tf32x3"} if stored == "fp32" else {"WORK": tl.bfloat16}
    chosen = {"BLOCK_K": 2, "PRECISION": "tf32"} | types | sizes
    kinds = dict.fromkeys(("q", "k", "v", "out", "d_out", "d_q"), f"*{stored}")
    kinds |= dict.fromkeys(("starts", "counts", "first"), "*i64") | dict.fromkeys(("sums", "d_k", "d_v"), "*fp32")
    kinds |= dict.fromkeys(("scale", "factor"), "fp32") | dict.fromkeys(chosen, "constexpr")
    source = ASTSource(
        fn=kernel, signature={name: kinds.get(name, "i32") for name in kernel.arg_names}, constexprs=chosen
    )
    return compile_kernel(source, target=GPUTarget("cuda", 80, 32), options=options)


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("kernel_name", ["forward_kernel", "backward_kernel"])
@pytest.mark.parametrize(("stored", "ones"), [("fp32", ("block_q", "queries", "blocks", "group")), ("bf16", ())])
def test_kernels_compile_for_a_gpu_that_is_not_here(kernel_name: str, stored: str, ones: tuple[str, ...]) -> None:
    """Products run on tensor cores, nothing spills. Triton compiles kernels anew for sizes of 1, as constants."""
    sizes = {"ROWS": 16, "COLUMNS": 32, "HEAD": 16, "VALUE": 32, "num_warps": 4, "num_stages": 1}
    code = compiled(kernel_name, stored, **sizes, **dict.fromkeys(ones, 1)).asm["ptx"]
    assert "mma.sync" in code
    assert "ld.local" not in code


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("kind", ["narrow", "wide"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_tiles_fit_in_shared_memory(direction: str, kind: str, width: int) -> None:
    from regard.ops.triton.block_sparse import TILES, WIDEST_SPLIT

    rows, columns, warps = TILES[direction, kind][width]
    sizes = {"ROWS": rows, "COLUMNS": columns, "HEAD": width, "VALUE": width, "num_warps": warps}
    stored, stages = ("fp32", 1) if kind == "wide" else ("bf16", 2)
    split = kind == "wide" and not (direction == "backward" and width > WIDEST_SPLIT)
    precision = {} if split or kind == "narrow" else {"PRECISION": "ieee"}
    code = compiled(f"{direction}_kernel", stored, **sizes, **precision, num_stages=stages)
    assert code.metadata.shared <= 99 << 10
    assert "ld.local" not in code.asm["ptx"]


def test_the_op_imports_no_triton_on_the_cpu() -> None:
    code = (
        "import sys, torch;"
        "from regard.ops.hip import HiPSizes, hip_attention;"
        "sizes = HiPSizes(mask_k=2, block_q=2, block_k=1, window=1, sinks=0);"
        "hip_attention(*torch.ones(3, 1, 1, 9, 2), sizes);"
        "print('regard.ops.triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ------------------------------------------------------------------------------- the choice, where nothing runs


def attend(q: Tensor, v: Tensor) -> Tensor:
    choice = BlockChoice(torch.zeros(1, 1, 1, 1, dtype=torch.int64), torch.zeros(1, 1, 1), block_q=8, block_k=2)
    first = torch.zeros(1, dtype=torch.int64)
    return block_sparse_attention(q, q, v, choice, Reach(2), first=first, backend="triton")


@needs_triton
@pytest.mark.parametrize(
    ("widths", "dtype", "told"),
    [
        ((4, 4), torch.float64, "got torch.float64"),
        ((257, 4), torch.float32, "at most 256 wide, got 257"),
        ((4, 300), torch.float32, "at most 256 wide, got 300"),
    ],
)
def test_what_the_kernels_do_not_take(
    widths: tuple[int, int], dtype: torch.dtype, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: True)
    q, v = (torch.zeros(1, 1, 3, width, dtype=dtype) for width in widths)
    with pytest.raises(ValueError, match=told):
        attend(q, v)


@needs_triton
def test_on_the_cpu_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"was asked for, but the tensors are on cpu"):
        attend(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))


def test_torch_is_the_backend_of_the_cpu() -> None:
    q, k, v = torch.randn(3, 1, 2, 37, 4)
    sizes = HiPSizes(mask_k=4, block_q=4, block_k=2, window=3, sinks=1)
    choice, first = hip_choice(q, k, sizes, first=0), torch.zeros(1, dtype=torch.int64)
    by_default = block_sparse_attention(q, k, v, choice, sizes.reach(37), first=first)
    named = block_sparse_attention(q, k, v, choice, sizes.reach(37), first=first, backend="torch")
    assert torch.equal(by_default, named)


# --------------------------------------------------------------------------------------------------- on a GPU


def on_gpu(lengths: tuple[int, int], widths: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    (queries, keys), (width, value_width) = lengths, widths
    shapes = [(2, 4, queries, width), (2, 2, keys, width), (2, 2, keys, value_width)]
    return [torch.randn(shape, device="cuda", dtype=dtype).requires_grad_() for shape in shapes]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("widths", [(64, 64), (128, 128), (20, 72), (256, 256)], ids=str)
@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ((1031, 1031), HiPSizes(mask_k=128, block_q=64, block_k=2, window=100, sinks=16)),
        ((1, 2049), HiPSizes(mask_k=256, block_q=1, block_k=4, window=128, sinks=4)),
        ((300, 700), HiPSizes(mask_k=96, block_q=130, block_k=3, window=3, sinks=0)),
    ],
    ids=["prefill", "decoding", "odd sizes"],
)
def test_gpu_values_and_gradients(
    lengths: tuple[int, int], sizes: HiPSizes, widths: tuple[int, int], dtype: torch.dtype
) -> None:
    leaves = on_gpu(lengths, widths, dtype)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    at = lengths[1] - lengths[0]
    choice, first = hip_choice(*leaves[:2], sizes, first=at), torch.full((2,), at, device="cuda")
    y = block_sparse_attention(*leaves, choice, sizes.reach(lengths[1]), first=first, backend="triton")
    expected = block_sparse_attention_reference(*wide, choice, sizes.reach(lengths[1]), first=first)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, leaves, upstream)
    wanted = torch.autograd.grad(expected, wide, upstream.double())
    bound = 2e-5 if dtype == torch.float32 else 3 * torch.finfo(dtype).eps
    for name, ours, theirs in zip(("y", "dq", "dk", "dv"), (y, *found), (expected, *wanted), strict=True):
        assert relative_error(ours.detach(), theirs.detach()) <= bound, name


@pytest.mark.gpu
@needs_triton
def test_gpu_is_the_default_and_compiles_as_one_graph() -> None:
    leaves = on_gpu((500, 500), (64, 64), torch.bfloat16)
    sizes = HiPSizes(mask_k=64, block_q=32, block_k=2, window=32, sinks=4)
    choice, first = hip_choice(*leaves[:2], sizes, first=0), torch.zeros(2, dtype=torch.int64, device="cuda")

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_sparse_attention(q, k, v, choice, sizes.reach(500), first=first)

    explicit = block_sparse_attention(*leaves, choice, sizes.reach(500), first=first, backend="triton")
    assert torch.equal(run(*leaves), explicit)
    compiled = torch.compile(run, fullgraph=True)
    torch.testing.assert_close(compiled(*leaves), explicit)
    gradients = torch.autograd.grad(compiled(*leaves).float().square().sum(), leaves)
    assert all(bool(x.isfinite().all()) for x in gradients)


@pytest.mark.gpu
@needs_triton
def test_gpu_takes_very_long_rows() -> None:
    tokens, tail = 131_071, 127
    q, k, v = (torch.randn(1, 2, tokens, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    sizes = HiPSizes()
    choice, first = hip_choice(q, k, sizes, first=0), torch.zeros(1, dtype=torch.int64, device="cuda")
    y = block_sparse_attention(q, k, v, choice, sizes.reach(tokens), first=first, backend="triton")
    late = tokens - tail
    last = choice.of_blocks(late // 64, choice.starts.shape[2])
    expected = block_sparse_attention_reference(
        *(x.float() for x in (q[:, :, late:], k, v)), last, sizes.reach(tokens), first=first + late
    )
    assert relative_error(y[:, :, late:], expected) <= 3 * torch.finfo(torch.bfloat16).eps
