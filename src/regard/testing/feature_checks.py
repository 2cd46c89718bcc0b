"""Checks of feature mixers alone: awkward sizes, gates, maps, cost."""

from __future__ import annotations

import torch

from regard.measure import contraction_macs
from regard.metadata import No
from regard.testing.judgement import agree, require, require_finite
from regard.testing.sequence_checks import PROBABLE
from regard.testing.subjects import LONG, FeatureSubject, run

SPACES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((1,), (2,), (3,), (17,), (31,), (LONG,)),
    2: ((1, 1), (1, 7), (5, 1), (2, 3), (17, 31), (29, 13)),
    3: ((1, 1, 1), (2, 1, 3), (5, 7, 3), (11, 2, 13)),
}


def sizes(subject: FeatureSubject) -> None:
    """Odd, prime and length-1 sizes work, and the same in a batch as alone."""
    module = subject.build()
    with torch.no_grad():
        for space in SPACES[subject.dimensions]:
            inputs = subject.sized(space, batch=2)
            y = run(module, inputs)
            require(y.shape == inputs["x"].shape, f"size {space} gives shape {tuple(y.shape)}")
            require_finite(y, f"the output for size {space}")
            alone = run(module, {name: value[1:] for name, value in inputs.items()})
            agree(y[1:], alone, f"size {space} in a batch against alone")


def gate(subject: FeatureSubject) -> None:
    """A gate broadcasts to `x`; where the traits call the mechanism a gate, it is the factor on `x`."""
    module = subject.build()
    inputs = subject.inputs()
    with torch.no_grad():
        values = module.gate(**inputs)
        x = inputs["x"]
        fits = values.ndim == x.ndim and all(own in (1, full) for own, full in zip(values.shape, x.shape, strict=True))
        require(fits, f"gate(x) has shape {tuple(values.shape)}, which does not broadcast to {tuple(x.shape)}")
        require_finite(values, "gate(x)")
        reason = subject.cls.traits.has_map
        if isinstance(reason, No) and "gate" in reason.reason:
            agree(run(module, inputs), x * values, "the output against x * gate(x)")


def attention_map(subject: FeatureSubject) -> None:
    """A dense map over row-major positions, stochastic where the traits say so."""
    module, inputs = subject.build(), subject.inputs()
    with torch.no_grad():
        square = module.attention_map(**inputs)
    positions = inputs["x"][0, 0].numel()
    fits = square.ndim == 4 and (square.shape[0], *square.shape[2:]) == (subject.batch, positions, positions)
    wanted = f"({subject.batch}, heads, {positions}, {positions})"
    require(fits, f"attention_map has shape {tuple(square.shape)} instead of {wanted}")
    require_finite(square, "attention_map")
    if subject.cls.traits.row_stochastic:
        lowest, error = float(square.min()), float((square.sum(dim=-1) - 1).abs().max())
        require(lowest >= 0, f"attention_map is said to be stochastic, its smallest weight is {lowest:.3g}")
        require(error <= PROBABLE, f"attention_map is said to be stochastic, a row's sum is {error:.3g} away from 1")


def cost(subject: FeatureSubject) -> None:
    """`macs` is what an eager float32 forward counts (half of `FlopCounterMode`'s FLOPs)."""
    module = subject.build_untouched()
    spaces = SPACES[subject.dimensions] if subject.any_length else ()
    for batch, space in [(subject.batch, subject.space), *((3, space) for space in spaces)]:
        inputs = subject.sized(space, batch=batch, dtype=torch.float32)
        counted = contraction_macs(lambda inputs=inputs: run(module, inputs))  # type: ignore[misc]
        claimed = subject.cls.macs(batch=batch, space=space, **subject.options())
        sizes_shown = f"batch={batch}, space={space}"
        require(claimed == counted, f"macs({sizes_shown}) says {claimed}, a forward counts {counted:g}")
