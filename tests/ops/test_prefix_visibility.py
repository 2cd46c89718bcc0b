"""The map of `[source ; target]`, cell by cell."""

from __future__ import annotations

import pytest
import torch

from regard.ops.prefix_visibility import prefix_visible


@pytest.mark.parametrize("causal_source", [False, True])
@pytest.mark.parametrize("target", [0, 1, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_map_is_the_rule(causal_source: bool, target: int, masked: bool) -> None:
    source = 7
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4]) if masked else None
    made = prefix_visible(source, target, source_mask=mask, causal_source=causal_source, device=torch.device("cpu"))
    assert made.shape == (2 if masked else 1, 1, source + target, source + target)
    for row in range(made.shape[0]):
        for i in range(source + target):
            for j in range(source + target):
                if j < source:
                    allowed = i >= source or not causal_source or j <= i
                    allowed = allowed and (mask is None or bool(mask[row, j]))
                else:
                    allowed = source <= j <= i
                assert bool(made[row, 0, i, j]) is allowed, (row, i, j)


def test_a_prefix_is_needed() -> None:
    with pytest.raises(ValueError, match="at least 1 source token, got 0"):
        prefix_visible(0, 3, device=torch.device("cpu"))
