from __future__ import annotations

import math

import pytest

from regard.report import axes, units


@pytest.mark.parametrize("values", [[1e-6, 2.0], [0.003, 0.0031], [5.0, 5.0], [1e-9, 1e9], [0.7, 1.3], [1.0, 9.9]])
@pytest.mark.parametrize("binary", [False, True])
def test_a_logarithmic_axis_covers_its_values_with_few_ticks_inside(values: list[float], binary: bool) -> None:
    axis = axes.logarithmic("x", values, units.ratio, binary=binary)
    assert axis.low < min(values) <= max(values) < axis.high
    assert 1 <= len(axis.ticks) <= 8
    assert all(axis.low <= place <= axis.high for place, _ in axis.ticks)
    assert len({label for _, label in axis.ticks}) == len(axis.ticks)
    assert 0 < axis.fraction(min(values)) <= axis.fraction(max(values)) < 1


@pytest.mark.parametrize("values", [[2.069, 2.246], [0.0, 0.0], [-3.0, 5.0], [1000.0, 1000.0], [1e-9, 2e-9]])
def test_a_linear_axis_covers_its_values_with_few_ticks_inside(values: list[float]) -> None:
    axis = axes.linear("y", values, lambda value: f"{value:.12g}")
    assert axis.low < min(values) <= max(values) < axis.high
    assert 3 <= len(axis.ticks) <= 9
    assert all(axis.low <= place <= axis.high for place, _ in axis.ticks)


def test_measured_lengths_are_the_ticks_and_the_longest_is_among_them() -> None:
    lengths = [2.0**power for power in range(7, 15)]
    axis = axes.at_values("tokens", lengths)
    assert [label for _, label in axis.ticks] == ["256", "1,024", "4,096", "16,384"]
    assert axis.fraction(math.sqrt(axis.low * axis.high)) == pytest.approx(0.5)


def test_plotly_reads_text_as_it_is() -> None:
    assert axes.plotly_text("<b>&amp; %{x}") == "&lt;b&gt;&amp;amp; &#37;{x}"
