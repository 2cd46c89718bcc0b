"""Parity with an independent evaluation of Recycled Attention and its baselines: no code of the authors is public."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.layers.h2o_state import empty_h2o_state
from regard.layers.recycled_state import empty_recycled_state
from regard.layers.streaming_state import empty_streaming_state
from regard.ops.recycled import Recycling, in_order, query_similarity, recycled_attention, simulated_choice
from regard.ops.streaming import Streaming
from regard.packing import pack_rows, take_tokens
from regard.parity.adapters import Case, Outcome, adapter

Streams = tuple[Tensor, Tensor, Tensor]


@adapter("independent:recycled_fixed")
def recycled_fixed(case: Case) -> Outcome:
    """Full steps at fixed distances."""
    config = case.config
    recycling = Recycling(top_k=config["top_k"], stride=config["stride"], reduce=config["reduce"])
    return Outcome(outputs=_decode(case, recycling))


@adapter("independent:recycled_dynamic")
def recycled_dynamic(case: Case) -> Outcome:
    """Full steps where the queries have changed."""
    config = case.config
    recycling = Recycling(
        top_k=config["top_k"],
        reduce=config["reduce"],
        threshold=config["threshold"],
        check_stride=config["check_stride"],
    )
    return Outcome(outputs=_decode(case, recycling))


@adapter("independent:recycled_train")
def recycled_train(case: Case) -> Outcome:
    """The simulation in one pass."""
    config = case.config
    recycling = Recycling(top_k=config["top_k"], stride=config["stride"], reduce=config["reduce"])
    q, k, v = _streams(case)
    return Outcome(
        outputs={
            "out": recycled_attention(q, k, v, recycling),
            "selected": in_order(simulated_choice(q, k, recycling)),
        },
        leaves={"in.q": q, "in.k": k, "in.v": v},
    )


@adapter("independent:streamingllm_decode")
def streaming_decode(case: Case) -> Outcome:
    """The first and the latest tokens, told by their rank."""
    config = case.config
    streaming = Streaming(cache_size=config["cache_size"], sinks=config["num_sinks"], rope_base=config["rope_base"])
    prompt, *steps = _pieces(case)
    batch, heads, _, width = prompt[1].shape
    state = empty_streaming_state(
        batch, streaming, num_kv_heads=heads, head_dim=width, value_dim=prompt[2].shape[3], like=prompt[1]
    )
    with torch.no_grad():
        _, state = state.advance(*prompt, streaming)
        out, kept, read = [], [state.carried(streaming)], []
        for piece in steps:
            mixed, state = state.advance(*piece, streaming)
            out.append(mixed)
            kept.append(state.carried(streaming))
            read.append(state.keys_read(streaming))
    outputs = {"out": torch.cat(out, dim=2), "kept": torch.stack(kept, dim=1), "keys_read": torch.stack(read, dim=1)}
    return Outcome(outputs=outputs)


@adapter("independent:h2o_decode")
def h2o_decode(case: Case) -> Outcome:
    """The latest tokens and the heavy hitters."""
    prompt, *steps = _pieces(case)
    batch, heads, _, width = prompt[1].shape
    state = empty_h2o_state(
        batch,
        cache_size=case.config["cache_size"],
        num_kv_heads=heads,
        head_dim=width,
        value_dim=prompt[2].shape[3],
        like=prompt[1],
    )
    with torch.no_grad():
        _, state = state.advance(*prompt)
        out, kept, read = [], [state.carried()], []
        for piece in steps:
            mixed, state = state.advance(*piece)
            out.append(mixed)
            kept.append(state.carried())
            read.append(state.keys_read())
    outputs = {"out": torch.cat(out, dim=2), "kept": torch.stack(kept, dim=2), "keys_read": torch.stack(read, dim=1)}
    return Outcome(outputs=outputs)


def _decode(case: Case, recycling: Recycling) -> dict[str, Tensor]:
    """A prompt without its padding, then single tokens; positions are handed back with the padding."""
    mask = case.inputs["mask"]
    order, packed = pack_rows(mask)
    prompt, *steps = _pieces(case)
    prompt_q, prompt_k, prompt_v = (take_tokens(x, order, dim=2) for x in prompt)
    state = empty_recycled_state(
        mask.shape[0],
        recycling,
        num_heads=prompt_q.shape[1],
        num_kv_heads=prompt_k.shape[1],
        head_dim=prompt_k.shape[3],
        value_dim=prompt_v.shape[3],
        max_len=None,
        like=prompt_k,
    )
    outputs: dict[str, list[Tensor]] = {"out": [], "selected": [], "full_step": [], "keys_read": []}
    padding = (~mask).sum(dim=1)[:, None, None]
    with torch.no_grad():
        _, state = state.advance(prompt_q, prompt_k, prompt_v, recycling, mask=packed)
        outputs["selected"].append(in_order(state.chosen) + padding)
        for piece in steps:
            if recycling.threshold is not None:
                alike = query_similarity(piece[0][:, :, 0], state.queries)
                outputs.setdefault("similarity", []).append(alike)
            mixed, state = state.advance(*piece, recycling)
            outputs["out"].append(mixed)
            outputs["selected"].append(in_order(state.chosen) + padding)
            outputs["full_step"].append(state.was_full)
            outputs["keys_read"].append(state.keys_read(recycling))
    joined = {name: torch.stack(parts, dim=1) for name, parts in outputs.items() if name not in ("out", "selected")}
    return joined | {"out": torch.cat(outputs["out"], dim=2), "selected": torch.stack(outputs["selected"], dim=2)}


def _streams(case: Case) -> Streams:
    return case.inputs["q"], case.inputs["k"], case.inputs["v"]


def _pieces(case: Case) -> Sequence[Streams]:
    """The prompt, then one token after the other."""
    chunks = [case.config["prompt_len"]] + [1] * case.config["steps"]
    q, k, v = (x.split(chunks, dim=2) for x in _streams(case))
    return list(zip(q, k, v, strict=True))
