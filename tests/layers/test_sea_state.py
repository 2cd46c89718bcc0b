"""The state's sizes: a cache that may grow beside sums and rows that do not."""

from __future__ import annotations

import pytest
import torch

from regard.mixers.sequence.sea import SEAAttention


def test_everything_but_the_cache_has_a_constant_size() -> None:
    mixer = SEAAttention(24, num_heads=3, causal=True, keys_per_query=2, estimate_width=8, max_positions=200).eval()
    sizes = []
    with torch.no_grad():
        for tokens in (1, 7, 130):
            _, state = mixer.step(torch.randn(2, tokens, 24), mixer.init_state(2, max_len=tokens))
            assert state.cache.keys.shape == (2, 3, tokens, 8)
            sizes.append(state.nbytes - state.cache.keys.nbytes - state.cache.values.nbytes)
    # two counts; 3 heads of 16 features by 17; two maps of 6 channels, 4 rows and 2 columns; 3 sums of 8 values
    assert sizes == [2 * (2 * 8 + 4 * (3 * 16 * 17 + 2 * 6 * 4 * 2 + 3 * 8))] * 3


def test_a_batch_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="batch=0"):
        SEAAttention(24, num_heads=3, causal=True).init_state(0)
