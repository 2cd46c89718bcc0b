"""The attention map of a trained host on the sample that all mechanisms are shown on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.compare.hosts import Host
from regard.compare.problems import Problem
from regard.metadata import No, Traits

DIGITS = 4
MAP_AXES = 4


def why_no_map(traits: Traits | None) -> str:
    """Why a mechanism has no map; empty where it has one."""
    return traits.has_map.reason if traits is not None and isinstance(traits.has_map, No) else ""


@torch.no_grad()
def attention_map(host: Host, problem: Problem, traits: Traits) -> dict[str, Any]:
    """The map of the middle layer's mixer, one matrix per head, with a label per token, or per position of its map.

    Args:
        host: the trained network.
        problem: gives the sample.
        traits: of the mechanism.
    """
    sample, labels = problem.shown_example()
    mixers = host.mixers()
    layer = len(mixers) // 2
    seen = _input_of(mixers[layer], host, sample)
    if seen.ndim == MAP_AXES:
        height, width = seen.shape[2:]
        labels = [f"{row},{column}" for row in range(height) for column in range(width)]
    weights = mixers[layer].attention_map(seen)[0].float().cpu()
    rows = torch.round(weights, decimals=DIGITS).tolist()
    return {
        "heads": [[[round(value, DIGITS) for value in row] for row in head] for head in rows],
        "labels": labels,
        "signed": not traits.row_stochastic and bool((weights < 0).any()),
        "layer": layer + 1,
    }


def _input_of(mixer: nn.Module, host: nn.Module, sample: Tensor) -> Tensor:
    """What arrives at one mixer when the host sees the sample."""
    seen: list[Tensor] = []
    handle = mixer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        host(sample)
    finally:
        handle.remove()
    return seen[0]
