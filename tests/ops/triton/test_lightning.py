"""The lightning kernels: under Triton's interpreter, compiled for a GPU that is not here, and large on CUDA."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regard.ops import triton as kernels
from regard.ops.linear_attention import linear_attention, linear_attention_reference, linear_attention_with_state

SLOPES = (0.0, 0.02, 0.7)
INTERPRETED = Path(__file__).with_name("interpreted_lightning.py")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@needs_triton
@pytest.mark.parametrize(("marked", "tests"), [("not slow", 20), pytest.param("slow", 5, marks=pytest.mark.slow)])
def test_kernels_under_the_interpreter(marked: str, tests: int) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", marked, str(INTERPRETED)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= tests
    assert "skipped" not in done.stdout


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
@pytest.mark.parametrize("kernel_name", ["states_kernel", "outputs_kernel"])
@pytest.mark.parametrize(("stored", "precision"), [("fp32", "tf32x3"), ("bf16", "tf32")])
def test_kernels_compile_for_a_gpu_that_is_not_here(kernel_name: str, stored: str, precision: str) -> None:
    """For compute capability 8.0, down to its instructions: products run on tensor cores, nothing spills."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel

    from regard.ops.triton import lightning_kernels

    kernel = getattr(lightning_kernels, kernel_name)
    chosen = {"BLOCK": 32, "KEY_SLICE": 16, "KEY_SLICES": 2, "VALUE_SLICE": 16, "DECAY": True, "INITIAL": True}
    chosen |= {"REVERSE": True, "PRECISION": precision}
    kinds = dict.fromkeys(("q", "k", "v", "out"), f"*{stored}") | {"lengths": "*i32"}
    kinds |= dict.fromkeys(("slopes", "initial", "states", "final"), "*fp32") | dict.fromkeys(chosen, "constexpr")
    source = ASTSource(
        fn=kernel,
        signature={name: kinds.get(name, "i32") for name in kernel.arg_names},
        constexprs={name: value for name, value in chosen.items() if name in kernel.arg_names},
    )
    compiled = compile_kernel(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 4})
    assert "mma.sync" in compiled.asm["ptx"]
    assert "ld.local" not in compiled.asm["ptx"]


def test_importing_regard_and_the_op_imports_no_triton() -> None:
    code = (
        "import sys, torch, regard, regard.mixers.sequence.lightning;"
        "from regard.ops.linear_attention import linear_attention;"
        "linear_attention(*torch.ones(3, 1, 1, 4, 2));"
        "print('regard.ops.triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ------------------------------------------------------------------------------- the choice, where nothing runs


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, 1, 3, 5, 4).to(dtype)
    return q, k, v


def test_without_triton_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    can = kernels.available()
    assert not can
    assert "triton is not installed" in can.reason
    with pytest.raises(ValueError, match="backend='triton' was asked for, but triton is not installed"):
        linear_attention(*inputs(), backend="triton")


@needs_triton
def test_on_the_cpu_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "are on cpu" in kernels.available("cpu").reason
    with pytest.raises(ValueError, match=r"was asked for, but the tensors are on cpu"):
        linear_attention_with_state(*inputs(), backend="triton")


@needs_triton
def test_old_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, can in (((7, 5), False), ((8, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert bool(kernels.available("cuda:0")) is can


@needs_triton
@pytest.mark.parametrize(
    ("options", "dtype", "told"),
    [
        ({}, torch.float64, "got torch.float64"),
        ({"block_size": 5}, torch.float32, "got block_size=5"),
        ({"causal": False}, torch.float32, "causal and take no segments"),
        ({"segments": torch.zeros(1, 5, dtype=torch.int64)}, torch.float32, "causal and take no segments"),
    ],
)
def test_what_the_kernels_do_not_take(
    options: dict[str, object], dtype: torch.dtype, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: True)
    with pytest.raises(ValueError, match=told):
        linear_attention(*inputs(dtype), **options, backend="triton")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, torch, triton, got 'cuda'"):
        linear_attention(*inputs(), backend="cuda")


def test_torch_is_the_backend_of_the_cpu() -> None:
    q, k, v = inputs()
    assert torch.equal(linear_attention(q, k, v), linear_attention(q, k, v, backend="torch"))


# --------------------------------------------------------------------------------------------------- on a GPU


def on_gpu(tokens: int, widths: tuple[int, int], dtype: torch.dtype, batch: int = 2) -> list[Tensor]:
    key_width, value_width = widths
    shapes = [(batch, 3, tokens, key_width)] * 2 + [(batch, 3, tokens, value_width)]
    made = [torch.randn(shape, device="cuda") for shape in shapes]
    made[1] = made[1] / key_width**0.5
    state = torch.randn(batch, 3, key_width, value_width, device="cuda").requires_grad_()
    return [*(x.to(dtype).requires_grad_() for x in made), state]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["plain", "decay"])
@pytest.mark.parametrize("widths", [(64, 64), (128, 128), (20, 72), (256, 128)], ids=str)
@pytest.mark.parametrize("tokens", [1, 63, 64, 513, 1031])
def test_gpu_values_states_and_gradients(
    tokens: int, widths: tuple[int, int], slopes: tuple[float, ...] | None, dtype: torch.dtype
) -> None:
    leaves = on_gpu(tokens, widths, dtype)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    y, after = linear_attention_with_state(*leaves, slopes=slopes, backend="triton")
    expected = linear_attention_with_state(*wide, slopes=slopes, backend="torch")
    torch.testing.assert_close(
        linear_attention(*leaves[:3], slopes=slopes).double(),
        linear_attention_reference(*wide[:3], slopes=slopes),
        rtol=0.02,
        atol=0.02 * float(expected[0].detach().abs().max()),
    )
    upstream, of_state = torch.randn_like(y), torch.randn_like(after)
    found = torch.autograd.grad((y, after), leaves, (upstream, of_state))
    wanted = torch.autograd.grad(expected, wide, (upstream.double(), of_state.double()))
    bound = 2e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for name, ours, theirs in zip(
        ("y", "state", "dq", "dk", "dv", "dstate"), (y, after, *found), (*expected, *wanted), strict=True
    ):
        assert relative_error(ours.detach(), theirs.detach()) <= bound, name


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_padding_leaves_the_state(dtype: torch.dtype) -> None:
    leaves = on_gpu(300, (64, 64), dtype, batch=4)
    lengths = [300, 128, 77, 0]
    mask = torch.arange(300, device="cuda") < torch.tensor(lengths, device="cuda")[:, None]
    y, after = linear_attention_with_state(*leaves, slopes=SLOPES, mask=mask, backend="triton")
    assert bool(y.isfinite().all())
    for row, length in enumerate(lengths):
        alone = [x[row : row + 1] if x is leaves[3] else x[row : row + 1, :, :length] for x in leaves]
        if length == 0:
            torch.testing.assert_close(after[row], leaves[3][row])
            continue
        expected, state = linear_attention_with_state(*alone, slopes=SLOPES, backend="triton")
        torch.testing.assert_close(y[row : row + 1, :, :length], expected)
        torch.testing.assert_close(after[row : row + 1], state)


@pytest.mark.gpu
@needs_triton
def test_gpu_is_the_default_and_compiles_as_one_graph() -> None:
    leaves = on_gpu(200, (64, 64), torch.bfloat16)[:3]

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention(q, k, v, slopes=SLOPES, normaliser_eps=1e-3).float().square().sum()

    compiled = torch.compile(run, fullgraph=True)
    torch.testing.assert_close(compiled(*leaves), run(*leaves), rtol=0.02, atol=0.0)
    explicit = linear_attention(*leaves, slopes=SLOPES, backend="triton")
    assert torch.equal(linear_attention(*leaves, slopes=SLOPES), explicit)
    gradients = torch.autograd.grad(compiled(*leaves), leaves)
    assert all(bool(x.isfinite().all()) for x in gradients)


@pytest.mark.gpu
@needs_triton
def test_gpu_takes_very_long_rows() -> None:
    tokens = 200_003
    q, k, v, _ = (x.detach() for x in on_gpu(tokens, (64, 64), torch.bfloat16, batch=1))
    y = linear_attention(q, k, v, slopes=SLOPES, backend="triton")
    tail = slice(tokens - 4096, None)
    expected = linear_attention_reference(*(x[:, 1:, tail].float() for x in (q, k, v)), slopes=SLOPES[1:])
    # what lies 3,000 tokens back has decayed to exp(-60)
    assert relative_error(y[:, 1:, -1000:], expected[:, :, -1000:]) <= 2 * torch.finfo(torch.bfloat16).eps
