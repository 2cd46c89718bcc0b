"""Slopes of exponential decay, one per head: a key that lies `t` tokens back counts `exp(-slope * t)`.

Papers: "TransNormerLLM", Qin et al., 2023, https://arxiv.org/abs/2307.14995, and "Various Lengths, Constant Speed",
Qin et al., ICML 2024, https://arxiv.org/abs/2405.17381, equation 10; the geometric slopes are those of ALiBi, Press
et al., ICLR 2022, https://arxiv.org/abs/2108.12409. Compared with OpenNLPLab/lightning-attention@d15c3852,
`lightning_attn/utils/utils.py` and `examples/module/tnl_attn.py`. Slopes are Python floats, never buffers.
"""

from __future__ import annotations

import math
from typing import Literal

Decay = Literal["tnl", "paper", "none"]
DECAYS: tuple[Decay, ...] = ("tnl", "paper", "none")

LAYER_FACTOR_FLOOR = 1e-5
"""What the code adds to the layer factor, so that the last layer still decays a little."""


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """ALiBi's slopes: 2^(-8 h / H) for h = 1..H.

    Where H is no power of two: those of the next lower power P, then every second one of 2P, as many as are missing.

    Raises:
        ValueError: `num_heads` is not positive.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads must be positive, got {num_heads}")
    lower = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8 * head / lower) for head in range(1, lower + 1)]
    between = [2.0 ** (-8 * head / (2 * lower)) for head in range(1, 2 * lower + 1, 2)]
    return tuple(slopes + between[: num_heads - lower])


def decay_slopes(num_heads: int, *, decay: Decay, layer_idx: int, num_layers: int) -> tuple[float, ...] | None:
    """The slopes of all heads in one layer of a network, smaller in later layers.

    Args:
        num_heads: number of heads H.
        decay: "tnl", as TNL's code: ALiBi's slopes times (1 - l / (L - 1) + 1e-5); "paper", as its equation 10:
            (8 h / H) (1 - l / L), h = 1..H; "none": no decay.
        layer_idx: the layer's number l, from 0.
        num_layers: number of layers L; the factor of a single layer is that of layer 0.

    Returns:
        A slope per head in 1 / token, or None without decay.

    Raises:
        ValueError: an unknown `decay`, or a layer that the network does not have.
    """
    if decay not in DECAYS:
        raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {decay!r}")
    if num_layers < 1 or not 0 <= layer_idx < num_layers:
        raise ValueError(f"layer_idx must be in 0..num_layers - 1, got layer_idx={layer_idx}, num_layers={num_layers}")
    if decay == "none":
        return None
    if decay == "paper":
        factor = 1 - layer_idx / num_layers
        return tuple(8 * head / num_heads * factor for head in range(1, num_heads + 1))
    factor = 1 - layer_idx / max(1, num_layers - 1) + LAYER_FACTOR_FLOOR
    return tuple(slope * factor for slope in alibi_slopes(num_heads))
