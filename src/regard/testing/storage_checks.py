"""Checks of what is stored: `state_dict` round trips, bfloat16 and back, the meta device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.testing.common_checks import agree_in_single, round_parameters
from regard.testing.judgement import require
from regard.testing.subjects import Subject, run


def state_dict(subject: Subject) -> None:
    """A fresh instance that loads the state strictly gives the same output."""
    source, fresh = subject.build(dtype=torch.float32), subject.build(dtype=torch.float32, seed=17)
    inputs = subject.inputs(dtype=torch.float32)
    stored = {name: value.clone() for name, value in source.state_dict().items()}
    fresh.load_state_dict(stored, strict=True)
    with torch.no_grad():
        agree_in_single(run(fresh, inputs), run(source, inputs), "a fresh instance with the loaded state_dict")


def cast_round_trip(subject: Subject) -> None:
    """`.bfloat16().float()` only rounds parameters: constants are Python floats, not buffers that it would spoil."""
    there_and_back = subject.build(dtype=torch.float32).bfloat16().float()
    rounded = subject.build(dtype=torch.float32)
    round_parameters(rounded)
    _round_statistics(rounded, subject.build_untouched(seed=17))
    inputs = subject.inputs(dtype=torch.float32)
    with torch.no_grad():
        actual, expected = run(there_and_back, inputs), run(rounded, inputs)
    buffers = ", ".join(name for name, _ in rounded.named_buffers()) or "none"
    what = f"bfloat16 and back against rounded parameters (buffers: {buffers})"
    agree_in_single(actual, expected, what)


def meta_device(subject: Subject) -> None:
    """Built on the meta device, emptied onto the CPU and loaded, an instance gives the same output."""
    source = subject.build(dtype=torch.float32)
    inputs = subject.inputs(dtype=torch.float32)
    with torch.device("meta"):
        hollow = subject.build_untouched(seed=17)
    stray = [name for name, value in _tensors(hollow).items() if not value.is_meta]
    require(not stray, f"built under torch.device('meta'), {', '.join(stray)} are on another device")
    hollow = hollow.to_empty(device="cpu").eval()
    with torch.no_grad():
        for value in _tensors(hollow).values():
            if value.is_floating_point():
                value.fill_(torch.nan)
    hollow.load_state_dict(source.state_dict(), strict=True)
    with torch.no_grad():
        agree_in_single(run(hollow, inputs), run(source, inputs), "an instance loaded through the meta device")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _round_statistics(module: nn.Module, other: nn.Module) -> None:
    """Round buffers that another seed fills otherwise: they are learned or sampled, so rounding them is fair."""
    others = dict(other.named_buffers())
    for name, value in module.named_buffers():
        if value.is_floating_point() and not torch.equal(value, others[name].to(value.dtype)):
            value.copy_(value.bfloat16().to(value.dtype))
