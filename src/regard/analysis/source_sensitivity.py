"""How much of the source is left in what a sequence-to-sequence model generates: bounds, Jacobians, attention mass.

Paper: "Decoder-Only or Encoder-Decoder? Interpreting Language Model as a Regularized Encoder-Decoder", Fu et al., 2023,
https://arxiv.org/abs/2304.04052, the sensitivity analysis. With o_i = sum_j a_ij v_j and the query held fixed, a source
state s_j moves o_i by a_ij (W_V + (v_j - o_i) q_i^T W_K / sqrt(d)): at most a constant times its weight. So the source
as a whole has at most that constant times A_i = sum_{j < S} a_ij; with scores in [-c, c],
A_i <= S e^{2c} / (S e^{2c} + n_i) where n_i keys beside the source are visible. In cross and partial attention n_i = 0.
Compared with autograd: the authors published no code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.layers.projected_attention import AttentionCore
from regard.models.language.seq2seq import Seq2SeqModel
from regard.ops.heads import repeat_heads
from regard.ops.softmax_attention import softmax_attention_reference, softmax_weights
from regard.ops.visibility import visible_keys

Place = Literal["hidden", "logits"] | int


# --------------------------------------------------------------------------------------------------- bounds


def source_share_bound(
    score_bound: float, *, source_len: int, others: Int[Tensor, " queries"]
) -> Float[Tensor, " queries"]:
    """The most that `source_len` keys can weigh beside `others` further keys, when scores lie in [-c, c].

    Args:
        score_bound: c, of scores after division by sqrt(d).
        source_len: S, number of source keys.
        others: number of further visible keys, for every query.

    Raises:
        ValueError: no source, or a bound that is negative.
    """
    if source_len < 1 or score_bound < 0:
        raise ValueError(
            f"source_len must be positive and score_bound not negative, got {source_len} and {score_bound}"
        )
    # e^{2c} would overflow at c = 355: divide by it instead
    shrunk = others.to(torch.float64) * math.exp(-2 * score_bound)
    return source_len / (source_len + shrunk)


def sensitivity_bound(
    q: Float[Tensor, "heads queries head_dim"],
    k: Float[Tensor, "kv_heads keys head_dim"],
    v: Float[Tensor, "kv_heads keys head_dim"],
    *,
    key_weight: Float[Tensor, "kv_width dim"],
    value_weight: Float[Tensor, "kv_width dim"],
    source_len: int,
    others: Int[Tensor, " queries"],
) -> Float[Tensor, " queries"]:
    """A bound on the Frobenius norm of d o_i / d s, of all heads' outputs with respect to all source states.

    Per head (||W_V|| + 2 max_j ||v_j|| max_i ||q_i|| ||W_K|| / sqrt(d)) times `source_share_bound`, with c the largest
    score of the head; heads add in squares. Nothing but the share depends on the step.

    Args:
        q: queries of one sequence, after any rotary embedding (which changes no norm).
        k: all keys that queries may see, the source's first.
        v: their values.
        key_weight: the matrix that makes keys of states.
        value_weight: the matrix that makes values of states.
        source_len: number of source keys.
        others: number of keys beside the source that each query sees.
    """
    heads, head_dim = q.shape[0], q.shape[-1]
    group = heads // k.shape[0]
    k_norms = key_weight.unflatten(0, (k.shape[0], head_dim)).norm(dim=(1, 2)).repeat_interleave(group)
    v_norms = value_weight.unflatten(0, (v.shape[0], v.shape[-1])).norm(dim=(1, 2)).repeat_interleave(group)
    keys, values = repeat_heads(k[None], heads)[0], repeat_heads(v[None], heads)[0]
    scores = (q @ keys.transpose(1, 2)).abs().amax(dim=(1, 2)) * head_dim**-0.5
    total = torch.zeros(q.shape[1], dtype=torch.float64, device=q.device)
    reach = 2 * values.norm(dim=-1).amax(dim=-1) * q.norm(dim=-1).amax(dim=-1) * head_dim**-0.5
    for head in range(heads):
        constant = float(v_norms[head] + reach[head] * k_norms[head])
        share = source_share_bound(float(scores[head]), source_len=source_len, others=others)
        total += (constant * share) ** 2
    return total.sqrt()


# --------------------------------------------------------------------------------------------------- Jacobians


def attention_jacobian_norms(
    q: Float[Tensor, "heads queries head_dim"],
    k: Float[Tensor, "kv_heads keys head_dim"],
    v: Float[Tensor, "kv_heads keys head_dim"],
    *,
    key_weight: Float[Tensor, "kv_width dim"],
    value_weight: Float[Tensor, "kv_width dim"],
    source_len: int,
    visible: Bool[Tensor, "queries keys"] | None = None,
) -> Float[Tensor, " queries"]:
    """Frobenius norm of d o_i / d s by autograd: what `sensitivity_bound` bounds, without a rotary embedding.

    Args:
        q: queries of one sequence, held fixed.
        k: all keys, the source's first.
        v: their values.
        key_weight: the matrix that makes keys of source states.
        value_weight: the matrix that makes values of source states.
        source_len: number of source keys.
        visible: which key each query may see; None = all.
    """
    later_k, later_v = k[:, source_len:], v[:, source_len:]

    def output(source_k: Tensor, source_v: Tensor) -> Tensor:
        keys, values = torch.cat((source_k, later_k), dim=1), torch.cat((source_v, later_v), dim=1)
        return softmax_attention_reference(q[None], keys[None], values[None], visible=visible)[0]

    of_k, of_v = torch.autograd.functional.jacobian(output, (k[:, :source_len], v[:, :source_len]), vectorize=True)
    per_head = [weight.unflatten(0, (k.shape[0], -1)) for weight in (key_weight, value_weight)]
    # axes of the Jacobians: head, query, channel of the output, then kv head, source token, channel
    rows = torch.einsum("hidgje,gec->hidjc", of_k, per_head[0]) + torch.einsum("hidgje,gec->hidjc", of_v, per_head[1])
    return rows.double().square().sum(dim=(0, 2, 3, 4)).sqrt()


def jacobian_norms(
    model: Seq2SeqModel,
    source: Int[Tensor, "1 source"],
    target: Int[Tensor, "1 target"],
    *,
    place: Place = "hidden",
    steps: Sequence[int] | None = None,
    probes: int | None = None,
    seed: int = 0,
    rows: int = 128,
) -> Float[Tensor, " steps"]:
    """Frobenius norm of d (what the model has at a step) / d (source embeddings), by autograd, for one sequence.

    One row of the batch per row of the Jacobian: a few large passes instead of many small ones.

    Args:
        model: in eval mode, or dropout would be measured.
        source: ids, without padding.
        target: ids, without padding.
        place: "hidden" (the last hidden state), "logits", or the number of a layer, whose output is meant.
        steps: the target tokens at which to measure; None = all.
        probes: estimate by this many random signs (E ||z^T J||^2 = ||J||^2) instead of all rows; None = exact.
        seed: of the signs.
        rows: rows of the Jacobian in one pass.

    Raises:
        ValueError: more than one sequence, a model in training mode, or a layer that it does not have.
    """
    if source.shape[0] != 1 or target.shape[0] != 1:
        raise ValueError(f"one sequence at a time, got {source.shape[0]} sources and {target.shape[0]} targets")
    if model.training:
        raise ValueError("the model is in training mode: call eval() first")
    chosen = list(range(target.shape[1])) if steps is None else list(steps)
    with torch.no_grad():
        width = _state_at(model, *_embedded(model, source, target), place).shape[-1]
    count = width if probes is None else probes
    generator = torch.Generator().manual_seed(seed)
    signs = torch.eye(width) if probes is None else torch.randint(0, 2, (count, width), generator=generator) * 2.0 - 1
    places = torch.tensor(chosen).repeat_interleave(count)
    weights = signs.repeat(len(chosen), 1)
    squares = [
        _squared_rows(model, source, target, place, places[start : start + rows], weights[start : start + rows])
        for start in range(0, len(places), rows)
    ]
    total = torch.cat(squares).view(len(chosen), count).sum(dim=1)
    return (total if probes is None else total / probes).sqrt()


def _squared_rows(
    model: Seq2SeqModel, source: Tensor, target: Tensor, place: Place, steps: Tensor, weights: Tensor
) -> Float[Tensor, " rows"]:
    """Squared norms of `weights[r] @ J[steps[r]]`."""
    rows = len(steps)
    with torch.no_grad():
        s, t = _embedded(model, source, target)
    s, t = s.expand(rows, -1, -1).clone().requires_grad_(), t.expand(rows, -1, -1)
    states = _state_at(model, s, t, place)[torch.arange(rows), steps.to(s.device)]
    (gradient,) = torch.autograd.grad((states * weights.to(states)).sum(), s)
    return gradient.double().square().sum(dim=(1, 2)).cpu()


def _embedded(model: Seq2SeqModel, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    layout = model.layout(source, target, None)
    return (
        model.embed(source, layout.source_positions, is_source=True),
        model.embed(target, layout.target_positions, is_source=False),
    )


def _state_at(model: Seq2SeqModel, source: Tensor, target: Tensor, place: Place) -> Tensor:
    ids = [torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device) for x in (source, target)]
    layers: list[Tensor] = []
    _, hidden = model.transform(source, target, model.layout(ids[0], ids[1], None), layers=layers)
    if isinstance(place, int):
        if not 0 <= place < len(layers):
            raise ValueError(f"place must be a layer from 0 to {len(layers) - 1}, hidden or logits, got {place}")
        return layers[place]
    if place not in ("hidden", "logits"):
        raise ValueError(f"place must be hidden, logits or the number of a layer, got {place!r}")
    return hidden if place == "hidden" else model.scores(hidden)


# --------------------------------------------------------------------------------------------------- attention mass


@dataclass(frozen=True)
class AttentionCall:
    """One meeting of queries and keys that read the source for target tokens.

    Args:
        name: the module's name in the model.
        of_source: whether all keys are the source's.
        q: queries of the target's tokens, `(batch, heads, target, head_dim)`.
        k: all keys, the source's first.
        v: their values.
        visible: which key each target token may see, `(1 or batch, 1, target, keys)`; None = all.
        weights: the attention map, `(batch, heads, target, keys)`.
    """

    name: str
    of_source: bool
    q: Tensor
    k: Tensor
    v: Tensor
    visible: Tensor | None
    weights: Tensor


@contextmanager
def recorded_attention(model: nn.Module, *, source_len: int, target_len: int) -> Iterator[list[AttentionCall]]:
    """Every attention from target tokens to the source, in the order of the layers, while the context lasts.

    Args:
        model: a model whose attention goes through `AttentionCore`.
        source_len: source tokens of the calls, padding included.
        target_len: target tokens of the calls.
    """
    calls: list[AttentionCall] = []

    def listen(name: str, core: AttentionCore) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...], options: dict[str, Any]) -> None:
            q, k, v = arguments
            joint = not core.of_source and k.shape[2] == source_len + target_len
            if not joint and not core.of_source:
                return
            visible = options.get("visible")
            if options.get("causal"):
                visible = visible_keys(q.shape[2], k.shape[2], causal=True, device=q.device)
            # one row stands for all queries where only padding is hidden
            visible = visible if visible is None or visible.shape[2] == 1 else visible[:, :, -target_len:]
            q = q[:, :, -target_len:]
            calls.append(AttentionCall(name, core.of_source, q, k, v, visible, softmax_weights(q, k, visible=visible)))

        return hook

    cores = [(name, module) for name, module in model.named_modules() if isinstance(module, AttentionCore)]
    hooks = [core.register_forward_pre_hook(listen(name, core), with_kwargs=True) for name, core in cores]
    try:
        yield calls
    finally:
        for handle in hooks:
            handle.remove()


@torch.no_grad()
def source_attention(
    model: Seq2SeqModel, source: Int[Tensor, "batch source"], target: Int[Tensor, "batch target"]
) -> dict[str, Float[Tensor, "batch heads target source"]]:
    """What each target token's attention gives to each source token, by module: rows sum to the source's mass.

    Self-attention over both streams is under `decoder.<layer>.attention.core`, cross or partial attention under
    `decoder.<layer>.reader.core`.

    Args:
        model: a model, in eval mode.
        source: ids, without padding.
        target: ids, without padding.
    """
    length = source.shape[1]
    with recorded_attention(model, source_len=length, target_len=target.shape[1]) as calls:
        model(source, target)
    return {call.name: call.weights[..., :length] for call in calls}


def source_mass(
    maps: dict[str, Float[Tensor, "batch heads target source"]], part: str
) -> Float[Tensor, "layers target"]:
    """Attention mass on the source per layer and step, the mean over rows and heads.

    Args:
        maps: from `source_attention`.
        part: "attention" (one softmax over both streams) or "reader" (cross or partial attention).

    Raises:
        ValueError: the model has no such part.
    """
    found = [weights.sum(dim=-1).mean(dim=(0, 1)) for name, weights in maps.items() if name.endswith(f"{part}.core")]
    if not found:
        raise ValueError(f"nothing named {part!r} reads the source, only {', '.join(maps) or 'nothing at all'}")
    return torch.stack(found)


# --------------------------------------------------------------------------------------------------- degeneration


@dataclass(frozen=True)
class Degeneration:
    """How a measure falls with the step.

    Args:
        spearman: rank correlation with the step, -1 where it falls at every step; NaN where it is constant.
        last_over_first: mean of the last quarter of the steps over that of the first.
    """

    spearman: float
    last_over_first: float


def degeneration(values: Float[Tensor, " steps"]) -> Degeneration:
    """How a measure of the source's influence falls with the step.

    Args:
        values: one per step.

    Raises:
        ValueError: fewer than 4 steps.
    """
    if values.ndim != 1 or len(values) < 4:
        raise ValueError(f"values must be one per step for at least 4 steps, got shape {tuple(values.shape)}")
    quarter = len(values) // 4
    return Degeneration(
        spearman_with_step(values), float(values[-quarter:].double().mean() / values[:quarter].double().mean())
    )


def spearman_with_step(values: Float[Tensor, " steps"]) -> float:
    """Spearman's rank correlation of values with their step; ties share their mean rank. NaN where all are equal."""
    wide = values.detach().double()
    below = (wide[:, None] > wide[None, :]).sum(dim=1)
    ties = (wide[:, None] == wide[None, :]).sum(dim=1)
    ranks = below.double() + (ties.double() - 1) / 2
    steps = torch.arange(len(wide), dtype=torch.float64, device=wide.device)
    ranks, steps = ranks - ranks.mean(), steps - steps.mean()
    spread = ranks.norm() * steps.norm()
    return float(ranks @ steps / spread) if spread > 0 else math.nan
