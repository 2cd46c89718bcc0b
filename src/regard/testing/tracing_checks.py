"""Checks that a mixer can be traced: `torch.compile` without graph breaks, and `torch.export`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from regard.contract import State
from regard.testing.judgement import agree, require
from regard.testing.subjects import Inputs, SequenceSubject, Subject, run, scattered_mask


def compiled(subject: Subject) -> None:
    """`torch.compile(fullgraph=True, backend="eager")` equals eager: with and without a mask, and `step`."""
    module, inputs = subject.build(), subject.inputs()
    torch.compiler.reset()
    try:
        forward = torch.compile(module, fullgraph=True, backend="eager")
        for what, more in _ways_to_call(subject, inputs):
            agree(run(forward, inputs, **more), run(module, inputs, **more), f"compiled {what}")
        if _steps(subject):
            step = torch.compile(module.step, fullgraph=True, backend="eager")
            _compare_steps(subject, module, step, "compiled")
    finally:
        torch.compiler.reset()


def exported(subject: Subject) -> None:
    """`torch.export` with static lengths equals eager: with and without a mask, and `step`.

    It may leave global state behind when it fails, so it is run in a process of its own.
    """
    module, inputs = subject.build(), subject.inputs()
    others = {name: value for name, value in inputs.items() if name != "x"}
    with torch.no_grad():
        for what, more in _ways_to_call(subject, inputs):
            program = torch.export.export(module, (inputs["x"],), {**others, **more}).module()
            agree(run(program, inputs, **more), run(module, inputs, **more), f"exported {what}")
        if _steps(subject):
            _compare_steps(subject, module, _exporting(_Step(module)), "exported")


class _Step(nn.Module):
    """`step` as a module's forward, which is what `torch.export` takes."""

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, state: State, mask: Tensor | None) -> tuple[Tensor, State]:
        return self.mixer.step(x, state, mask=mask)


def _exporting(module: nn.Module) -> Callable[..., tuple[Tensor, State]]:
    def call(x: Tensor, state: State, *, mask: Tensor | None = None) -> tuple[Tensor, State]:
        program = torch.export.export(module, (x, state, mask))
        return program.module()(x, state, mask)

    return call


def _ways_to_call(subject: Subject, inputs: Inputs) -> Iterator[tuple[str, dict[str, Tensor]]]:
    yield "forward", {}
    if isinstance(subject, SequenceSubject) and subject.cls.traits.masks:
        keys = inputs[subject.masked_input]
        yield "forward with a mask", {"mask": scattered_mask(keys.shape[0], keys.shape[1], seed=16)}


def _steps(subject: Subject) -> bool:
    return isinstance(subject, SequenceSubject) and subject.causal and bool(subject.cls.traits.decodes)


def _compare_steps(subject: Subject, module: Any, step: Callable[..., tuple[Tensor, Any]], how: str) -> None:
    """A prompt, one token, and (where there are masks) one token of which some rows have none."""
    x = subject.inputs()["x"]
    state = module.init_state(len(x), max_len=x.shape[1])
    pause = torch.arange(len(x)) % 2 == 0
    calls: list[tuple[slice, dict[str, Tensor]]] = [(slice(0, 4), {}), (slice(4, 5), {})]
    if subject.cls.traits.masks:
        calls.append((slice(5, 6), {"mask": pause[:, None]}))
    with torch.no_grad():
        for piece, more in calls:
            y, after = step(x[:, piece], state.clone(), **more)
            expected, state = module.step(x[:, piece], state, **more)
            what = f"{how} step of tokens {piece.start}..{piece.stop - 1}"
            agree(y, expected, what)
            found, wanted = after.position.tolist(), state.position.tolist()
            require(found == wanted, f"{what}: position {found} instead of {wanted}")
