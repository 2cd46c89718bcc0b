"""The claims of Recycled Attention: few keys per token, chosen where they matter, and fast decoding."""

from __future__ import annotations

import math

import torch

from regard.claims import Measured, claim, out_of_reach
from regard.claims._listed_recall import RECALL_TEXT, TASK, listed_accuracy, listed_recall_model
from regard.claims._long_decoding import decode_in_full, decode_recycled, decode_streaming, in_chunks, long_streams
from regard.claims._long_text import (
    LENGTH,
    LONG_TEXT,
    decoding_loss,
    forward_loss,
    long_rows,
    long_text_model,
    with_mixers,
)
from regard.claims._operators import random_tensors, worst_error
from regard.claims._recycled_networks import (
    LEARNED_K,
    LEARNED_STEPS,
    LEARNED_STRIDE,
    PROMPT,
    TEXT_K,
    TEXT_ROWS,
    TEXT_STRIDE,
    continued,
    dynamic_result,
    empty_state,
    h2o_mixer,
    recovered_mass,
    recycled_mixer,
    streaming_mixer,
    text_perplexities,
)
from regard.claims._training import text_corpus
from regard.measure import one_thread, race
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.ops.recycled import Recycling
from regard.ops.softmax_attention import softmax_attention_reference, softmax_weights
from regard.ops.streaming import Streaming
from regard.ops.visibility import visible_keys

PAPER = "Recycled Attention (arXiv 2411.05787)"

# --------------------------------------------------------------------------------------------------- exact


@claim(
    "recycled",
    name="full_attention_and_keys_read",
    grade="exact",
    statement="Full and recycled steps alternate; a recycled step reads a subset of the keys",
    where=f"{PAPER}, method",
    criterion="K >= T or S = 1: logits of decoding within a relative error of 1e-5 of full attention's; else keys read "
    "per step, counted over whole cycles = T / S + (K + S / 2) (1 - 1 / S), T the mean length at the full steps",
)
@torch.no_grad()
def full_attention_and_keys_read() -> Measured:
    """An untrained network of 2 layers with grouped queries; a prompt of 37 tokens and 60 single ones."""
    torch.manual_seed(0)
    options = {"num_kv_heads": 2}
    dense = Decoder(DecoderConfig(dim=64, num_layers=2, num_heads=4, mixer_options=options)).eval()
    tokens, worst = torch.randint(0, 256, (2, 97)), 0.0
    expected = dense(tokens)
    for top_k, stride in ((97, 8), (200, None), (5, 1)):
        model = with_mixers(dense, recycled_mixer(top_k, stride))
        scores, state = model.step(tokens[:, :37], model.init_state(2))
        found = [scores]
        for token in tokens[:, 37:].split(1, dim=1):
            scores, state = model.step(token, state)
            found.append(scores)
        worst = max(worst, worst_error(torch.cat(found, dim=1), expected))
    counted, predicted = keys_per_step(top_k=16, stride=8, prompt=100, cycles=10)
    return Measured(
        value=f"largest relative error {worst:.1e}; {counted:.3f} keys per step, {predicted:.3f} predicted",
        held=worst <= 1e-5 and math.isclose(counted, predicted, rel_tol=1e-12),
        detail="K = 97 and 200 at T = 97, and S = 1; keys: K = 16, S = 8, 80 tokens after a prompt of 100",
    )


def keys_per_step(*, top_k: int, stride: int, prompt: int, cycles: int) -> tuple[float, float]:
    """Keys read per step, as the states tell and as the formula says."""
    recycling = Recycling(top_k=top_k, stride=stride)
    steps = stride * cycles
    q, k, v = random_tensors(*[(1, 2, prompt + steps, 8)] * 3, seed=0)
    state = empty_state(recycling, q, k)
    read: list[int] = []
    full: list[int] = []
    for pieces in in_chunks((q, k, v), [prompt] + [1] * steps):
        _, state = state.advance(*pieces, recycling)
        if pieces[0].shape[2] == 1:
            read.append(int(state.keys_read(recycling)))
            full += [int(state.position)] * bool(state.was_full)
    length = sum(full) / len(full)
    predicted = length / stride + (top_k + stride / 2) * (1 - 1 / stride)
    return sum(read) / len(read), predicted


@claim(
    "recycled",
    name="fixed_selection",
    grade="exact",
    statement="A recycled step attends to the keys that an earlier full step found important",
    where=f"{PAPER}, method",
    criterion="without full steps (S = infinity) decoding = full attention under a mask of the K keys that the "
    "prompt's last token weighs most and all later ones, to a relative error of 1e-5 in float32",
)
@torch.no_grad()
def fixed_selection() -> Measured:
    """4 query heads on 2 key heads, prompt of 61 tokens, 40 single ones, K = 13; the mask from the whole map."""
    q, k, v = random_tensors((2, 4, 101, 16), (2, 2, 101, 16), (2, 2, 101, 16), seed=0)
    recycling = Recycling(top_k=13, stride=None)
    state, found = empty_state(recycling, q, k), []
    for pieces in in_chunks((q, k, v), [61] + [1] * 40):
        mixed, state = state.advance(*pieces, recycling)
        found.append(mixed)
    causal = visible_keys(101, 101, causal=True, device=q.device)
    assert causal is not None
    row = softmax_weights(q, k, visible=causal)[:, :, 60].unflatten(1, (2, 2)).amax(dim=2)
    best = torch.zeros(2, 2, 101, dtype=torch.bool).scatter(2, row.topk(13, dim=-1).indices, True)
    seen = (best | (torch.arange(101) > 60)).repeat_interleave(2, dim=1)[:, :, None] & causal
    visible = torch.where(torch.arange(101)[:, None] > 60, seen, causal)
    error = worst_error(torch.cat(found, dim=2), softmax_attention_reference(q, k, v, visible=visible))
    return Measured(value=f"largest relative error {error:.1e}", held=error <= 1e-5)


# --------------------------------------------------------------------------------------------------- ratio


@claim(
    "recycled",
    name="decode_time",
    grade="ratio",
    statement="A speed-up over full attention that is comparable to that of local attention",
    where=f"{PAPER}, abstract",
    criterion="time per token after 32,768 tokens, 8 key heads, d = 64, K = 1,024, S = 16, float32: >= 3x faster than "
    "decoding with fused full attention, and <= 1.2x the time of StreamingLLM with the same K",
)
@torch.no_grad()
def decode_time() -> Measured:
    """One whole cycle in each turn; StreamingLLM turns its keys at every step, as it is defined."""
    streams = long_streams(32768, 16, torch.float32)
    contestants = {
        "full": decode_in_full(streams, 16),
        "recycled": decode_recycled(streams, 16, Recycling(top_k=1024, stride=16)),
        "streaming": decode_streaming(streams, 16, Streaming(cache_size=1024, rope_base=10000.0)),
        "no positions": decode_streaming(streams, 16, Streaming(cache_size=1024)),
    }
    with one_thread():
        times = race(contestants, rounds=5)
    speed, against = times.ratio("full", "recycled"), times.ratio("recycled", "streaming")
    shown = ", ".join(f"{name} {seconds / 16 * 1e3:.2f}" for name, seconds in times.median_s.items())
    return Measured(
        value=f"{speed:.1f}x faster than full attention; {against:.2f}x the time of StreamingLLM",
        held=speed >= 3 and against <= 1.2,
        detail=f"{shown} ms per token, 1 thread; {times.ratio('recycled', 'no positions'):.2f}x the time of "
        "StreamingLLM without positions, which has no keys to turn",
    )


# --------------------------------------------------------------------------------------------------- scaled


@claim(
    "recycled",
    name="attention_mass",
    grade="scaled",
    statement="The recycled keys are relevant to the current step, unlike the latest ones (StreamingLLM) or those with "
    "the highest accumulated weight (H2O)",
    where=f"{PAPER}, abstract",
    criterion="share of the dense network's attention that falls on the recycled keys (K = T / 16 = 64, S = 8, full "
    "steps left out) >= StreamingLLM's + 10 points and >= H2O's, on 8 held-out texts of 1,024 bytes after a prompt of "
    f"512; {LONG_TEXT}",
)
def attention_mass() -> Measured:
    """From the same queries and keys for all."""
    shares = recovered_mass(LENGTH // 16, 8)
    margin = 100 * (shares["recycled"] - shares["streaming"])
    return Measured(
        value=", ".join(f"{name} {share:.1%}" for name, share in shares.items()),
        held=margin >= 10 and shares["recycled"] >= shares["h2o"],
        detail=f"{margin:+.1f} points against StreamingLLM; {text_corpus().source}",
    )


@claim(
    "recycled",
    name="retrieval",
    grade="scaled",
    statement="Twice the performance of local attention on retrieval from long contexts",
    figure="2x on RULER",
    where=f"{PAPER}, abstract",
    criterion="greedy accuracy of several values said in a row, K = 32, S = 4: >= 2x StreamingLLM's and H2O's with the "
    f"same K, and at most 10 points below full attention's; {RECALL_TEXT}",
)
def retrieval() -> Measured:
    """The dense network with other attention in both layers, without further training."""
    dense = listed_recall_model()
    with one_thread():
        reached = {
            "full": listed_accuracy(dense),
            "recycled": listed_accuracy(with_mixers(dense, recycled_mixer(32, 4))),
            "streaming": listed_accuracy(with_mixers(dense, streaming_mixer(32))),
            "h2o": listed_accuracy(with_mixers(dense, h2o_mixer(32))),
        }
    best_other = max(reached["streaming"], reached["h2o"])
    return Measured(
        value=", ".join(f"{name} {accuracy:.1%}" for name, accuracy in reached.items()),
        held=reached["recycled"] >= 2 * best_other and reached["full"] - reached["recycled"] <= 0.1,
        detail=f"chance {1 / TASK.keys:.1%}",
    )


@claim(
    "recycled",
    name="language_model",
    grade="scaled",
    statement="Better language models of long contexts than local attention; deciding by the similarity of queries "
    "when to attend in full improves them",
    where=f"{PAPER}, abstract and the dynamic schedule",
    criterion=f"perplexity at T = 1,024 after a prompt of 512, K = {TEXT_K}, S = {TEXT_STRIDE}, {TEXT_ROWS} held-out "
    "texts: recycled < StreamingLLM, and the dynamic schedule with at most as many full steps <= the fixed one; "
    f"{LONG_TEXT}",
)
def language_model() -> Measured:
    """Byte by byte, each of them given whatever was predicted."""
    reached, (threshold, dynamic, share) = text_perplexities(), dynamic_result()
    shown = ", ".join(f"{name} {value:.4f}" for name, value in reached.items())
    return Measured(
        value=f"{shown}, dynamic {dynamic:.4f} per byte",
        held=reached["recycled"] < reached["streaming"] and dynamic <= reached["recycled"],
        detail=f"threshold {threshold:.3f}: {share:.2%} full steps against {1 / TEXT_STRIDE:.2%}; "
        f"{text_corpus().source}",
    )


@claim(
    "recycled",
    name="continued_pretraining",
    grade="scaled",
    statement="Continued pre-training with Recycled Attention improves the trade-off between speed and quality",
    where=f"{PAPER}, continued pre-training",
    criterion=f"K = {LEARNED_K}, S = {LEARNED_STRIDE}: perplexity with recycled attention minus that with full "
    f"attention is smaller after {LEARNED_STEPS} more steps of each with its own attention than before (learning rate "
    f"3e-4, the same texts; 16 held-out texts, bytes after a prompt of 512); {LONG_TEXT}",
)
def continued_pretraining() -> Measured:
    """Full attention gets as many further steps; recycled attention is decoded, not simulated."""
    rows = long_rows(TEXT_ROWS)
    make = recycled_mixer(LEARNED_K, LEARNED_STRIDE)
    pairs = {
        "before": (long_text_model(), with_mixers(long_text_model(), make)),
        "after": (continued("full"), continued("recycled")),
    }
    with one_thread():
        reached = {
            name: (
                math.exp(forward_loss(full, rows, prompt=PROMPT)),
                math.exp(decoding_loss(ours, rows, prompt=PROMPT)),
            )
            for name, (full, ours) in pairs.items()
        }
    gaps = {name: ours - full for name, (full, ours) in reached.items()}
    shown = "; ".join(f"{name}: full {full:.4f}, recycled {ours:.4f}" for name, (full, ours) in reached.items())
    return Measured(
        value=f"gap {gaps['before']:.4f} before, {gaps['after']:.4f} after (perplexity per byte)",
        held=gaps["after"] < gaps["before"],
        detail=f"{shown}; {text_corpus().source}",
    )


# --------------------------------------------------------------------------------------------------- out of reach


out_of_reach(
    "recycled",
    name="large_language_models",
    statement="On RULER with contexts of 32k tokens, Llama-3.1-8B and Qwen2-7B reach twice the performance of local "
    "attention at a comparable speed-up",
    figure="2x",
    where=f"{PAPER}, abstract",
    criterion="RULER's accuracy and time per token of Llama-3.1-8B at 32k tokens",
    reason="it takes the weights of 8 billion parameters and a GPU; recall from 512 tokens by a small network and the "
    "time of decoding after 32,768 tokens stand in",
)
