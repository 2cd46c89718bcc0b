from __future__ import annotations

import math

import pytest

from regard.tasks.recipe import Recipe


def test_the_rate_rises_linearly_and_falls_along_a_cosine():
    recipe = Recipe(steps=110, learning_rate=2.0, warmup=0.1, final_share=0.25)
    assert [recipe.rate(step) for step in range(3)] == pytest.approx([2 / 11, 4 / 11, 6 / 11])
    assert recipe.rate(10) == pytest.approx(2.0)
    middle = 11 + 99 / 2
    expected = 2.0 * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * (middle - 11) / 99)))
    assert recipe.rate(int(middle)) == pytest.approx(expected, rel=2e-2)
    assert recipe.rate(10_000) == pytest.approx(0.5)


def test_a_recipe_evaluates_ten_times_unless_told_otherwise():
    assert Recipe(steps=70).evaluation_interval == 7
    assert Recipe(steps=3).evaluation_interval == 1
    assert Recipe(steps=70, evaluate_every=20).evaluation_interval == 20


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch", -1),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("warmup", 1.5),
        ("seed", -1),
        ("ema", 1.0),
        ("ema", -0.1),
        ("layer_decay", 0.0),
        ("layer_decay", 1.1),
        ("freeze", "half"),
    ],
)
def test_numbers_outside_their_range_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        Recipe(**{field: value})
