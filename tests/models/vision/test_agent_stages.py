"""What the networks with agent attention share: sizes of stages, names of attentions, and which configs are refused."""

from __future__ import annotations

import pytest

from regard.layers.reference_names import rename
from regard.models.vision.agent_stages import attention_names, check_agents, stage_sides


def test_sides_halve_rounding_up() -> None:
    assert stage_sides(224, 4, 4) == (56, 28, 14, 7)
    assert stage_sides(27, 4, 3) == (7, 4, 2)
    assert stage_sides(1, 4, 3) == (1, 1, 1)


def test_names_are_confined_to_the_attention() -> None:
    rules = attention_names(((r"(^|\.)proj\.", r"\1o_proj."),))
    assert rename("blocks.0.attn.proj.weight", rules) == "blocks.0.mixer.o_proj.weight"
    assert rename("patch_embed.proj.weight", rules) == "patch_embed.proj.weight"


@pytest.mark.parametrize(
    ("agent_depths", "image_size", "patch_size", "ratios", "message"),
    [
        ((1,), 8, 1, (2.0,), "agent_depths must have for each of the 2 stages a number from 0 to its depth"),
        ((3, 0), 8, 1, (2.0,), r"got \(3, 0\) for depths \(2, 1\)"),
        ((-1, 0), 8, 1, (2.0,), r"got \(-1, 0\) for depths \(2, 1\)"),
        ((1, 0), 0, 1, (2.0,), "must be positive, got 0, 1 and 2.0"),
        ((1, 0), 8, 0, (2.0,), "must be positive, got 8, 0 and 2.0"),
        ((1, 0), 8, 1, (2.0, 0.0), "must be positive, got 8, 1 and 2.0, 0.0"),
    ],
)
def test_ill_stages_are_named(
    agent_depths: tuple[int, ...], image_size: int, patch_size: int, ratios: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_agents((2, 1), agent_depths, image_size, patch_size, ratios)
