"""Checks of what must not be seen: masked keys, other segments, keys with a large negative bias, the future."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regard.testing.common_checks import FAR
from regard.testing.judgement import EXACT, agree, require, require_finite, require_zero
from regard.testing.subjects import (
    LONG,
    PLACES,
    Inputs,
    SequenceSubject,
    mask_with_counts,
    random_tensor,
    run,
    scattered_mask,
)

HIDDEN = -1e6
"""A bias under which a key has no weight left."""
FUTURE_LENGTH = 300
FUTURE_CUTS: tuple[int, ...] = (0, 1, 15, 16, 31, 63, 64, 65, 127, 128, 150, 255, 256, 298)
"""Last visible tokens at which the future is changed: beside the usual block borders and elsewhere."""


def masked_keys(subject: SequenceSubject) -> None:
    """What stands at a masked token has no influence, NaN and infinity included, and no gradient."""
    module, inputs, name = subject.build(), subject.inputs(), subject.masked_input
    keys = inputs[name]
    mask = scattered_mask(keys.shape[0], keys.shape[1], seed=5)
    expected = run(module, inputs, mask=mask)
    for filler in (FAR, float("inf"), float("nan")):
        filled = torch.where(mask[..., None], keys, filler * random_tensor(tuple(keys.shape), seed=6).abs())
        with torch.no_grad():
            y = run(module, {**inputs, name: filled}, mask=mask)
        agree(y, expected, f"masked tokens filled with values of size {filler}", tolerance=EXACT / 100)
    leaf = torch.where(mask[..., None], keys, FAR).requires_grad_()
    y = run(module, {**inputs, name: leaf}, mask=mask)
    (gradient,) = torch.autograd.grad((y * random_tensor(tuple(y.shape), seed=7)).sum(), leaf)
    require_zero(gradient[~mask], "the gradient at masked tokens")
    require_finite(gradient, "the gradient with a mask")
    require(bool((gradient[mask] != 0).any()), "with a mask no gradient reaches the real tokens")


def padding(subject: SequenceSubject) -> None:
    """Left, right and scattered padding equal the unpadded call; outputs at masked tokens are exactly 0."""
    module = subject.build()
    real = subject.keys
    sizes = [(real + 5, [max(1, real - 4 * row) for row in range(3)])] if subject.any_length else [(2 * real, [real])]
    if subject.any_length:
        sizes.append((LONG + 19, [LONG, 67, 1]))
    for keys, counts in sizes:
        for where in PLACES:
            inputs = _with_keys(subject, keys, rows=len(counts))
            mask = mask_with_counts(counts, keys, where=where)
            _compare_with_unpadded(subject, module, inputs, mask, f"{where} padding, {counts} of {keys} real")


def fully_masked(subject: SequenceSubject) -> None:
    """A row without any real token gives exactly 0, and every gradient stays finite."""
    module, inputs = subject.build(), subject.inputs(batch=3)
    keys = inputs[subject.masked_input].shape[1]
    for what, empty_rows in (("row 1 of 3", [1]), ("every row", [0, 1, 2])):
        mask = scattered_mask(3, keys, seed=8)
        mask[empty_rows] = False
        leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        y = run(module, leaves, mask=mask)
        require_zero(y[empty_rows], f"with {what} fully masked, the output there")
        require_finite(y, f"with {what} fully masked, the output")
        learned = {name: value for name, value in module.named_parameters() if value.requires_grad}
        wanted = {**leaves, **learned}
        found = torch.autograd.grad(y.sum(), list(wanted.values()), allow_unused=True)
        for name, gradient in zip(wanted, found, strict=True):
            if gradient is not None:
                require_finite(gradient, f"with {what} fully masked, the gradient of {name}")


def future(subject: SequenceSubject) -> None:
    """No later token has influence; where causality holds for values only, no gradient comes from later tokens."""
    module = subject.build()
    if subject.cls.traits.causality == "strict":
        _future_by_perturbation(subject, module)
    x = subject.inputs()["x"].requires_grad_()
    y = run(module, {"x": x})
    for last in range(x.shape[1] - 1):
        weights = random_tensor(tuple(y[:, last].shape), seed=last)
        (gradient,) = torch.autograd.grad((y[:, last] * weights).sum(), x, retain_graph=True)
        require_zero(gradient[:, last + 1 :], f"the gradient of token {last} with respect to later tokens")


def segments(subject: SequenceSubject) -> None:
    """Packed sequences equal separate calls: other borders in each row, 0,1,0 is three runs, also with a mask."""
    module = subject.build()
    unit = 1 if subject.any_length else subject.tokens
    layouts = [
        [[(0, 5), (1, 4), (0, 4)], [(7, 1), (3, 10), (4, 2)]],
        [[(0, 140), (1, 1), (0, 139)], [(2, 33), (9, 130), (8, 117)]],
    ]
    for layout in layouts if unit == 1 else [[[(0, unit), (1, unit), (0, unit)], [(5, unit), (3, unit), (4, unit)]]]:
        numbers = torch.tensor([[number for number, count in row for _ in range(count)] for row in layout])
        inputs = subject.sized(numbers.shape[1], batch=2)
        for kept in (None, _keep_some(layout)) if subject.cls.traits.masks and unit == 1 else (None,):
            more = {} if kept is None else {"mask": kept}
            with torch.no_grad():
                y = run(module, inputs, segments=numbers, **more)
            for row, runs in enumerate(layout):
                start = 0
                for number, count in runs:
                    piece = slice(start, start + count)
                    real = torch.ones(count, dtype=torch.bool) if kept is None else kept[row, piece]
                    with torch.no_grad():
                        alone = run(module, {"x": inputs["x"][row : row + 1, piece][:, real]})
                    what = f"row {row}, run {number} at {start}..{start + count - 1}"
                    agree(y[row, piece][real], alone[0], what + (" with a mask" if more else ""))
                    require_zero(y[row, piece][~real], f"{what}: the output at masked tokens")
                    start += count


def bias(subject: SequenceSubject) -> None:
    """A bias of 0 changes nothing, another one does; a large negative one hides a key; it is masked as keys are."""
    module, inputs, name = subject.build(), subject.inputs(), subject.masked_input
    plain = run(module, inputs)
    batch, queries, keys = len(plain), plain.shape[1], inputs[name].shape[1]
    shape = (batch, subject.num_heads, queries, keys)
    agree(run(module, inputs, bias=torch.zeros(shape, dtype=plain.dtype)), plain, "a bias of 0")
    given = random_tensor(shape, seed=9).requires_grad_()
    y = run(module, inputs, bias=given)
    change = float((y - plain).detach().abs().max())
    require(change > 1e-6, f"a bias of size 1 changes the output by {change:.2g}: it is ignored")
    (gradient,) = torch.autograd.grad(y.square().sum(), given)
    require_finite(gradient, "the gradient of the bias")
    one = given.detach()[:1]
    agree(run(module, inputs, bias=one), run(module, inputs, bias=one.expand(shape)), "one bias for all rows")
    _bias_hides_a_key(subject, module, inputs)
    if subject.cls.traits.masks and subject.any_length:
        mask = scattered_mask(batch, keys, seed=10)
        _compare_with_unpadded(subject, module, inputs, mask, "a bias with a mask", bias=given.detach())


# --------------------------------------------------------------------------------------------------- parts


def _with_keys(subject: SequenceSubject, keys: int, *, rows: int) -> Inputs:
    return subject.sized(subject.tokens if subject.cross else keys, keys, batch=rows)


def _compare_with_unpadded(
    subject: SequenceSubject, module: Any, inputs: Inputs, mask: Tensor, what: str, *, bias: Tensor | None = None
) -> None:
    name = subject.masked_input
    filled = torch.where(mask[..., None], inputs[name], FAR)
    with torch.no_grad():
        more = {} if bias is None else {"bias": bias}
        y = run(module, {**inputs, name: filled}, mask=mask, **more)
        for row, real in enumerate(mask):
            alone = {key: value[row : row + 1] for key, value in inputs.items()}
            alone[name] = alone[name][:, real]
            if bias is not None:
                part = bias[row : row + 1][..., real]
                more = {"bias": part if subject.cross else part[:, :, real]}
            seen = y[row] if subject.cross else y[row, real]
            agree(seen, run(module, alone, **more)[0], f"{what}: row {row} against the unpadded call")
            if not subject.cross:
                require_zero(y[row, ~real], f"{what}: the output at masked tokens of row {row}")


def _future_by_perturbation(subject: SequenceSubject, module: Any) -> None:
    lengths = [(FUTURE_LENGTH, FUTURE_CUTS)] if subject.any_length else []
    lengths.append((subject.tokens, tuple(range(subject.tokens - 1))))
    for tokens, cuts in lengths:
        x = subject.sized(tokens, batch=1)["x"]
        with torch.no_grad():
            expected = run(module, {"x": x})
            for last in cuts:
                for size in (1.0, FAR):
                    changed = x.clone()
                    changed[:, last + 1 :] = size * random_tensor(tuple(x[:, last + 1 :].shape), seed=last)
                    y = run(module, {"x": changed})
                    what = f"tokens 0..{last} of {tokens} after later tokens were replaced by values of size {size:g}"
                    agree(y[:, : last + 1], expected[:, : last + 1], what)


def _keep_some(layout: list[list[tuple[int, int]]]) -> Tensor:
    """A mask that leaves at least the first token of every run."""
    total = sum(count for _, count in layout[0])
    kept = scattered_mask(len(layout), total, seed=13)
    for row, runs in enumerate(layout):
        start = 0
        for _, count in runs:
            kept[row, start] = True
            start += count
    return kept


def _bias_hides_a_key(subject: SequenceSubject, module: Any, inputs: Inputs) -> None:
    name, hidden = subject.masked_input, 1
    batch, queries, keys = len(inputs["x"]), inputs["x"].shape[1], inputs[name].shape[1]
    hiding = torch.zeros(batch, subject.num_heads, queries, keys, dtype=torch.float64)
    hiding[..., hidden] = HIDDEN
    changed = inputs[name].clone()
    changed[:, hidden] = random_tensor(tuple(changed[:, hidden].shape), seed=14)
    with torch.no_grad():
        before = run(module, inputs, bias=hiding)
        after = run(module, {**inputs, name: changed}, bias=hiding)
    others = [query for query in range(queries) if subject.cross or query != hidden]
    agree(after[:, others], before[:, others], f"after a change of key {hidden}, whose bias is {HIDDEN:g}")
