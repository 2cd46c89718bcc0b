"""The claims of HiP attention: searches in O(log n), exact where everything fits, faster than dense attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from regard.claims import Measured, claim, out_of_reach
from regard.claims._hip_networks import (
    BUDGET,
    PASSKEY,
    PASSKEY_LENGTH,
    PASSKEY_SIZES,
    PASSKEY_STEPS,
    WINDOW,
    hip_mixer,
    passkey_model,
    random_mixer,
    recovered_mass,
)
from regard.claims._hip_networks import SIZES as TRAINED
from regard.claims._long_text import LONG_TEXT, forward_loss, long_rows, long_text_model, with_mixers
from regard.claims._operators import random_tensors, worst_error
from regard.claims._recall import VALIDATION_STEP, recall_accuracy
from regard.claims._recycled_networks import PROMPT, streaming_mixer
from regard.claims._training import SEEDS, mean
from regard.layers.hip_state import empty_hip_state
from regard.measure import growth_exponent, one_thread, race
from regard.ops.hip import HiPSizes, hip_attention, hip_choice
from regard.ops.hip_search import scored_key_blocks
from regard.ops.softmax_attention import softmax_attention_reference
from regard.ops.visibility import visible_keys

PAPER = "HiP (arXiv 2406.09827)"
SIZES = HiPSizes(mask_k=512, block_q=64, block_k=2, window=256, sinks=16)
HEADS, WIDTH = 2, 64
LONG, DECODED, REFRESH = 32768, 131072, 8

# --------------------------------------------------------------------------------------------------- exact


def _scored(tokens: int) -> int:
    """Blocks of keys that the searches for all blocks of queries score."""
    ends = range(SIZES.block_q, tokens + 1, SIZES.block_q)
    return sum(
        scored_key_blocks(visible=end, mask_k=SIZES.mask_k, block_k=SIZES.block_k, window=SIZES.window) for end in ends
    )


@claim(
    "hip",
    name="search_cost",
    grade="exact",
    statement="The search takes O(n log n) time and the mask O(n) memory",
    where=f"{PAPER}, abstract and section 3",
    criterion="blocks of keys that are scored for all n / 64 blocks of queries, over n log2(n / k): ratio between n = "
    "131,072 and 1,048,576 at most 1.1; exponent of their number over n = 131,072 to 1,048,576 below 1.25 (dense: 2); "
    "numbers in the mask exactly n / 64 * k / 2 (k = 512, blocks of 2 keys, window 256)",
)
def search_cost() -> Measured:
    """Counted by the same function that plans the search."""
    lengths = (131072, 262144, 524288, 1048576)
    counts = [_scored(tokens) for tokens in lengths]
    shares = [
        count / (tokens * math.log2(tokens / SIZES.mask_k)) for count, tokens in zip(counts, lengths, strict=True)
    ]
    q, k = random_tensors((1, 1, 4096, WIDTH), (1, 1, 4096, WIDTH), seed=0)
    numbers = hip_choice(q, k, SIZES, first=0).starts.numel()
    exponent, drift = growth_exponent(lengths, counts), max(shares) / min(shares)
    return Measured(
        value=f"exponent {exponent:.3f}; {drift:.3f} x between the shares of n log n",
        held=exponent < 1.25 and drift <= 1.1 and numbers == 4096 // 64 * 256,
        detail=f"{', '.join(f'{count:,}' for count in counts)} blocks; {numbers:,} numbers in the mask of 4,096 tokens",
    )


@claim(
    "hip",
    name="exact_when_all_fits",
    grade="exact",
    statement="With a budget for all keys HiP is the attention that it replaces; no key is out of its reach",
    where=f"{PAPER}, section 3",
    criterion="budget >= searched keys: outputs equal dense causal attention to 1e-5 (n in {1, 63, 64, 65, 257}; the "
    "search runs, full attention is not taken instead); the ranges that a search starts from cover every block of keys "
    "once, for 257 to 5,000 blocks",
)
@torch.no_grad()
def exact_when_all_fits() -> Measured:
    """The block-sparse operator with a choice of everything, and ranges as the search cuts them."""
    worst = 0.0
    for tokens in (1, 63, 64, 65, 257):
        q, k, v = random_tensors(*[(1, HEADS, tokens, WIDTH)] * 3, seed=tokens)
        sizes = HiPSizes(mask_k=max(2, 2 * (tokens // 2)), block_q=8, block_k=2, window=2, sinks=0)
        visible = visible_keys(tokens, tokens, causal=True, device=q.device)
        expected = softmax_attention_reference(q, k, v, visible=visible)
        # positions given per row keep the operator from taking full attention's way
        first = torch.zeros(1, dtype=torch.int64)
        worst = max(worst, worst_error(hip_attention(q, k, v, sizes, first=first), expected))
    covered = all(_covers(count) for count in range(257, 5001))
    return Measured(
        value=f"largest relative error {worst:.1e}",
        held=worst <= 1e-5 and covered,
        detail=f"every block of keys {'is' if covered else 'is NOT'} in exactly one range",
    )


def _covers(count: int) -> bool:
    budget = SIZES.mask_k // SIZES.block_k
    starts = (torch.tensor(count).double() / budget * torch.arange(budget + 1)).long()
    sizes = starts[1:] - starts[:-1]
    return int(starts[0]) == 0 and int(starts[-1]) == count and bool((sizes >= 1).all())


# --------------------------------------------------------------------------------------------------- ratio


@claim(
    "hip",
    name="prefill_speed",
    grade="ratio",
    statement="Prefill is faster than dense attention at long contexts",
    where=f"{PAPER}, abstract and experiments",
    criterion="forward, float32, 2 heads of 64, k = 512, blocks of 64 queries, one thread, medians of one run: faster "
    "than fused causal attention at 16,384 tokens and at least 3 times as fast at 32,768",
)
@torch.no_grad()
def prefill_speed() -> Measured:
    """The search included."""
    ratios, shown = [], []
    for tokens in (LONG // 2, LONG):
        q, k, v = random_tensors(*[(1, HEADS, tokens, WIDTH)] * 3, seed=tokens)
        with one_thread():
            times = race(
                {
                    "hip": lambda q=q, k=k, v=v: hip_attention(q, k, v, SIZES),  # type: ignore[misc]
                    "dense": lambda q=q, k=k, v=v: scaled_dot_product_attention(q, k, v, is_causal=True),  # type: ignore[misc]
                },
                rounds=3,
            )
        ratios.append(times.ratio("dense", "hip"))
        shown.append(", ".join(f"{name} {value:.2f} s" for name, value in times.median_s.items()))
    return Measured(
        value=f"{ratios[0]:.2f} x at 16,384, {ratios[1]:.2f} x at 32,768",
        held=ratios[0] > 1 and ratios[1] >= 3,
        detail="; ".join(shown),
    )


@claim(
    "hip",
    name="decoding_speed",
    grade="ratio",
    statement="Decoding is faster than dense attention at long contexts",
    where=f"{PAPER}, abstract and experiments",
    criterion="one token behind a cache of 131,072 keys, float32, 2 heads of 64, k = 512, a search every 8 tokens (its "
    "time shared among them), one thread, medians of one run: at least 5 times as fast as a dense row",
)
@torch.no_grad()
def decoding_speed() -> Measured:
    """Eight steps, one of which searches, against eight rows."""
    q, k, v = random_tensors(*[(1, HEADS, DECODED, WIDTH)] * 3, seed=1)
    empty = empty_hip_state(
        1, SIZES, num_heads=HEADS, num_kv_heads=HEADS, head_dim=WIDTH, max_len=DECODED + 4096, like=q
    )
    _, state = empty.advance(q, k, v, SIZES, refresh=REFRESH)
    own = q[:, :, -1:]

    def sparse() -> Tensor:
        nonlocal state
        for _ in range(REFRESH):
            mixed, state = state.advance(own, k[:, :, :1], v[:, :, :1], SIZES, refresh=REFRESH)
        return mixed

    def dense() -> Tensor:
        for _ in range(REFRESH):
            mixed = scaled_dot_product_attention(own, k, v)
        return mixed

    with one_thread():
        times = race({"hip": sparse, "dense": dense}, rounds=11)
    ratio = times.ratio("dense", "hip")
    shown = ", ".join(f"{name} {value / REFRESH * 1e3:.2f} ms" for name, value in times.median_s.items())
    return Measured(value=f"{ratio:.1f} x as fast", held=ratio >= 5, detail=f"a token: {shown}")


# --------------------------------------------------------------------------------------------------- scaled


@claim(
    "hip",
    name="quality_without_training",
    grade="scaled",
    statement="HiP replaces attention in a trained model without training, at little loss of quality",
    where=f"{PAPER}, abstract and experiments",
    criterion=f"{LONG_TEXT}; {BUDGET} keys a query in blocks of 16 queries and 2 keys, {WINDOW} of them the window: "
    "perplexity of the second half of 24 held-out rows less than 3 % above the dense network's, and sinks with a "
    "window, and random blocks, of as many keys lose more",
)
def quality_without_training() -> Measured:
    """The same trained weights everywhere."""
    dense, rows = long_text_model(), long_rows(24)
    makers = {
        "HiP": hip_mixer(TRAINED),
        "sinks and window": streaming_mixer(BUDGET - 1),
        "random": random_mixer(TRAINED),
    }
    with one_thread():
        before = math.exp(forward_loss(dense, rows, prompt=PROMPT))
        after = {
            name: math.exp(forward_loss(with_mixers(dense, make), rows, prompt=PROMPT)) for name, make in makers.items()
        }
    losses = {name: 100 * (value / before - 1) for name, value in after.items()}
    return Measured(
        value=", ".join(f"{name} {loss:+.1f} %" for name, loss in losses.items()),
        held=losses["HiP"] < 3 and losses["HiP"] < min(losses["sinks and window"], losses["random"]),
        detail=f"dense perplexity {before:.3f}",
    )


@claim(
    "hip",
    name="passkey",
    grade="scaled",
    statement="No token is overlooked: what is asked is found wherever it stands",
    where=f"{PAPER}, abstract",
    criterion=f"a dense network of 2 layers, 64 wide, that finds a digit in {PASSKEY_LENGTH} tokens of noise "
    f"({PASSKEY_STEPS} steps of 32, 3 seeds): with HiP on 32 keys a query at least 95 % of its accuracy (200 rows), "
    "while a window with sinks of as many keys stays at most 0.3 (chance: 0.1, and keys inside the window)",
)
def passkey() -> Measured:
    """Without training after the replacement."""
    found: dict[str, list[float]] = {"dense": [], "HiP": [], "sinks and window": []}
    for seed in SEEDS:
        dense = passkey_model(seed)
        data = PASSKEY.examples(batch=200, length=PASSKEY_LENGTH, seed=seed, step=VALIDATION_STEP)
        with one_thread():
            found["dense"].append(recall_accuracy(dense, data))
            found["HiP"].append(recall_accuracy(with_mixers(dense, hip_mixer(PASSKEY_SIZES)), data))
            found["sinks and window"].append(recall_accuracy(with_mixers(dense, streaming_mixer(31)), data))
    means = {name: mean(values) for name, values in found.items()}
    return Measured(
        value=", ".join(f"{name} {value:.3f}" for name, value in means.items()),
        held=means["HiP"] >= 0.95 * means["dense"] and means["sinks and window"] <= 0.3 and means["dense"] > 0.5,
        detail="; ".join(f"{name} {', '.join(f'{value:.2f}' for value in values)}" for name, values in found.items()),
    )


@claim(
    "hip",
    name="recovered_attention",
    grade="scaled",
    statement="The search finds keys that hold most of the attention",
    where=f"{PAPER}, section 3",
    criterion=f"{LONG_TEXT}: share of its attention that lies on the {BUDGET} keys kept, mean over layers, heads and "
    "the second half of 4 held-out rows: HiP's at least twice that of random blocks, and at least that of sinks with a "
    "window",
)
def recovered_attention() -> Measured:
    """As many keys each."""
    with one_thread():
        shares = recovered_mass()
    return Measured(
        value=", ".join(f"{name} {share:.3f}" for name, share in shares.items()),
        held=shares["HiP"] >= max(2 * shares["random"], shares["sinks and window"]),
    )


# -------------------------------------------------------------------------------------------- out of reach

out_of_reach(
    "hip",
    name="large_models",
    statement="Llama-2, Qwen1.5 and LLaVA keep their perplexity and their scores on long-context tasks",
    criterion="perplexity and scores of these models with HiP beside those with dense attention",
    where=f"{PAPER}, experiments",
    reason="models of 7 billion parameters and accelerators; the small model's claims stand in",
)
out_of_reach(
    "hip",
    name="gpu_latency",
    statement="Prefill and decoding latencies on GPUs are several times lower at 32k to 128k tokens",
    criterion="latencies of prefill and decoding beside FlashAttention's on the paper's GPU",
    where=f"{PAPER}, experiments",
    reason="timed on a GPU; the CPU ratios stand in",
)
