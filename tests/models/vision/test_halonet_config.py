"""HaloNet's published sizes by a count of the test's own, and configs that are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from regard.models.vision.halonet_config import VARIANTS, HaloNetConfig

PURE = [name for name in VARIANTS if name.startswith("halonet_h")]


def counted(config: HaloNetConfig) -> int:
    """Layer by layer: stem, blocks of halo attention, final convolution, classifier."""
    window = config.block_size + 2 * config.halo_size
    total, incoming = 3 * 64 * 49 + 2 * 64, 64
    for stage, (blocks, m, o, heads) in enumerate(
        zip(config.blocks, config.widths, config.out_channels, config.num_heads, strict=True)
    ):
        v = round(m * config.value_ratio)
        for number in range(len(blocks)):
            total += incoming * m + 2 * m + 2 * m**2 + m * v + 2 * (2 * window - 1) * (m // heads) + 2 * v
            total += v * o + 2 * o
            if incoming != o or (stage and not number):
                total += incoming * o + 2 * o
            incoming = o
    if config.final_channels is not None:
        total += incoming * config.final_channels + 2 * config.final_channels
        incoming = config.final_channels
    return total + 1000 * (incoming + 1)


@pytest.mark.parametrize("name", PURE)
def test_parameters_are_those_of_the_formula(name: str) -> None:
    assert counted(VARIANTS[name].config) == VARIANTS[name].reported.params


def test_layers_and_ratios_are_those_of_the_table() -> None:
    layers = [3 * sum(map(len, VARIANTS[name].config.blocks)) + 2 for name in PURE]
    assert layers == [50, 59, 62, 65, 65, 98, 101, 107]
    windows = [VARIANTS[name].config.block_size + 2 * VARIANTS[name].config.halo_size for name in PURE]
    assert windows == [14, 14, 14, 16, 16, 18, 16, 16]
    assert [VARIANTS[name].config.value_ratio for name in PURE] == [1, 1, 1, 1, 1, 2.5, 3, 4]
    assert [VARIANTS[name].config.out_channels[0] for name in PURE] == [32, 64, 80, 96, 192, 128, 176, 224]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (64, 128)}, "out_channels must have a positive number for each of the 2 stages"),
        ({"num_heads": (4, 8, 0, 8)}, "num_heads must have a positive number for each of the 4 stages"),
        ({"num_classes": 0}, "num_classes must be positive, got 0"),
        ({"blocks": ("hhh", "hhh", "hhh")}, "blocks must have letters h and c for each of the 4 stages"),
        ({"blocks": ("hhh", "hxh", "h", "h")}, "blocks must have letters h and c"),
        ({"blocks": ("hhh", "", "h", "h")}, "blocks must have letters h and c"),
        ({"stem": "9x9"}, "stem must be one of 7x7, tiered, tiered_strided, small, got '9x9'"),
        ({"activation": "gelu"}, "activation must be one of relu, silu, got 'gelu'"),
        ({"gate": "cbam"}, "gate must be one of se, eca, None, got 'cbam'"),
        ({"stem_channels": 0}, "stem_channels must be positive, got 0"),
        ({"value_ratio": -1.0}, "value_ratio must be positive, got -1.0"),
        ({"final_channels": 0}, "final_channels must be positive, got 0"),
        ({"group_width": 0}, "group_width must be positive, got 0"),
        ({"group_width": 48}, "group_width must divide the width 64, got 48"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(HaloNetConfig(), **changes)
