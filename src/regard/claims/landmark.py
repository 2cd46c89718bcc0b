"""The claims of landmark attention: softmax in groups, retrieval through attention itself, any length of context."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regard.claims import Measured, claim, out_of_reach
from regard.claims._landmark_networks import (
    BLOCK,
    BUDGET,
    CHANCE,
    MULTIPLES,
    PASSKEY_TEXT,
    TEXT_RECIPE,
    TEXT_WINDOW,
    TOP_K,
    passkey_accuracy,
    perplexity,
)
from regard.claims._operators import HEADS, WIDTH, random_tensors, worst_error, worst_error_with_gradients
from regard.claims._training import SEEDS, mean, text_corpus
from regard.layers.kv_cache import empty_cache
from regard.layers.landmark_memory import LandmarkMemory, empty_landmark_memory
from regard.measure import contraction_macs, one_thread, race
from regard.mixers.sequence.landmark import LandmarkAttention
from regard.ops.landmark_attention import grouped_softmax, grouped_softmax_reference
from regard.ops.landmark_retrieval import Retrieval
from regard.ops.landmark_sections import is_landmark
from regard.ops.rotary import rotate
from regard.ops.softmax_attention import softmax_attention
from regard.ops.visibility import visible_keys

PAPER = "Landmark Attention (arXiv 2305.16300)"
DECODED, BLOCK_OF_PAPER, RETRIEVED = 32768, 50, 2

# --------------------------------------------------------------------------------------------------- exact


@claim(
    "landmark",
    name="grouped_softmax",
    grade="exact",
    statement="The grouped softmax gates a block's tokens by its landmark; rows are distributions over ordinary tokens",
    where=f"{PAPER}, section 3.1",
    criterion="float64, 67 tokens, blocks of 1, 4 and 15: rows sum to 1 and landmarks weigh 0 (to 1e-12); one softmax "
    "with a bias = the groups one by one, values and gradients (1e-9 relative); without landmarks = softmax (1e-12)",
)
def grouped() -> Measured:
    """Random scores."""
    worst, sums = 0.0, 0.0
    visible = visible_keys(67, 67, causal=True, device=torch.device("cpu"))
    assert visible is not None
    (drawn,) = random_tensors((2, 3, 67, 67), seed=1)
    scores = (3 * drawn).double().requires_grad_()
    for block_size in (1, 4, 15):
        marks = is_landmark(torch.arange(67), block_size).expand(2, -1)

        def one(marks: Tensor = marks) -> Tensor:
            return grouped_softmax(scores, marks, visible)

        def groups(marks: Tensor = marks) -> Tensor:
            return grouped_softmax_reference(scores, marks, visible)

        worst = max(worst, worst_error_with_gradients(one, groups, [scores], seed=block_size))
        weights = one().detach()
        sums = max(sums, float((weights.sum(dim=-1) - 1).abs().max()), float(weights[..., marks[0]].abs().max()))
    plain = scores.detach().masked_fill(~visible, -torch.inf).softmax(dim=-1)
    none = grouped_softmax(scores.detach(), torch.zeros(2, 67, dtype=torch.bool), visible)
    apart = float((none - plain).abs().max())
    return Measured(
        value=f"{worst:.1e} between the forms; rows {sums:.1e} from 1",
        held=worst <= 1e-9 and sums <= 1e-12 and apart <= 1e-12,
        detail=f"without landmarks {apart:.1e} from softmax",
    )


@claim(
    "landmark",
    name="all_blocks_are_the_full_pass",
    grade="exact",
    statement="Retrieval happens through attention itself: what is retrieved is attended to as in training",
    where=f"{PAPER}, section 3.2",
    criterion="positions off, 250 tokens, blocks of 15, top_k = number of blocks: reading in chunks of 1, 64 and 100 "
    "equals the full pass to 1e-5 (relative, float32); with rotary positions, which are then the tokens' own, too",
)
@torch.no_grad()
def all_blocks_are_the_full_pass() -> Measured:
    """An untrained layer on random input."""
    worst = {"off": 0.0, "rotary": 0.0}
    (x,) = random_tensors((2, 250, 64), seed=2)
    for name, rope_base in (("off", None), ("rotary", 10000.0)):
        torch.manual_seed(0)
        mixer = LandmarkAttention(64, num_heads=4, block_size=15, top_k=16, rope_base=rope_base).eval()
        whole = mixer(x)
        for chunk in (1, 64, 100):
            state, pieces = mixer.init_state(2), []
            for piece in x.split(chunk, dim=1):
                y, state = mixer.step(piece, state)
                pieces.append(y)
            worst[name] = max(worst[name], worst_error(torch.cat(pieces, dim=1), whole))
    return Measured(
        value=f"{worst['off']:.1e}; with rotary positions {worst['rotary']:.1e}", held=max(worst.values()) <= 1e-5
    )


def memory_of(tokens: int, dtype: torch.dtype = torch.float32, *, room: int = 0) -> LandmarkMemory:
    """The memory of one row after random tokens, 8 heads of 64, blocks of 50."""
    empty = empty_landmark_memory(
        1,
        num_kv_heads=HEADS,
        head_dim=WIDTH,
        value_dim=WIDTH,
        block_size=BLOCK_OF_PAPER,
        max_blocks=None,
        max_len=tokens + room,
        offload="none",
        like=torch.zeros(1, dtype=dtype),
    )
    k, v = (x.to(dtype) for x in random_tensors(*[(1, HEADS, tokens, WIDTH)] * 2, seed=tokens))
    return empty.extend(k, v)


@claim(
    "landmark",
    name="attended_tokens",
    grade="exact",
    statement="A token attends to a fixed number of tokens whatever the context's length, and the search looks at "
    "landmarks alone",
    where=f"{PAPER}, section 3.2",
    criterion="contraction MACs of one decoded token behind 1,030, 4,090 and 16,330 tokens (8 heads of 64, blocks of "
    "50, k = 2): exactly 64 for every head and landmark, n / 51 of them, and 128 for every head and attended key, "
    "51 k + the unfinished block, equally many at all lengths",
)
@torch.no_grad()
def attended_tokens() -> Measured:
    """All lengths leave an unfinished block of 10, to which the token itself comes."""
    (token,) = random_tensors((1, HEADS, 1, WIDTH), seed=3)
    sizes = Retrieval(block_size=BLOCK_OF_PAPER, top_k=RETRIEVED, rope_base=10000.0)
    attended, searched = [], []
    span = BLOCK_OF_PAPER + 1
    for blocks in (20, 80, 320):
        memory = memory_of(blocks * span + 10)
        macs = contraction_macs(lambda memory=memory: memory.attend(token, token, token, sizes))  # type: ignore[misc]
        searched.append(blocks)
        attended.append((macs / HEADS - WIDTH * blocks) / (2 * WIDTH))
    return Measured(
        value=f"{', '.join(f'{count:g}' for count in attended)} keys attended to",
        held=set(attended) == {span * RETRIEVED + 11},
        detail=f"{', '.join(f'{count:,}' for count in searched)} landmarks scored, 1 of {span} keys",
    )


# --------------------------------------------------------------------------------------------------- ratio


def landmark_decoder(dtype: torch.dtype) -> Callable[[], Tensor]:
    """One token after the other behind a long memory."""
    tokens = [x.to(dtype) for x in random_tensors(*[(1, HEADS, 1, WIDTH)] * 3, seed=4)]
    sizes = Retrieval(block_size=BLOCK_OF_PAPER, top_k=RETRIEVED, rope_base=10000.0)
    memory = memory_of(DECODED, dtype, room=4096)

    def step() -> Tensor:
        nonlocal memory
        y, memory = memory.attend(tokens[0], tokens[1], tokens[2], sizes)
        return y

    return step


def cache_decoder(dtype: torch.dtype) -> Callable[[], Tensor]:
    """The same with full attention's preallocated cache."""
    q, k, v = (x.to(dtype) for x in random_tensors(*[(1, HEADS, 1, WIDTH)] * 3, seed=4))
    like = torch.zeros(1, dtype=dtype)
    room = DECODED + 4096
    empty = empty_cache(1, num_kv_heads=HEADS, head_dim=WIDTH, value_dim=WIDTH, max_len=room, like=like)
    keys, values = (x.to(dtype) for x in random_tensors(*[(1, HEADS, DECODED, WIDTH)] * 2, seed=5))
    cache = empty.append(keys, values, None)

    def step() -> Tensor:
        nonlocal cache
        place = cache.position[:, None]
        cache = cache.append(rotate(k, place, base=10000.0), v, None)
        keys, values = cache.read()
        return softmax_attention(rotate(q, place, base=10000.0), keys, values)

    return step


@claim(
    "landmark",
    name="decoding_speed",
    grade="ratio",
    statement="Attending to retrieved blocks alone makes decoding behind long contexts cheap",
    where=f"{PAPER}, section 3.2 and conclusion",
    criterion="time per decoded token behind 32,768 tokens (8 heads of 64, blocks of 50, k = 2, search, rotary "
    "positions and storing included) at least 5 times shorter than with full attention's preallocated cache; "
    "float32, one thread",
)
@torch.no_grad()
def decoding_speed() -> Measured:
    """Ratio of medians of 40 rounds, without projections on both sides."""
    dtype = torch.float32
    with one_thread():
        times = race({"landmark": landmark_decoder(dtype), "cache": cache_decoder(dtype)}, rounds=40, warmup=3)
    ratio = times.ratio("cache", "landmark")
    shown = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in times.median_s.items())
    return Measured(value=f"{ratio:.1f}x", held=ratio >= 5, detail=shown)


# --------------------------------------------------------------------------------------------------- scaled


@claim(
    "landmark",
    name="passkey_beyond_training",
    grade="scaled",
    statement="Trained on short contexts, the model retrieves what is needed from contexts of any length",
    where=f"{PAPER}, abstract and section 4.2",
    criterion=f"{PASSKEY_TEXT}: landmark attention (k = 2) answers >= 90 % at 4, 8 and 16 times the training length; a "
    f"softmax network of the same size cut to the last 128 tokens at most twice the chance of 1 in 10, and reading all "
    f"of 16 times the length at most half of what it answers at the training length",
)
def passkey_beyond_training() -> Measured:
    """A window of 64 tokens, so that positions stay within those of training."""
    found = {multiple: passkey_accuracy("landmark", multiple) for multiple in MULTIPLES}
    plain = {multiple: passkey_accuracy("softmax", multiple) for multiple in (1, *MULTIPLES)}
    cut = {multiple: passkey_accuracy("softmax", multiple, truncated=True) for multiple in MULTIPLES}
    farthest = max(MULTIPLES)
    shown = ", ".join(f"{multiple}x {share:.1%}" for multiple, share in found.items())
    return Measured(
        value=f"{shown}; softmax cut {max(cut.values()):.1%}, whole {plain[farthest]:.1%}",
        held=min(found.values()) >= 0.9 and max(cut.values()) <= 2 * CHANCE and plain[farthest] <= plain[1] / 2,
        detail=f"softmax at the training length {plain[1]:.1%}, "
        + ", ".join(f"{multiple}x {plain[multiple]:.1%}" for multiple in MULTIPLES)
        + f"; landmark at the training length {passkey_accuracy('landmark', 1):.1%}",
    )


@claim(
    "landmark",
    name="perplexity_at_equal_budget",
    grade="scaled",
    statement="Retrieving a few blocks improves a language model whose window is otherwise local",
    where=f"{PAPER}, section 4.1",
    criterion=f"{TEXT_RECIPE}: mean perplexity with windows of {TEXT_WINDOW} bytes and {TOP_K} retrieved blocks of "
    f"{BLOCK} and a landmark < that of a softmax network of the same size in windows of {BUDGET} bytes",
)
def perplexity_at_equal_budget() -> Measured:
    """Both predict the same bytes."""
    ours = [perplexity("landmark", seed) for seed in SEEDS]
    theirs = [perplexity("softmax", seed)["window"] for seed in SEEDS]
    found = mean([each["retrieval"] for each in ours])
    seeds = ", ".join(f"{a['retrieval']:.3f}/{b:.3f}" for a, b in zip(ours, theirs, strict=True))
    return Measured(
        value=f"{found:.3f} against {mean(theirs):.3f} per byte",
        held=found < mean(theirs),
        detail=f"{text_corpus().source}; seeds {seeds}; landmark network without retrieval "
        f"{mean([each['no retrieval'] for each in ours]):.3f}",
    )


# --------------------------------------------------------------------------------------------------- out of reach


out_of_reach(
    "landmark",
    name="language_modelling",
    statement="Comparable with Transformer-XL while far fewer tokens are attended to per step",
    where=f"{PAPER}, abstract and section 4.1",
    criterion="perplexity on PG-19 and arXiv mathematics of the network with 203 million parameters",
    reason="240,000 steps of 128 sequences of 512 tokens take GPUs for days; a byte-level network at an equal "
    "budget of attended tokens stands in, and the network's size is counted in a test",
)
out_of_reach(
    "landmark",
    name="llama_32k",
    statement="LLaMA 7B, fine-tuned with landmarks, works on contexts of more than 32,000 tokens",
    figure="over 32k tokens",
    where=f"{PAPER}, abstract and section 4.2",
    criterion="pass-key retrieval of a fine-tuned LLaMA 7B at 32,000 tokens",
    reason="it takes the weights of LLaMA and GPUs for 15,000 steps; the same task at up to 16 times the training "
    "length of a small network stands in",
)
