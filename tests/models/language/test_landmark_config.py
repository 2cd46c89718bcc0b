"""The sizes of landmark attention's language model: what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from regard.models.language.landmark_config import PAPER_CONFIG, LandmarkConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be positive, got 0"),
        ({"window": 0}, "window must be positive, got 0"),
        ({"window": 129}, "window must be at most seq_len=128 tokens, got 129"),
        ({"num_heads": 3}, "dim must be a positive multiple of num_heads"),
        ({"hidden": -1}, "hidden must not be negative, got -1"),
        ({"landmark_id": 256}, "landmark_id must be an id below vocab_size=256, got 256"),
        ({"end_id": -1}, "end_id must be an id below vocab_size=256, got -1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_ill_sizes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LandmarkConfig(**changes)


def test_the_papers_network_reads_within_the_positions_that_it_learned() -> None:
    config = PAPER_CONFIG
    span = config.block_size + 1
    attended = (config.top_k + 1) * span + config.window + config.window // config.block_size
    assert attended <= config.seq_len
