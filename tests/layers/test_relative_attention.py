"""What block and grid attention share: ratios of sizes, resized tables, padding, and where variables belong."""

from __future__ import annotations

import pytest
import torch

from regard.layers.relative_attention import RelativeAttention, attention_place, base_size
from regard.mixers.spatial.maxvit_block import MaxViTBlockAttention
from regard.mixers.spatial.maxvit_grid import MaxViTGridAttention

BOTH = (MaxViTBlockAttention, MaxViTGridAttention)


def small(cls: type[RelativeAttention], size: int, base: int | None = None, heads: int = 2) -> RelativeAttention:
    return cls(6, **{"num_heads": heads, "window_size" if cls is BOTH[0] else "grid_size": size, "base_size": base})


@pytest.mark.parametrize(
    ("size", "ratio", "expected"),
    [(12, "384/224", 7), (16, "512/224", 7), (7, None, None), (7, "1", 7), (6, "1.5", 4)],
)
def test_the_base_is_the_window_over_the_ratio(size: int, ratio: str | None, expected: int | None) -> None:
    assert base_size(size, ratio) == expected


@pytest.mark.parametrize("ratio", ["384/0", "large", "-2", "0"])
def test_a_ratio_is_of_two_positive_numbers(ratio: str) -> None:
    with pytest.raises(ValueError, match=rf"scale_ratio must be a ratio of two positive numbers .*{ratio}"):
        base_size(12, ratio)


def test_a_ratio_must_give_a_whole_window() -> None:
    with pytest.raises(ValueError, match="scale_ratio must divide a window of 11 positions evenly, got '384/224'"):
        base_size(11, "384/224")


@pytest.mark.parametrize("cls", BOTH)
def test_a_smaller_table_is_resized(cls: type[RelativeAttention]) -> None:
    mixer = small(cls, 4, base=2).double()
    assert mixer.bias_table.shape == (2, 3, 3)
    twin = small(cls, 4).double()
    resized = torch.nn.functional.interpolate(mixer.bias_table[None].detach(), size=(7, 7), mode="bilinear")[0]
    twin.load_state_dict({**mixer.state_dict(), "bias_table": resized})
    x = torch.randn(2, 6, 8, 5, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), twin(x))


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("space", [(5, 7), (1, 1), (1, 9), (11, 3)])
def test_padding_has_no_influence(cls: type[RelativeAttention], space: tuple[int, int]) -> None:
    mixer = small(cls, 4).double()
    with torch.no_grad():
        mixer.qkv.bias.copy_(100 * torch.randn(18))
    x = torch.randn(2, 6, *space, dtype=torch.float64)
    shown = mixer.attention_map(x)
    torch.testing.assert_close(shown.sum(dim=-1), torch.ones(shown.shape[:3], dtype=torch.float64))
    values = (x.permute(0, 2, 3, 1) @ mixer.qkv.weight[12:].T + mixer.qkv.bias[12:]).flatten(1, 2)
    values = values.unflatten(2, (2, 3)).transpose(1, 2)
    mixed = (shown @ values).transpose(1, 2).flatten(2)
    expected = (mixed @ mixer.o_proj.weight.T + mixer.o_proj.bias).transpose(1, 2).unflatten(2, space)
    torch.testing.assert_close(mixer(x), expected)


def test_a_single_position_attends_to_itself() -> None:
    mixer = small(MaxViTGridAttention, 7).double()
    assert torch.equal(mixer.attention_map(torch.randn(1, 6, 1, 1, dtype=torch.float64)), torch.ones(1, 2, 1, 1))


def test_weights_start_as_the_authors() -> None:
    mixer = MaxViTBlockAttention(256, num_heads=8)
    for tensor in (mixer.qkv.weight, mixer.o_proj.weight, mixer.bias_table):
        assert float(tensor.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not mixer.qkv.bias.any()
    assert not mixer.o_proj.bias.any()


def test_variables_are_found_by_the_end_of_their_names() -> None:
    assert attention_place("any/where/attention_1/k/bias").part == 1
    assert attention_place("relative_bias").name == "bias_table"
    assert attention_place("attention/p/weight") is None
    assert attention_place("attention/q") is None


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 4}, "num_heads must divide channels=6, got 4"),
        ({"num_heads": 0}, "num_heads must divide channels=6, got 0"),
        ({"num_heads": 2, "size": 0}, "a window must have a positive size, got 0"),
        ({"num_heads": 2, "base_size": 0}, "base_size must be positive, got 0"),
    ],
)
def test_ill_options_are_named(cls: type[RelativeAttention], options: dict[str, int], message: str) -> None:
    size_name = "window_size" if cls is MaxViTBlockAttention else "grid_size"
    renamed = {size_name if name == "size" else name: value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        cls(6, **renamed)


@pytest.mark.parametrize("cls", BOTH)
def test_loads_the_authors_layout_strictly(cls: type[RelativeAttention]) -> None:
    mixer = small(cls, 2, heads=3)
    layout = {f"attention/{letter}/weight": torch.randn(6, 3, 2) for letter in "qkv"}
    layout |= {f"attention/{letter}/bias": torch.randn(3, 2) for letter in "qkv"}
    layout |= {"attention/o/weight": torch.randn(3, 2, 6), "attention/o/bias": torch.randn(6)}
    layout["attention/relative_bias"] = torch.randn(3, 3, 3)
    mixer.load_reference(layout)
    # head 2, feature 1 of the values
    assert torch.equal(mixer.qkv.weight[12 + 2 * 2 + 1], layout["attention/v/weight"][:, 2, 1])
    assert torch.equal(mixer.o_proj.weight[:, 2 * 2 + 1], layout["attention/o/weight"][2, 1])
    assert torch.equal(mixer.bias_table, layout["attention/relative_bias"])
    with pytest.raises(KeyError, match=r"unknown keys: none; missing keys: qkv\.bias"):
        mixer.load_reference({name: value for name, value in layout.items() if name != "attention/k/bias"})
    with pytest.raises(KeyError, match="unknown keys: attention/p/bias"):
        mixer.load_reference({**layout, "attention/p/bias": torch.zeros(6)})


@pytest.mark.parametrize("cls", BOTH)
def test_loads_timms_layout_strictly(cls: type[RelativeAttention]) -> None:
    mixer = small(cls, 2, heads=3)
    renamed = {"o_proj": "proj", "bias_table": "rel_pos.relative_position_bias_table"}
    layout = {}
    for name, value in mixer.state_dict().items():
        for own, theirs in renamed.items():
            name = name.replace(own, theirs)
        layout[name] = torch.rand_like(value)
    mixer.load_reference(layout)
    assert torch.equal(mixer.bias_table, layout["rel_pos.relative_position_bias_table"])
    with pytest.raises(KeyError, match=r"missing keys: o_proj\.bias"):
        mixer.load_reference({name: value for name, value in layout.items() if name != "proj.bias"})
