"""Checks of sequence mixers alone: awkward lengths, `attention_map`, cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.measure import contraction_macs
from regard.testing.judgement import agree, require, require_finite, require_zero
from regard.testing.subjects import LONG, Inputs, SequenceSubject, run, scattered_mask

LENGTHS = (1, 2, 3, 17, 31, 67, LONG)
LONGEST = 300
"""Crosses the usual block borders."""
PROBABLE = 1e-5
"""How far a row of a stochastic map may be from summing to 1: papers add an epsilon to the sum that they divide by."""


def sizes(subject: SequenceSubject) -> None:
    """Odd, prime and length-1 inputs work and agree with a longer call that holds them as its beginning."""
    module = subject.build()
    whole = subject.sized(LONGEST, batch=1)
    name = subject.masked_input
    traits = subject.cls.traits
    with torch.no_grad():
        everything = run(module, whole) if subject.causal and traits.causality == "strict" else None
        for length in LENGTHS:
            part = {**whole, name: whole[name][:, :length]}
            y = run(module, part)
            require(y.shape == part["x"].shape, f"{length} tokens give shape {tuple(y.shape)}")
            require_finite(y, f"the output for {length} tokens")
            what = f"{length} tokens against the beginning of {LONGEST}"
            if everything is not None:
                agree(y, everything[:, :length], what)
            elif traits.masks:
                mask = (torch.arange(LONGEST) < length)[None]
                masked = run(module, whole, mask=mask)
                agree(y, masked if subject.cross else masked[:, :length], what + ", the rest masked")
        if subject.cross:
            for queries in (1, 67):
                y = run(module, {**whole, "x": whole["x"][:, :queries]})
                require_finite(y, f"the output for {queries} queries and {LONGEST} keys")


def attention_map(subject: SequenceSubject) -> None:
    """`map @ values == mix`; causal, stochastic and masked as the traits say."""
    module, inputs = subject.build(), subject.inputs()
    x, context = inputs["x"], inputs.get("context")
    optional = subject.extras(inputs)
    with torch.no_grad():
        values = module.values(x, context=context)
        ways: list[Inputs] = [{}, *({name: value} for name, value in optional.items() if name != "mask")]
        for given in ways:
            what = f"attention_map with {next(iter(given), 'no options')}"
            square = module.attention_map(x, context=context, **given)
            _judge_map(subject, module, square, inputs, what)
            options: dict[str, Any] = {"mask": None, "segments": None, "bias": None, **given}
            agree(square @ values, module.mix(x, context=context, **options), f"{what} @ values against mix")
        if subject.cls.traits.masks:
            _masked_map(subject, module, inputs)


def cost(subject: SequenceSubject) -> None:
    """`macs` is what an eager float32 forward counts (half of `FlopCounterMode`'s FLOPs)."""
    module = subject.build_untouched()
    shapes = [(subject.batch, subject.tokens, subject.cls.example.context)]
    if subject.any_length:
        shapes += [(1, 1, 1), (3, 67, 29), (1, LONG, 300), (1, 300, LONG)]
    for batch, tokens, context in shapes:
        inputs = subject.sized(tokens, context, batch=batch, dtype=torch.float32)
        counted = contraction_macs(lambda inputs=inputs: run(module, inputs))  # type: ignore[misc]
        keys = {"context": context} if subject.cross else {}
        claimed = subject.cls.macs(batch=batch, tokens=tokens, **keys, **subject.options())
        sizes_shown = f"batch={batch}, tokens={tokens}" + (f", context={context}" if subject.cross else "")
        require(claimed == counted, f"macs({sizes_shown}) says {claimed}, a forward counts {counted:g}")


def _judge_map(subject: SequenceSubject, module: Any, square: Tensor, inputs: Inputs, what: str) -> None:
    batch, queries = inputs["x"].shape[:2]
    wanted = (batch, module.num_heads, queries, inputs[subject.masked_input].shape[1])
    require(tuple(square.shape) == wanted, f"{what} has shape {tuple(square.shape)} instead of {wanted}")
    require_finite(square, what)
    if subject.causal:
        require_zero(square.triu(1), f"{what} above the diagonal")
    if subject.cls.traits.row_stochastic:
        lowest, sums = float(square.min()), square.sum(dim=-1)
        require(lowest >= 0, f"{what} is said to be stochastic, its smallest weight is {lowest:.3g}")
        error = float((sums - 1).abs().max())
        require(error <= PROBABLE, f"{what} is said to be stochastic, a row's sum is {error:.3g} away from 1")


def _masked_map(subject: SequenceSubject, module: Any, inputs: Inputs) -> None:
    name = subject.masked_input
    keys = inputs[name]
    mask = scattered_mask(keys.shape[0], keys.shape[1], seed=18)
    mask[0] = False
    mask[0, 1] = True
    square = module.attention_map(inputs["x"], context=inputs.get("context"), mask=mask)
    require_finite(square, "attention_map with a mask")
    for row, real in enumerate(mask):
        require_zero(square[row][..., ~real], f"attention_map with a mask: masked columns of row {row}")
        if not subject.cross:
            require_zero(square[row][:, ~real], f"attention_map with a mask: masked rows of row {row}")
        if subject.any_length:
            alone = {key: value[row : row + 1] for key, value in inputs.items()}
            alone[name] = alone[name][:, real]
            seen = square[row][..., real]
            seen = seen if subject.cross else seen[:, real]
            expected = module.attention_map(alone["x"], context=alone.get("context"))[0]
            agree(seen, expected, f"attention_map with a mask: row {row} against the unpadded call")
    empty = module.attention_map(inputs["x"], context=inputs.get("context"), mask=torch.zeros_like(mask))
    require_zero(empty, "attention_map with everything masked")
