"""Slopes against their formulas and against lists written out by hand."""

from __future__ import annotations

import pytest

from regard.ops.decay import alibi_slopes, decay_slopes


def test_powers_of_two() -> None:
    assert alibi_slopes(1) == pytest.approx([1 / 256])
    assert alibi_slopes(4) == pytest.approx([1 / 4, 1 / 16, 1 / 64, 1 / 256])
    assert alibi_slopes(8) == pytest.approx([2.0**-i for i in range(1, 9)])


def test_other_numbers_take_every_second_slope_of_twice_as_many() -> None:
    assert alibi_slopes(3) == pytest.approx([1 / 16, 1 / 256, 1 / 4])
    assert alibi_slopes(6) == pytest.approx([1 / 4, 1 / 16, 1 / 64, 1 / 256, 2.0**-1, 2.0**-3])
    assert len(alibi_slopes(13)) == len(set(alibi_slopes(13))) == 13


def test_layer_factor() -> None:
    first, last = (decay_slopes(4, decay="tnl", layer_idx=layer, num_layers=6) for layer in (0, 5))
    third = decay_slopes(4, decay="tnl", layer_idx=2, num_layers=6)
    assert first == pytest.approx([slope * (1 + 1e-5) for slope in alibi_slopes(4)])
    assert third == pytest.approx([slope * (1 - 2 / 5 + 1e-5) for slope in alibi_slopes(4)])
    assert last == pytest.approx([slope * 1e-5 for slope in alibi_slopes(4)])
    assert decay_slopes(4, decay="tnl", layer_idx=0, num_layers=1) == first
    assert decay_slopes(4, decay="paper", layer_idx=2, num_layers=6) == pytest.approx(
        [8 * head / 4 * 2 / 3 for head in (1, 2, 3, 4)]
    )
    assert decay_slopes(4, decay="none", layer_idx=2, num_layers=6) is None


def test_ill_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads must be positive, got 0"):
        alibi_slopes(0)
    with pytest.raises(ValueError, match="layer_idx=6, num_layers=6"):
        decay_slopes(4, decay="tnl", layer_idx=6, num_layers=6)
    with pytest.raises(ValueError, match="tnl, paper, none, got 'slow'"):
        decay_slopes(4, decay="slow", layer_idx=0, num_layers=1)  # type: ignore[arg-type]
