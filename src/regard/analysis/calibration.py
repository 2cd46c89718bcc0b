"""This machine's roofs, measured; and how well they tell the time of attention layers.

The model is `regard.hardware.roofline`: operations by kind, bytes, calls. The peaks are measured on kernels that have
nothing to do with attention, and no constant is fitted to a layer's time.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.hardware.kernels import KERNELS, Layer
from regard.hardware.roofline import Machine
from regard.measure import race
from regard.registry import create

LARGE = 1024
"""Side of the large matrices."""
TILES, TILE = 16, 64
"""Number and side of tiles that stay in the cache."""
STREAM = 1 << 24
"""Elements that exceed every cache."""
CACHED = 1 << 16
"""Elements for each thread that fit the caches near its core, and are worth a thread."""
LENGTHS = (1024, 2048, 4096, 8192, 16384)
DIM, NUM_HEADS = 256, 4


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A layer's predicted and measured time.

    Args:
        mechanism: name of the mechanism.
        tokens: length.
        predicted_s: what the roofs tell, in seconds.
        measured_s: the median of the measured times, in seconds.
        operations: of all kinds.
        moved_bytes: to and from memory, as counted.
    """

    mechanism: str
    tokens: int
    predicted_s: float
    measured_s: float
    operations: float
    moved_bytes: float

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured_s / self.predicted_s


def calibrate(*, rounds: int = 7, stream: int = STREAM) -> Machine:
    """Measure this machine's peaks, in float32 on PyTorch's current threads.

    Args:
        rounds: measured calls of each kernel.
        stream: elements of the arrays that are to come from memory.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    a, b = random(LARGE, LARGE), random(LARGE, LARGE)
    tiles, others = random(TILES, TILE, TILE), random(TILES, TILE, TILE)
    far, away = random(stream), torch.empty(stream)
    cached = CACHED * torch.get_num_threads()
    near, kept = random(cached), torch.empty(cached)
    one = random(1)
    large_out, tiles_out = torch.empty(LARGE, LARGE), torch.empty(TILES, TILE, TILE)
    repeats = 20
    kernels: dict[str, Callable[[], object]] = {
        "large": lambda: torch.mm(a, b, out=large_out),
        "tiles": _many(lambda: torch.bmm(tiles, others, out=tiles_out), repeats),
        "stream": lambda: away.copy_(far),
        "exps": _many(lambda: torch.exp(near, out=kept), repeats),
        "elements": _many(lambda: torch.mul(near, near, out=kept), repeats),
        "call": _many(lambda: torch.add(one, one), 50 * repeats),
    }
    with torch.inference_mode():
        took = race(kernels, rounds=rounds, warmup=2).median_s
    call = took["call"] / (50 * repeats)

    def rate(work: float, name: str) -> float:
        # what the call itself takes is counted apart
        seconds = took[name] / repeats
        return work / max(seconds - call, seconds / 2)

    return Machine(
        name=f"this machine, {_threads(torch.get_num_threads())}",
        flops_per_s=2.0 * LARGE**3 / took["large"],
        tile_flops_per_s=rate(2.0 * TILES * TILE**3, "tiles"),
        bytes_per_s=8.0 * stream / took["stream"],
        exps_per_s=rate(cached, "exps"),
        element_ops_per_s=rate(cached, "elements"),
        call_s=call,
        source=f"measured in float32 with PyTorch {torch.__version__} on {platform.machine()}",
    )


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def _many(function: Callable[[], object], times: int) -> Callable[[], object]:
    def repeated() -> None:
        for _ in range(times):
            function()

    return repeated


def compare_times(
    machine: Machine,
    *,
    lengths: Sequence[int] = LENGTHS,
    rounds: int = 5,
    dim: int = DIM,
    num_heads: int = NUM_HEADS,
    on_result: Callable[[Compared], object] | None = None,
) -> list[Compared]:
    """Run `softmax` and `lightning`, causal and without gradients, against what the roofs tell.

    Args:
        machine: the roofs, of `calibrate`.
        lengths: numbers of tokens.
        rounds: measured calls of each; the two alternate.
        dim: width of the model.
        num_heads: number of heads.
        on_result: called after each.
    """
    torch.manual_seed(0)
    mixers = {name: create(name, dim=dim, num_heads=num_heads, causal=True).eval() for name in KERNELS}
    found = []
    for tokens in lengths:
        x = torch.randn(1, tokens, dim)
        with torch.inference_mode():
            took = race({name: _call(mixer, x) for name, mixer in mixers.items()}, rounds=rounds, warmup=1).median_s
        for name, kernels_of in KERNELS.items():
            kernels = kernels_of(Layer(tokens=tokens, dim=dim, num_heads=num_heads))
            found.append(
                Compared(
                    mechanism=name,
                    tokens=tokens,
                    predicted_s=machine.total(kernels),
                    measured_s=took[name],
                    operations=sum(kernel.operations for kernel in kernels),
                    moved_bytes=sum(kernel.moved_bytes for kernel in kernels),
                )
            )
            if on_result is not None:
                on_result(found[-1])
    return found


def _call(mixer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    return lambda: mixer(x)
