"""Mechanisms that a user might bring to a race with --import: one that works, and one for each way to go wrong."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from regard import Example, FeatureMixer, No, Paper, SequenceMixer, Traits, register
from regard.ops.heads import merge_heads, split_heads

PAPER = Paper(title="none", authors="nobody", venue="nowhere", year=2026, url="https://example.org")
TRAITS = Traits(
    bidirectional=No("the mean runs over the past"),
    cross=No("the mean runs over the past"),
    segments=No("runs over everything that came before"),
    bias=No("has no scores"),
    decodes=No("has no state"),
    step_exact=No("has no state"),
    has_map=No("has no map"),
    row_stochastic=No("has no map"),
    time="n",
    memory="n",
)
NAP_S = 0.05


class RunningMean(SequenceMixer):
    """The mean of all values so far."""

    def __init__(self, dim: int, *, num_heads: int = 3, causal: bool = True) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim)
        self.calls = 0

    def mix(self, x, *, context, mask, segments, bias):
        self.calls += self.training
        self.disturb(x)
        v = split_heads(self.v_proj(x), self.num_heads)
        counts = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
        return self.spoil(v.cumsum(dim=2) / counts[:, None])

    def disturb(self, x: Tensor) -> None:
        """Before the mathematics."""

    def spoil(self, mixed: Tensor) -> Tensor:
        """After it."""
        return mixed

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.o_proj(merge_heads(mixed))

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        return 2 * batch * tokens * options.dim**2


def mechanism(name: str):
    example = Example(kwargs={"dim": 15, "num_heads": 3}, batch=2, tokens=13)
    return register(name=name, system=name, paper=PAPER, traits=TRAITS, example=example)


@mechanism("toy_mean")
class ToyMean(RunningMean):
    """Works, and prints where it should not."""

    def disturb(self, x: Tensor) -> None:
        print('{"event": "done"}', flush=True)


@mechanism("toy_nan")
class ToyNan(RunningMean):
    """Gives NaN from its third training step on."""

    def spoil(self, mixed: Tensor) -> Tensor:
        return mixed * float("nan") if self.calls >= 3 else mixed


@mechanism("toy_raise")
class ToyRaise(RunningMean):
    """Raises in its second training step."""

    def disturb(self, x: Tensor) -> None:
        if self.calls == 2:
            raise RuntimeError("the mechanism broke\nin two lines")


@mechanism("toy_killed")
class ToyKilled(RunningMean):
    """Is killed in its second training step, as by the kernel when memory runs out."""

    def disturb(self, x: Tensor) -> None:
        if self.calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)


@mechanism("toy_abort")
class ToyAbort(RunningMean):
    """Aborts in its second training step, with a last word."""

    def disturb(self, x: Tensor) -> None:
        if self.calls == 2:
            os.write(2, b"corrupted <script>\x1b[31m size\n")
            os.abort()


@mechanism("toy_hungry")
class ToyHungry(RunningMean):
    """Asks for more memory than any machine has, at lengths beyond the training length."""

    def disturb(self, x: Tensor) -> None:
        if x.shape[0] == 1 and x.shape[1] >= 64:
            torch.empty(2**60)


@mechanism("toy_greedy")
class ToyGreedy(RunningMean):
    """Asks for more memory than any machine has in its second training step."""

    def disturb(self, x: Tensor) -> None:
        if self.calls == 2:
            torch.empty(2**60)


@mechanism("toy_slow")
class ToySlow(RunningMean):
    """Takes its time in training, and at 8 tokens, at which its cost is measured."""

    def disturb(self, x: Tensor) -> None:
        if self.training or x.shape[:2] == (1, 8):
            time.sleep(NAP_S)


@register(
    name="toy_gate",
    system="toy_gate",
    paper=PAPER,
    traits=Traits.of_feature_mixer(spatial_dims=(2,)),
    example=Example(kwargs={"channels": 5}, space=(3, 4)),
)
class ToyGate(FeatureMixer):
    """A gate per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.scale = nn.Parameter(torch.ones(channels))

    def mix(self, x: Tensor, *, context: Tensor | None) -> Tensor:
        return x * (self.scale[:, None, None] * x.mean(dim=(2, 3), keepdim=True)).sigmoid()

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        return 0
