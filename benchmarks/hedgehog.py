"""Hedgehog against causal SDPA: the whole mixer without its projections, feature maps included."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from harness import HEADS, WIDTH, Outcome, at_least, queries_keys_values, short
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from regard.layers.feature_maps import HedgehogFeatureMap
from regard.measure import race
from regard.mixers.sequence.hedgehog import NORMALISER_EPS
from regard.ops.linear_attention import linear_attention


def forward(dtype: torch.dtype) -> Outcome:
    q, k, v = queries_keys_values(16_384, dtype)
    maps = [HedgehogFeatureMap(HEADS, WIDTH).to(dtype) for _ in range(2)]

    def ours() -> Tensor:
        # features are computed in at least float32 and rounded to the values' type, as in the mixer
        features, other = (feature.to(v.dtype) for feature in (maps[0](q), maps[1](k)))
        return linear_attention(features, other, v, normaliser_eps=NORMALISER_EPS)

    with torch.no_grad():
        times = race({"sdpa": lambda: sdpa(q, k, v, is_causal=True), "ours": ours}, rounds=3)
    what = f"causal SDPA / hedgehog with its maps (2f = 128), forward, {short(dtype)}, 16,384 tokens, 8 heads of 64"
    return at_least(f"hedgehog forward {short(dtype)}", what, times.ratio("sdpa", "ours"), 2.0)


def races() -> Iterator[Outcome]:
    yield forward(torch.float32)
    yield forward(torch.bfloat16)
