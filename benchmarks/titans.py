"""Titans' memory in chunks against itself token by token, at another length, and while decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from harness import Outcome, at_least, at_most
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.measure import growth_exponent, peak_bytes, race
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.mixers.sequence.titans import TitansLMM
from regard.mixers.sequence.titans_mac import TitansMAC
from regard.mixers.sequence.titans_mag import TitansMAG
from regard.mixers.sequence.titans_mal import TitansMAL

DIM, HEADS = 128, 4
MIXERS = {"lmm": TitansLMM, "mac": TitansMAC, "mag": TitansMAG, "mal": TitansMAL}


def training(mixer: nn.Module, tokens: int) -> Callable[[], object]:
    """Forward and backward, gradients of the input and of all parameters."""
    x = torch.randn(1, tokens, DIM, generator=torch.Generator().manual_seed(tokens)).requires_grad_()
    leaves = [x, *mixer.parameters()]
    return lambda: torch.autograd.grad(mixer(x).sum(), leaves, allow_unused=True)


def chunked_training() -> Outcome:
    """A chunk of one token is the recurrence, one token after the other."""
    chunks, single = TitansLMM(DIM, num_heads=HEADS), TitansLMM(DIM, num_heads=HEADS, chunk_size=1)
    times = race({"chunks": training(chunks, 1024), "single": training(single, 1024)}, rounds=3)
    what = "token by token / chunks of 64, forward and backward, float32, 1,024 tokens, 4 heads of 32"
    detail = f"{times.median_s['single']:.2f} s / {times.median_s['chunks']:.3f} s"
    return at_least("titans chunked training", what, times.ratio("single", "chunks"), 5, detail=detail)


def per_token(name: str) -> Outcome:
    mixer = MIXERS[name](DIM, num_heads=HEADS)
    times = race({"long": training(mixer, 8192), "brief": training(mixer, 1024)}, rounds=5)
    what = f"time per token at 8,192 / at 1,024, forward and backward, {name}"
    return at_most(f"titans per token {name}", what, times.ratio("long", "brief") / 8, 1.3)


def decoding_at(mixer: SequenceMixer, position: int) -> Callable[[], object]:
    """Sixteen tokens, one by one, after `position` others."""
    x = torch.randn(1, 16, DIM)
    _, state = mixer.step(torch.randn(1, position, DIM), mixer.init_state(1, max_len=position + 16))

    def decode() -> Tensor:
        current = state.clone()
        for token in x.split(1, dim=1):
            y, current = mixer.step(token, current)
        return y

    return decode


def decoding(name: str) -> Outcome:
    mixer = MIXERS[name](DIM, num_heads=HEADS).eval()
    with torch.no_grad():
        times = race({"late": decoding_at(mixer, 8192), "early": decoding_at(mixer, 128)}, rounds=9)
    what = f"decoding at position 8,192 / at 128, {name}"
    return at_most(f"titans decoding {name}", what, times.ratio("late", "early"), 1.2)


def against_attention() -> Outcome:
    """What the paper's linear time is worth beside causal attention."""
    memory, attention = TitansLMM(DIM, num_heads=HEADS), SoftmaxAttention(DIM, num_heads=HEADS, causal=True)
    lengths, ratios = (2048, 8192), []
    for tokens in lengths:
        times = race({"attention": training(attention, tokens), "memory": training(memory, tokens)}, rounds=3)
        ratios.append(times.ratio("attention", "memory"))
    what = "causal SDPA / lmm, forward and backward: what the ratio at 8,192 is to that at 2,048"
    detail = ", ".join(f"{tokens}: {ratio:.2f}x" for tokens, ratio in zip(lengths, ratios, strict=True))
    return at_least("titans growth against attention", what, ratios[1] / ratios[0], 2, detail=detail)


def memory() -> Outcome:
    mixer, lengths = TitansLMM(DIM, num_heads=HEADS, recompute=True), (1024, 2048, 4096, 8192)
    peaks = [peak_bytes(training(mixer, tokens), warmup=1) for tokens in lengths]
    shown = ", ".join(f"{peak / 2**20:.0f} MiB" for peak in peaks)
    what = "exponent of peak extra memory, forward and backward with recomputed chunks, 1,024 to 8,192 tokens"
    return at_most("titans memory", what, growth_exponent(lengths, peaks), 1.1, unit="", detail=shown)


def races() -> Iterator[Outcome]:
    yield chunked_training()
    for name in MIXERS:
        yield per_token(name)
    for name in MIXERS:
        yield decoding(name)
    yield against_attention()
    yield memory()
