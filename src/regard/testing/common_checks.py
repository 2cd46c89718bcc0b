"""Checks that mean the same for sequences and for feature maps: values and gradients."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call

from regard.testing.judgement import (
    EXACT,
    SINGLE,
    agree,
    agree_on_the_whole,
    require,
    require_finite,
)
from regard.testing.subjects import (
    FeatureSubject,
    Inputs,
    SequenceSubject,
    Size,
    Subject,
    random_tensor,
    run,
    take_rows,
)

INERT = 1e-8
"""Largest gradient of an inert parameter, relative to the largest of all: rounding only."""
ALIVE = 1e-12
"""Smallest gradient of any other parameter, relative to the largest of all."""
DIFFERENCE = 1e-6
"""Step of the central differences that measure a slope, in float64."""
SLOPE = 1e-4
"""Error that such a slope may have, relative to the norm of the gradient."""
FAR = 30.0
"""Size of a perturbation that must have no influence, against inputs of size 1."""


def shapes(subject: Subject) -> None:
    """Output of the input's shape and dtype, finite, with untouched and with scattered parameters."""
    for dtype in (torch.float32, torch.float64):
        for module in (subject.build_untouched().to(dtype), subject.build(dtype=dtype)):
            for batch in (subject.batch, 1):
                inputs = subject.inputs(batch=batch, dtype=dtype)
                y = run(module, inputs)
                wanted = tuple(inputs["x"].shape)
                require(tuple(y.shape) == wanted, f"output has shape {tuple(y.shape)} instead of {wanted}")
                require(y.dtype == dtype, f"output is {y.dtype} for {dtype} input and parameters")
                require_finite(y, f"the output in {dtype}")


def inputs_kept(subject: Subject) -> None:
    """Inputs are not written to."""
    module = subject.build()
    inputs = subject.inputs()
    inputs |= subject.extras(inputs)
    before = {name: value.clone() for name, value in inputs.items()}
    with torch.no_grad():
        run(module, inputs)
    for name, value in inputs.items():
        changed = int((value != before[name]).sum())
        require(changed == 0, f"{changed} of {value.numel()} values of the input {name!r} were overwritten")


def gradients(subject: Subject) -> None:
    """Every parameter and input gets a finite gradient: zero if named inert, non-zero otherwise."""
    module = subject.build()
    inputs = {name: value.requires_grad_() for name, value in subject.inputs().items()}
    y = run(module, inputs)
    loss = (y * random_tensor(tuple(y.shape), seed=11)).sum()
    named = {name: value for name, value in module.named_parameters() if value.requires_grad}
    named |= {f"the input {name!r}": value for name, value in inputs.items()}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    sizes: dict[str, float] = {}
    for name, gradient in zip(named, found, strict=True):
        if gradient is not None:
            require_finite(gradient, f"the gradient of {name}")
        sizes[name] = 0.0 if gradient is None else float(gradient.detach().norm())
    inert = module.inert_parameters()
    unknown = sorted(inert - set(named))
    require(not unknown, f"inert_parameters() names {', '.join(unknown)}, which do not exist")
    largest = max(sizes.values())
    require(largest > 0, f"all {len(sizes)} gradients are zero")
    dead = [f"{name} ({sizes[name]:.2g})" for name in sizes if name not in inert and sizes[name] <= ALIVE * largest]
    alive = [f"{name} ({sizes[name]:.2g})" for name in sorted(inert) if sizes[name] > INERT * largest]
    require(not dead, f"no gradient reaches {', '.join(dead)} (largest gradient {largest:.2g}): unused, or inert?")
    require(not alive, f"named inert, but with gradient: {', '.join(alive)} (largest gradient {largest:.2g})")


def rows(subject: Subject) -> None:
    """In eval mode the rows of a batch do not influence each other."""
    module = subject.build()
    inputs = subject.inputs(batch=3)
    with torch.no_grad():
        together = run(module, inputs)
        for row in range(3):
            alone = run(module, take_rows(inputs, slice(row, row + 1)))
            agree(together[row : row + 1], alone, f"row {row} in a batch of 3 against the same row alone")
        for name, value in inputs.items():
            far = value.clone()
            far[0] = FAR * random_tensor(tuple(far[0].shape), seed=12)
            moved = run(module, {**inputs, name: far})
            agree(moved[1:], together[1:], f"rows 1 and 2 after a change of row 0 of {name!r}", tolerance=EXACT / 100)


def strides(subject: Subject) -> None:
    """Input that is not contiguous gives the same result: strided, transposed, expanded, channels last."""
    module = subject.build()
    inputs = subject.inputs()
    inputs |= subject.extras(inputs)
    with torch.no_grad():
        expected = run(module, inputs)
        for how, change in (("strided", _strided), ("transposed", _transposed)):
            changed = {name: change(value) for name, value in inputs.items()}
            agree(run(module, changed), expected, f"{how} input")
        one = take_rows(subject.inputs(), slice(0, 1))
        expanded = {name: value.expand(3, *value.shape[1:]) for name, value in one.items()}
        copied = {name: value.contiguous() for name, value in expanded.items()}
        agree(run(module, expanded), run(module, copied), "input expanded over the batch")
        layout = {2: torch.channels_last, 3: torch.channels_last_3d}
        if isinstance(subject, FeatureSubject) and subject.dimensions in layout:
            formatted = {n: v.contiguous(memory_format=layout[subject.dimensions]) for n, v in inputs.items()}
            agree(run(module, formatted), expected, "channels-last input")


def bfloat16(subject: Subject) -> None:
    """In bfloat16, forward and decoding stay within 2 % of float32 with the same rounded parameters."""
    sizes: tuple[Size, ...] = ("example", "long")
    for size in sizes:
        module, inputs = subject.build(dtype=torch.float32), subject.inputs(size)
        low = subject.build(dtype=torch.float32).bfloat16()
        round_parameters(module)
        low_inputs = {name: value.bfloat16() for name, value in inputs.items()}
        high_inputs = {name: value.float() for name, value in low_inputs.items()}
        with torch.no_grad():
            expected, actual = run(module, high_inputs), run(low, low_inputs)
            require(actual.dtype == torch.bfloat16, f"output is {actual.dtype} for bfloat16 input and parameters")
            require_finite(actual, "the output in bfloat16")
            agree_on_the_whole(actual, expected, f"bfloat16 against float32 at {tuple(inputs['x'].shape)}")
            if isinstance(subject, SequenceSubject) and subject.causal and subject.cls.traits.step_exact:
                stepped = _decode(low, low_inputs["x"])
                agree_on_the_whole(stepped, expected, f"bfloat16 decoding against float32, {stepped.shape[1]} tokens")


def autocast(subject: Subject) -> None:
    """Under autocast to bfloat16 the result stays within 2 % of float32."""
    module = subject.build(dtype=torch.float32)
    inputs = subject.inputs("long", dtype=torch.float32)
    with torch.no_grad():
        expected = run(module, inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = run(module, inputs)
    require_finite(actual, "the output under autocast")
    agree_on_the_whole(actual, expected, "autocast to bfloat16 against float32")


def gradients_by_differences(subject: Subject) -> None:
    """`torch.autograd.gradcheck` in float64: inputs and parameters, with and without a mask; then long inputs."""
    module = subject.build()
    inputs = subject.inputs("small")
    parameters = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}
    leaves = [*(value.requires_grad_() for value in inputs.values()), *parameters.values()]
    mask = {name: value for name, value in subject.extras(inputs).items() if name == "mask"}
    for more in ({}, mask) if mask else ({},):

        def call(*values: Tensor, more: Inputs = more) -> Tensor:
            given = dict(zip(inputs, values, strict=False))
            own = dict(zip(parameters, values[len(inputs) :], strict=True))
            others = {name: value for name, value in given.items() if name != "x"}
            return functional_call(module, own, (given["x"],), {**others, **more})

        gradcheck(call, tuple(leaves), fast_mode=True)
    _slopes_of_long_inputs(subject, module)


def dropout(subject: Subject) -> None:
    """Eval mode is deterministic; each dropout argument acts in training and is exactly off in eval mode."""
    inputs = subject.inputs()
    plain = subject.build()
    expected = run(plain, inputs)
    agree(run(plain, inputs), expected, "a second call in eval mode", tolerance=0.0)
    for name in inspect.signature(subject.cls).parameters:
        if not name.endswith(("drop", "dropout")):
            continue
        module = subject.build(changes={name: 0.5})
        agree(run(module, inputs), expected, f"eval mode with {name}=0.5 against {name}=0", tolerance=EXACT)
        module.train()
        first, second = run(module, inputs), run(module, inputs)
        change = float((first - second).detach().abs().max())
        require(change > 0, f"two training calls with {name}=0.5 differ by {change:g}: the argument has no effect")


def round_parameters(module: nn.Module) -> None:
    """Give every parameter a value that bfloat16 holds exactly."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.bfloat16().to(parameter.dtype))


def agree_in_single(actual: Tensor, expected: Tensor, what: str) -> None:
    """`agree` for results computed in float32."""
    agree(actual, expected, what, tolerance=SINGLE)


def _decode(module: Any, x: Tensor) -> Tensor:
    state = module.init_state(len(x), max_len=x.shape[1])
    prompt = x.shape[1] // 2
    pieces = []
    for piece in (x[:, :prompt], *x[:, prompt:].split(1, dim=1)):
        y, state = module.step(piece, state)
        pieces.append(y)
    return torch.cat(pieces, dim=1)


def _slopes_of_long_inputs(subject: Subject, module: Any) -> None:
    """Slopes along random directions, which stays cheap where a failing `gradcheck` takes minutes to explain itself."""
    inputs = subject.inputs("long", batch=1)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    y = run(module, leaves)
    weights = random_tensor(tuple(y.shape), seed=24)
    found = torch.autograd.grad((y * weights).sum(), list(leaves.values()))
    size = float(torch.stack([gradient.norm() for gradient in found]).norm())
    with torch.no_grad():
        for seed in (25, 26, 27):
            ways = {name: random_tensor(tuple(value.shape), seed=seed) for name, value in inputs.items()}
            ahead = run(module, {name: value + DIFFERENCE * ways[name] for name, value in inputs.items()})
            behind = run(module, {name: value - DIFFERENCE * ways[name] for name, value in inputs.items()})
            measured = float(((ahead - behind) * weights).sum()) / (2 * DIFFERENCE)
            claimed = float(sum((gradient * way).sum() for gradient, way in zip(found, ways.values(), strict=True)))
            error = abs(measured - claimed)
            what = f"at {tuple(inputs['x'].shape)} the slope is {measured:.8g}, backward says {claimed:.8g}"
            require(error <= SLOPE * size, f"{what}, error {error:.3g}, allowed {SLOPE * size:.3g}")


def _strided(value: Tensor) -> Tensor:
    roomy = value.new_empty(*value.shape[:-1], 2 * value.shape[-1])
    return roomy[..., ::2].copy_(value)


def _transposed(value: Tensor) -> Tensor:
    return value.transpose(1, -1).contiguous().transpose(1, -1)
