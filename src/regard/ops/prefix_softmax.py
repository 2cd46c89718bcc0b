"""Softmax over every prefix of a sequence for one fixed query: attention as a scan.

With one score s_j per key, the same for every query, output i is softmax attention over the keys up to i,

    o_i = sum_{j <= i} e^{s_j} v_j / sum_{j <= i} e^{s_j},

and what a prefix leaves behind is three things: its largest score m, u = sum e^{s_j - m} and w = sum e^{s_j - m} v_j.
Two neighbouring stretches of tokens merge into one by rescaling both to the larger m; merging is associative.

Paper: "Attention as an RNN", Feng et al., 2024, https://arxiv.org/abs/2405.13956, section 3 (the recurrence, its block
form, the parallel prefix scan). Five forms: `prefix_softmax_reference` (quadratic, the definition),
`prefix_softmax_recurrent` (token by token), `prefix_softmax_scan` (the paper's Hillis-Steele scan, O(N log N) work),
`prefix_softmax_with_state` (any number of tokens after a state) and `prefix_softmax` (the default everywhere).

The last two share an algorithm of O(N) work: a short block of tokens is one product with the triangular matrix of
e^{s_j - m_i}, where m_i is the largest score of the whole prefix, so that no exponential exceeds 1 and every sum is at
least 1; the blocks' last sums are scanned in the same way, and carried into the blocks. Scores may have any size.
A score or value that is NaN makes the outputs of its own block and of all later ones NaN.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.ops.precision import compute_dtype, without_autocast
from regard.ops.visibility import run_numbers, visible_keys

BLOCK = 16
"""Tokens in a block, best on a CPU: longer ones cost more exponentials, shorter ones more passes (measured)."""

NO_WEIGHT = 0.5
"""Sums of weights are 0 where no token was seen, and elsewhere at least 1, the weight of the largest score."""

Scores = Float[Tensor, "batch heads tokens"]
Values = Float[Tensor, "batch heads tokens value_dim"]


class PrefixSums(NamedTuple):
    """What softmax needs of all tokens so far, in at least float32.

    Args:
        peak: `(..., 1)`, the largest score m. The lowest finite number stands for minus infinity before the first
            token, so that a difference of two of them is 0 and not NaN.
        total: `(..., 1)`, the sum u of the weights e^(s - m).
        weighted: `(..., value_dim)`, the weighted sum w of the values.
    """

    peak: Float[Tensor, "*stretch 1"]
    total: Float[Tensor, "*stretch 1"]
    weighted: Float[Tensor, "*stretch value_dim"]


@runtime_checkable
class AnySums(Protocol):
    """`PrefixSums`, or whatever else has its fields."""

    @property
    def peak(self) -> Tensor:
        """As in `PrefixSums`."""

    @property
    def total(self) -> Tensor:
        """As in `PrefixSums`."""

    @property
    def weighted(self) -> Tensor:
        """As in `PrefixSums`."""


def empty_prefix_sums(batch: int, *, num_heads: int, value_dim: int, like: Tensor) -> PrefixSums:
    """The sums before the first token, (-inf, 0, 0), in at least float32 on the device of `like`.

    Raises:
        ValueError: `batch` is not positive.
    """
    if batch < 1:
        raise ValueError(f"batch must be positive, got {batch}")
    dtype = compute_dtype(like)
    peak = like.new_full((batch, num_heads, 1), torch.finfo(dtype).min, dtype=dtype)
    return PrefixSums(peak, torch.zeros_like(peak), peak.new_zeros(batch, num_heads, value_dim))


def merge(earlier: PrefixSums, later: PrefixSums) -> PrefixSums:
    """The sums of two stretches of tokens together; associative, with `empty_prefix_sums` as identity."""
    peak = torch.maximum(earlier.peak, later.peak)
    kept, taken = torch.exp(earlier.peak - peak), torch.exp(later.peak - peak)
    total = torch.addcmul(earlier.total * kept, later.total, taken)
    return PrefixSums(peak, total, torch.addcmul(earlier.weighted * kept, later.weighted, taken))


# --------------------------------------------------------------------------------------------------- references


@without_autocast
def prefix_softmax_weights(
    scores: Scores, *, segments: Int[Tensor, "batch tokens"] | None = None
) -> Float[Tensor, "batch heads tokens tokens"]:
    """The map: row i is the softmax of the scores of the keys up to i, in at least float32.

    Args:
        scores: one per key.
        segments: packed sequences, which never see each other.
    """
    tokens = scores.shape[-1]
    visible = visible_keys(tokens, tokens, causal=True, segments=segments, device=scores.device)
    assert visible is not None
    return scores.to(compute_dtype(scores))[:, :, None].masked_fill(~visible, -torch.inf).softmax(dim=-1)


def prefix_softmax_reference(
    scores: Scores, values: Values, *, segments: Int[Tensor, "batch tokens"] | None = None
) -> Values:
    """The quadratic form, as written: the map times the values."""
    weights = prefix_softmax_weights(scores, segments=segments)
    return (weights @ values.to(weights.dtype)).to(values.dtype)


def prefix_softmax_recurrent(
    scores: Scores, values: Values, state: PrefixSums | None = None
) -> tuple[Values, PrefixSums]:
    """The recurrent form: one `prefix_softmax_step` per token."""
    wide_scores, wide_values = _prepare(scores, values)
    sums = _empty_like(wide_values) if state is None else state
    outputs = []
    for token in range(scores.shape[2]):
        o, sums = prefix_softmax_step(wide_scores[:, :, token, None], wide_values[:, :, token], sums)
        outputs.append(o)
    return torch.stack(outputs, dim=2).to(values.dtype), sums


@without_autocast
def prefix_softmax_scan(scores: Scores, values: Values) -> Values:
    """The Hillis-Steele scan: in round r = 0, 1, .. every prefix takes in the one that ends 2^r tokens before it."""
    wide_scores, weighted = _prepare(scores, values)
    # a key whose score is minus infinity is an empty stretch
    real = (wide_scores > -torch.inf)[..., None]
    peak = wide_scores.clamp(min=torch.finfo(weighted.dtype).min)[..., None]
    found = PrefixSums(peak, real.to(weighted.dtype), torch.where(real, weighted, 0))
    empty = PrefixSums(*(x[:, :, None] for x in _empty_like(weighted)))
    shift = 1
    while shift < scores.shape[2]:
        pairs = zip(empty, found, strict=True)
        earlier = (torch.cat((e.expand(-1, -1, shift, -1), x[:, :, :-shift]), dim=2) for e, x in pairs)
        found = merge(PrefixSums(*earlier), found)
        shift *= 2
    return (found.weighted / found.total.clamp(min=NO_WEIGHT)).to(values.dtype)


# --------------------------------------------------------------------------------------------------- fast forms


@without_autocast
def prefix_softmax(
    scores: Scores,
    values: Values,
    *,
    segments: Int[Tensor, "batch tokens"] | None = None,
    block_size: int = BLOCK,
) -> Values:
    """Softmax over every prefix in linear time and memory; equals `prefix_softmax_reference`.

    Args:
        scores: one per key, of any size.
        values: any width; their dtype is the result's.
        segments: packed sequences, which never see each other.
        block_size: tokens in a block, at least 2.

    Raises:
        ValueError: shapes, devices or a block size that do not fit, or no token.
    """
    wide_scores, wide_values = _prepare(scores, values, block_size=block_size)
    runs = None if segments is None else run_numbers(segments)
    peaks = _running_peak(wide_scores, runs, None)
    lifted = _with_ones(wide_values)
    sums = _scan_blocks(wide_scores, peaks, lifted, runs=runs, first=None, block_size=block_size)
    return _read(sums).to(values.dtype)


@without_autocast
def prefix_softmax_with_state(
    scores: Scores,
    values: Values,
    state: AnySums | None = None,
    *,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    block_size: int = BLOCK,
) -> tuple[Values, PrefixSums]:
    """Outputs of tokens that follow those in `state`, and the state after them.

    Args:
        scores: one per key.
        values: of the same keys.
        state: the sums so far; None = nothing seen yet.
        mask: True = real token; the others leave the state as it is. The output is 0 where nothing real was seen.
        block_size: tokens in a block, at least 2.

    Raises:
        ValueError: shapes, dtypes, devices, a state or a block size that do not fit, or no token.
    """
    wide_scores, wide_values = _prepare(scores, values, block_size=block_size)
    first: AnySums = _empty_like(wide_values) if state is None else state
    _check_state(first, wide_scores[:, :, :1], wide_values[:, :, 0])
    if mask is not None:
        wide_scores = wide_scores.masked_fill(~mask[:, None], -torch.inf)
    peaks = _running_peak(wide_scores, None, first)
    before = _Carried(first.peak, torch.cat((first.weighted, first.total), dim=-1))
    lifted = _with_ones(wide_values)
    sums = _scan_blocks(wide_scores, peaks, lifted, runs=None, first=before, block_size=block_size)
    after = PrefixSums(peaks[:, :, -1:], sums[:, :, -1, -1:], sums[:, :, -1, :-1])
    return _read(sums).to(values.dtype), after


def prefix_softmax_step(
    score: Float[Tensor, "batch heads 1"],
    value: Float[Tensor, "batch heads value_dim"],
    state: AnySums,
    *,
    mask: Bool[Tensor, "batch 1"] | None = None,
) -> tuple[Float[Tensor, "batch heads value_dim"], PrefixSums]:
    """One token: its output, and the state after it; `merge` with a stretch of one token, whose sums are 1 and v.

    Every operation counts here, so there are no others: what autocast would change is not among them.

    Args:
        score: of the new key, in the state's dtype.
        value: of the new key, in the state's dtype.
        state: the sums so far.
        mask: False leaves the row's state as it is; the output is 0 where nothing real was seen.

    Raises:
        ValueError: shapes or dtypes that do not fit the state.
    """
    peak, total, weighted = state.peak, state.total, state.weighted
    if weighted.shape != value.shape or peak.shape != score.shape or weighted.dtype != value.dtype:
        _check_state(state, score, value)
    if mask is not None:
        score = score.masked_fill(~mask[:, None], -torch.inf)
    highest = torch.maximum(peak, score)
    kept, taken = peak.sub(highest).exp_(), score.sub(highest).exp_()
    total = torch.addcmul(taken, total, kept)
    weighted = weighted.mul(kept).addcmul_(value, taken)
    # where a token was seen the sum of the weights is at least 1
    divisor = total if mask is None else total.clamp(min=NO_WEIGHT)
    return weighted / divisor, PrefixSums(highest, total, weighted)


def prefix_softmax_macs(tokens: int, *, value_dim: int, block_size: int = BLOCK) -> int:
    """Contraction MACs of `prefix_softmax` for one row and one head."""
    rows = min(block_size, tokens)
    blocks = -(-tokens // rows)
    macs = blocks * rows * rows * (value_dim + 1)
    return macs if blocks == 1 else macs + prefix_softmax_macs(blocks - 1, value_dim=value_dim, block_size=block_size)


# --------------------------------------------------------------------------------------------------- inside


class _Carried(NamedTuple):
    """What lies before the first token; in the last column of `sums` the sum of the weights."""

    peak: Float[Tensor, "batch heads 1"]
    sums: Float[Tensor, "batch heads sums_dim"]


def _scan_blocks(
    scores: Scores,
    peaks: Scores,
    lifted: Float[Tensor, "batch heads tokens sums_dim"],
    *,
    runs: Int[Tensor, "batch tokens"] | None,
    first: _Carried | None,
    block_size: int,
) -> Float[Tensor, "batch heads tokens sums_dim"]:
    """sums_i = sum_{j <= i} e^{scores_j - peaks_i} lifted_j + e^{first.peak - peaks_i} first.sums, over i's own run."""
    tokens = scores.shape[2]
    rows = min(block_size, tokens)
    blocks = -(-tokens // rows)
    scores, peaks, lifted = _in_blocks(scores, peaks, lifted, rows, blocks * rows - tokens)
    # keys of the future are excluded before the exponential, which would overflow there
    exponents = scores[..., None, :] - peaks[..., None]
    exponents = exponents.add_(exponents.new_full((rows, rows), -torch.inf).triu_(1))
    if runs is not None:
        runs = torch.nn.functional.pad(runs, (0, blocks * rows - tokens)).unflatten(1, (blocks, rows))
        exponents = exponents.masked_fill_((runs[..., None, :] != runs[..., None])[:, None], -torch.inf)
    sums = exponents.exp_() @ lifted
    carried_peaks, carried = peaks[..., :-1, -1], sums[..., :-1, -1, :]
    if blocks > 1:
        ends = None if runs is None else runs[:, :-1, -1]
        carried = _scan_blocks(carried_peaks, carried_peaks, carried, runs=ends, first=first, block_size=block_size)
    elif first is None:
        return sums.squeeze(2)
    if first is None:
        # nothing comes before the first block: its factors, e^-inf, are 0
        carried_peaks = torch.nn.functional.pad(carried_peaks, (1, 0), value=-torch.inf)
        carried = torch.nn.functional.pad(carried, (0, 0, 1, 0))
    else:
        carried_peaks = torch.cat((first.peak, carried_peaks), dim=2)
        carried = torch.cat((first.sums[:, :, None], carried), dim=2)
    factors = torch.exp(carried_peaks[..., None] - peaks)
    if runs is not None:
        before = torch.nn.functional.pad(runs[:, :-1, -1], (1, 0), value=-1)
        factors = torch.where((runs == before[..., None])[:, None], factors, 0)
    sums = torch.addcmul(sums, factors[..., None], carried[..., None, :])
    return sums.flatten(2, 3)[:, :, :tokens]


def _in_blocks(
    scores: Tensor, peaks: Tensor, lifted: Tensor, rows: int, missing: int
) -> tuple[Float[Tensor, "b h blocks rows"], Float[Tensor, "b h blocks rows"], Float[Tensor, "b h blocks rows sums"]]:
    """Split the tokens into blocks; the last is filled up with tokens of no weight."""
    if missing:
        scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
        peaks = torch.cat((peaks, peaks[:, :, -1:].expand(-1, -1, missing)), dim=2)
        lifted = torch.nn.functional.pad(lifted, (0, 0, 0, missing))
    return scores.unflatten(2, (-1, rows)), peaks.unflatten(2, (-1, rows)), lifted.unflatten(2, (-1, rows))


def _running_peak(scores: Scores, runs: Int[Tensor, "batch tokens"] | None, first: AnySums | None) -> Scores:
    """The largest score of every prefix, within its run; it cancels, so no gradient passes through it."""
    peaks = scores.detach()
    if runs is None:
        peaks = peaks.cummax(dim=2).values
    else:
        # doubling, since a cumulative maximum cannot be restarted
        shift = 1
        while shift < scores.shape[2]:
            together = (runs[:, shift:] == runs[:, :-shift])[:, None]
            grown = torch.where(together, torch.maximum(peaks[..., shift:], peaks[..., :-shift]), peaks[..., shift:])
            peaks = torch.cat((peaks[..., :shift], grown), dim=2)
            shift *= 2
    if first is not None:
        peaks = torch.maximum(peaks, first.peak.detach())
    return peaks.clamp(min=torch.finfo(peaks.dtype).min)


def _read(sums: Float[Tensor, "batch heads tokens sums_dim"]) -> Values:
    """W / u, and 0 where nothing was seen."""
    return sums[..., :-1] / sums[..., -1:].clamp(min=NO_WEIGHT)


def _with_ones(values: Values) -> Float[Tensor, "batch heads tokens sums_dim"]:
    """Values with a column of ones behind: what is summed there is the sum of the weights."""
    return torch.nn.functional.pad(values, (0, 1), value=1.0)


def _empty_like(values: Tensor) -> PrefixSums:
    return empty_prefix_sums(values.shape[0], num_heads=values.shape[1], value_dim=values.shape[-1], like=values)


def _prepare(scores: Tensor, values: Tensor, *, block_size: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Checked inputs in the precision of the sums."""
    if scores.ndim != 3 or values.ndim != 4 or scores.shape != values.shape[:3]:
        shapes = f"{tuple(scores.shape)} and {tuple(values.shape)}"
        raise ValueError(f"scores and values must have shapes (b, h, n) and (b, h, n, e), got {shapes}")
    if scores.shape[2] == 0:
        raise ValueError("there are 0 tokens, at least 1 is needed")
    if not (scores.is_floating_point() and values.is_floating_point()):
        raise ValueError(f"scores and values must be floating point, got {scores.dtype} and {values.dtype}")
    if scores.device != values.device:
        raise ValueError(f"scores and values must be on one device, got {scores.device} and {values.device}")
    if block_size < 2:
        raise ValueError(f"block_size must be at least 2, got {block_size}")
    dtype = torch.promote_types(compute_dtype(scores), values.dtype)
    return scores.to(dtype), values.to(dtype)


def _check_state(state: AnySums, score: Tensor, value: Tensor) -> None:
    if state.weighted.shape != value.shape or state.peak.shape != score.shape:
        shapes = f"{tuple(state.peak.shape)} and {tuple(state.weighted.shape)}"
        wanted = f"{tuple(score.shape)} and {tuple(value.shape)}"
        raise ValueError(f"the state's peak and weighted sum have shapes {shapes}, they must have {wanted}")
    if not (state.weighted.dtype == score.dtype == value.dtype):
        raise ValueError(f"the state is {state.weighted.dtype}, scores and values are {score.dtype} and {value.dtype}")
