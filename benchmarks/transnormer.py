"""TransNormerLLM: the block form against the plain masked form, decoding at two positions, SRMSNorm against RMSNorm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from harness import HEADS, WIDTH, Outcome, at_least, at_most, queries_keys_values
from torch import Tensor, nn

from regard.claims.transnormer import DECODED, decay_mask, masked_form, race_of_decoding, race_of_norms
from regard.measure import Race, peak_bytes, race
from regard.mixers.sequence.transnormer import NormLinearAttention
from regard.ops.decay import alibi_slopes
from regard.ops.linear_attention import linear_attention

SLOPES = alibi_slopes(HEADS)
TOKENS = 4096


def trained_forms() -> dict[str, Callable[[], object]]:
    """Forward and backward of both forms; the masked one is given its factors."""
    q, k, v = queries_keys_values(TOKENS, torch.float32, gradients=True)
    factors, upstream = decay_mask(TOKENS), torch.randn_like(q)

    def trained(form: Callable[[], Tensor]) -> object:
        return torch.autograd.grad(form(), (q, k, v), upstream)

    return {
        "masked": partial(trained, lambda: masked_form(q, k, v, factors)),
        "blocks": partial(trained, lambda: linear_attention(q, k, v, slopes=SLOPES)),
    }


def against_masked() -> Iterator[Outcome]:
    forms = trained_forms()
    times = race(forms, rounds=3)
    peaks = {name: min(peak_bytes(form) for _ in range(2)) for name, form in forms.items()}
    sizes = f"forward and backward, float32, {TOKENS} tokens, {HEADS} heads of {WIDTH}"
    detail = f"{times.median_s['masked']:.2f} s / {times.median_s['blocks']:.3f} s"
    what = f"plain masked form / block form, {sizes}"
    yield at_least("transnormer training", what, times.ratio("masked", "blocks"), 2, detail=detail)
    what = f"extra memory of the block form / of the plain masked form, {sizes}"
    detail = f"{peaks['blocks'] / 2**20:.0f} MiB / {peaks['masked'] / 2**20:.0f} MiB"
    yield at_most("transnormer memory", what, peaks["blocks"] / peaks["masked"], 0.25, detail=detail)


def decoding() -> Outcome:
    times = race_of_decoding(rounds=21)
    micro = {name: seconds / DECODED * 1e6 for name, seconds in times.median_s.items()}
    what = f"time of a token at position 8,192 / at 128, whole layer with LRPE, {HEADS} heads of {WIDTH}"
    detail = f"{micro['8192']:.0f} / {micro['128']:.0f} microseconds"
    return at_most("transnormer decoding", what, times.ratio("8192", "128"), 1.2, detail=detail)


def norms() -> Iterator[Outcome]:
    passes: dict[str, Race] = dict(zip(("forward", "forward and backward"), race_of_norms(rounds=11), strict=True))
    for kind, times in passes.items():
        what = f"eager RMSNorm with weight / SRMSNorm, (8192, 1024), float32, {kind}"
        detail = f"nn.RMSNorm / SRMSNorm {times.ratio('torch', 'srms'):.2f}"
        yield at_least(f"transnormer norm {kind}", what, times.ratio("rms", "srms"), 1, detail=detail)


def lrpe_overhead() -> Outcome:
    """What relative positions cost in the one layer that has them: less than twice the layer."""
    dim = HEADS * WIDTH
    x = torch.randn(1, TOKENS, dim)
    layers: dict[str, nn.Module] = {
        name: NormLinearAttention(dim, num_heads=HEADS, lrpe=name == "lrpe").eval() for name in ("plain", "lrpe")
    }
    with torch.no_grad():
        times = race({name: partial(layer, x) for name, layer in layers.items()}, rounds=7)
    # queries and keys are twice as wide, and the projections are the same
    what = f"layer with LRPE / without, forward, float32, {TOKENS} tokens, dim {dim}"
    return at_most("transnormer lrpe", what, times.ratio("lrpe", "plain"), 2)


def races() -> Iterator[Outcome]:
    yield from against_masked()
    yield decoding()
    yield from norms()
    yield lrpe_overhead()
