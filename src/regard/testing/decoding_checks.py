"""Checks of decoding: `step` over any chunking equals `forward`, masks included, and states behave as states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from regard.contract import State
from regard.testing.judgement import agree, require, require_zero
from regard.testing.subjects import LONG, PLACES, Place, SequenceSubject, mask_with_counts, random_tensor

CHUNKINGS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("one token at a time", (1,) * 19),
    ("a prompt and single tokens", (13, 1, 1, 1, 1)),
    ("mixed chunks", (3, 5, 2, 7, 1, 4, 1)),
    ("one chunk", (23,)),
    ("a long prompt", (LONG, 1, 1, 17, 1)),
    ("long chunks", (67, 71, 130)),
)


def chunked_steps(subject: SequenceSubject) -> None:
    """Every chunking gives what `forward` gives, with and without `max_len`, and the same gradients."""
    module = subject.build()
    for what, chunks in _chunkings(subject):
        total = sum(chunks)
        x = subject.sized(total)["x"]
        for max_len in (None, total):
            with torch.no_grad():
                y, state = _step_through(module, x, chunks, max_len=max_len)
                require(torch.equal(x, subject.sized(total)["x"]), f"step by {what} writes to its input")
                agree(y, module(x), f"step by {what} (max_len={max_len}) against forward")
            _require_position(state, [total] * len(x), what)
    chunks = (3, 5, 1, subject.tokens - 9) if subject.tokens > 9 else (1,) * subject.tokens
    leaf = subject.sized(sum(chunks))["x"].requires_grad_()
    weights = random_tensor(tuple(leaf.shape), seed=15)
    y, _ = _step_through(module, leaf, chunks, max_len=None)
    (stepped,) = torch.autograd.grad((y * weights).sum(), leaf)
    (whole,) = torch.autograd.grad((module(leaf) * weights).sum(), leaf)
    agree(stepped, whole, f"gradient through steps of {chunks} against forward's")


def masked_steps(subject: SequenceSubject) -> None:
    """A ragged prompt and what follows equal the unpadded rows; a masked token gives 0 and leaves no trace."""
    module = subject.build()
    for where in PLACES:
        for max_len in (None, 29):
            _ragged_prompt(subject, module, where, max_len)
    _pauses(subject, module)


def state(subject: SequenceSubject) -> None:
    """Batch on axis 0, `reorder`, `detach`, `clone`, `nbytes` and the pytree round trip."""
    module = subject.build()
    x, after = subject.sized(11)["x"], subject.sized(6, seed=2)["x"]
    _, kept = module.step(x, module.init_state(len(x)))
    require(isinstance(kept, State), f"step returns {type(kept).__name__}, not a State")
    leaves, structure = pytree.tree_flatten(kept)
    for leaf in leaves:
        require(isinstance(leaf, Tensor), f"a leaf of the state is {type(leaf).__name__}, not a tensor")
        require(leaf.ndim > 0 and len(leaf) == len(x), f"a state tensor has shape {tuple(leaf.shape)}, batch {len(x)}")
    require(kept.position.dtype == torch.int64, f"position is {kept.position.dtype}, not int64")
    _require_position(kept, [11] * len(x), "11 tokens")
    held = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    require(kept.nbytes == held, f"nbytes is {kept.nbytes}, the tensors hold {held}")
    detached = kept.detach()
    attached = sum(leaf.requires_grad for leaf in pytree.tree_leaves(detached))
    require(attached == 0, f"{attached} tensors still require a gradient after detach()")
    with torch.no_grad():
        expected, _ = module.step(after, detached.clone())
        again, _ = module.step(after, pytree.tree_unflatten(pytree.tree_leaves(detached.clone()), structure))
        agree(again, expected, "continuation after a pytree round trip")
        index = torch.tensor([1, 0, 1])
        swapped, _ = module.step(after[index], detached.reorder(index))
        agree(swapped, expected[index], "continuation after reorder([1, 0, 1])")
        _clone_is_separate(module, detached, after, expected)


# --------------------------------------------------------------------------------------------------- parts


def _chunkings(subject: SequenceSubject) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Chunks of many sizes; they add up to the example's length where `forward` takes no other."""
    if subject.any_length:
        return CHUNKINGS
    tokens = subject.tokens
    return ("one token at a time", (1,) * tokens), ("one chunk", (tokens,)), ("two chunks", (1, tokens - 1))


def _step_through(module: Any, x: Tensor, chunks: Sequence[int], *, max_len: int | None) -> tuple[Tensor, Any]:
    state = module.init_state(len(x), max_len=max_len)
    pieces = []
    for chunk in x.split(list(chunks), dim=1):
        y, state = module.step(chunk, state)
        require(y.shape == chunk.shape, f"step gives shape {tuple(y.shape)} for {tuple(chunk.shape)}")
        pieces.append(y)
    return torch.cat(pieces, dim=1), state


def _require_position(state: State, wanted: list[int], what: str) -> None:
    found = state.position.tolist()
    require(found == wanted, f"after {what} the state's position is {found} instead of {wanted}")


def _ragged_prompt(subject: SequenceSubject, module: Any, where: Place, max_len: int | None) -> None:
    counts, prompt, follow = [17, 9, 0], 17, 5
    mask = mask_with_counts(counts, prompt, where=where)
    x, after = subject.sized(prompt, batch=3)["x"], subject.sized(follow, batch=3, seed=2)["x"]
    filled = torch.where(mask[..., None], x, torch.nan)
    with torch.no_grad():
        first, state = module.step(filled, module.init_state(3, max_len=max_len), mask=mask)
        rest = []
        for token in after.split(1, dim=1):
            y, state = module.step(token, state)
            rest.append(y)
        together = torch.cat(rest, dim=1)
        _require_position(state, [count + follow for count in counts], f"a prompt padded at the {where}")
        for row, count in enumerate(counts):
            chunks = [count] * (count > 0) + [1] * follow
            alone = torch.cat((x[row][mask[row]], after[row]))[None]
            expected, _ = _step_through(module, alone, chunks, max_len=None)
            what = f"{where} padding (max_len={max_len}), row {row} with {count} of {prompt} real"
            agree(first[row][mask[row]], expected[0, :count], f"{what}: the prompt")
            agree(together[row], expected[0, count:], f"{what}: single tokens after it")
            require_zero(first[row][~mask[row]], f"{what}: the output at masked tokens")


def _pauses(subject: SequenceSubject, module: Any) -> None:
    """Rows pause in turns: at every step some tokens are masked, single ones and chunks."""
    x = subject.sized(12, batch=2)["x"]
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 0, 1]]).bool()
    filled = torch.where(mask[..., None], x, torch.nan)
    with torch.no_grad():
        for chunks in ([1] * 12, [1, 4, 3, 1, 3]):
            state = module.init_state(2)
            pieces = []
            for piece, real in zip(filled.split(chunks, 1), mask.split(chunks, 1), strict=True):
                y, state = module.step(piece, state, mask=real)
                pieces.append(y)
            stepped = torch.cat(pieces, dim=1)
            require_zero(stepped[~mask], f"chunks {chunks}: the output at masked tokens")
            _require_position(state, mask.sum(dim=1).tolist(), f"chunks {chunks} with masked tokens between")
            for row in range(2):
                counts = [int(piece.sum()) for piece in mask[row].split(chunks) if piece.any()]
                alone, _ = _step_through(module, x[row][mask[row]][None], counts, max_len=None)
                agree(stepped[row][mask[row]], alone[0], f"chunks {chunks}, row {row} with masked tokens between")


def _clone_is_separate(module: Any, detached: Any, after: Tensor, expected: Tensor) -> None:
    branch = detached.clone()
    own = {leaf.data_ptr() for leaf in pytree.tree_leaves(detached) if leaf.numel()}
    shared = sum(leaf.data_ptr() in own for leaf in pytree.tree_leaves(branch) if leaf.numel())
    require(shared == 0, f"a clone shares {shared} tensors with the state that it was made from")
    for token in (-after).split(1, dim=1):
        _, branch = module.step(token, branch)
    continued, _ = module.step(after, detached)
    agree(continued, expected, "continuation of a state whose clone was stepped")
