"""Agent biases: the tables by loops at their own size, interpolated at others, and the class token's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from regard.layers.agent_bias import AgentBias, without_first_axis


def at(table: Tensor, size: int, place: int) -> Tensor:
    """The value of a table along its last axis at the centre of cell `place` of `size`, linearly between centres."""
    length = table.shape[-1]
    where = min(max((place + 0.5) * length / size - 0.5, 0.0), length - 1.0)
    low = int(where)
    high = min(low + 1, length - 1)
    return table[..., low] + (where - low) * (table[..., high] - table[..., low])


def key_bias_by_loops(bias: AgentBias, size: tuple[int, int]) -> Tensor:
    columns = []
    for y in range(size[0]):
        for x in range(size[1]):
            coarse = at(at(bias.key_grid.transpose(2, 3), size[0], y), size[1], x)
            rows = at(bias.key_rows[:, :, :, 0], size[0], y)
            columns.append(coarse + rows + at(bias.key_columns[:, :, 0], size[1], x))
    return torch.stack(columns, dim=-1)[None]


def query_bias_by_loops(bias: AgentBias, size: tuple[int, int]) -> Tensor:
    rows = []
    for y in range(size[0]):
        for x in range(size[1]):
            coarse = at(at(bias.query_grid.transpose(2, 3), size[0], y), size[1], x)
            of_row = at(bias.query_rows[:, :, 0].transpose(1, 2), size[0], y)
            rows.append(coarse + of_row + at(bias.query_columns[:, 0].transpose(1, 2), size[1], x))
    return torch.stack(rows, dim=1)[None]


@pytest.mark.parametrize(
    ("key_size", "query_size"), [((5, 3), (4, 11)), ((2, 8), (1, 1)), ((1, 1), (9, 13)), ((7, 7), (4, 3))]
)
def test_tables_are_summed_at_every_size(key_size: tuple[int, int], query_size: tuple[int, int]) -> None:
    bias = AgentBias(num_heads=2, num_agents=3, key_size=(5, 3), query_size=(4, 11)).double()
    with torch.no_grad():
        keys, queries = bias(key_size, query_size)
        torch.testing.assert_close(keys, key_bias_by_loops(bias, key_size))
        torch.testing.assert_close(queries, query_bias_by_loops(bias, query_size))


def test_the_class_token_comes_first() -> None:
    bias = AgentBias(num_heads=2, num_agents=3, key_size=(4, 5), query_size=(4, 5), class_token=True).double()
    keys, queries = bias((4, 5), (4, 5))
    assert keys.shape == (1, 2, 3, 21)
    assert queries.shape == (1, 2, 21, 3)
    assert bias.key_class is not None
    assert bias.query_class is not None
    assert torch.equal(keys[0, ..., :1], bias.key_class)
    assert torch.equal(queries[0, :, :1], bias.query_class)
    torch.testing.assert_close(keys[..., 1:], key_bias_by_loops(bias, (4, 5)))
    torch.testing.assert_close(queries[:, :, 1:], query_bias_by_loops(bias, (4, 5)))


def test_the_coarse_table_is_interpolated_between_centres() -> None:
    bias = AgentBias(num_heads=2, num_agents=1, key_size=(9, 6), query_size=(9, 6))
    with torch.no_grad():
        bias.key_rows.zero_()
        bias.key_columns.zero_()
        keys, _ = bias((9, 6), (9, 6))
    expected = interpolate(bias.key_grid, size=(9, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(keys[0], expected.flatten(2))


def test_every_table_learns() -> None:
    bias = AgentBias(num_heads=2, num_agents=4, key_size=(3, 5), query_size=(6, 7), class_token=True)
    loss = sum((part * torch.randn_like(part)).sum() for part in bias((4, 3), (6, 7)))
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, parameter in bias.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_inference_computes_once_per_size() -> None:
    bias = AgentBias(num_heads=2, num_agents=4, key_size=(3, 5), query_size=(6, 7))
    with torch.no_grad():
        first, again = bias((3, 5), (6, 7)), bias((3, 5), (6, 7))
        assert first[0] is again[0]
        assert bias((3, 6), (6, 7))[0].shape == (1, 2, 4, 18)
        bias.key_rows.add_(1.0)
        torch.testing.assert_close(bias((3, 5), (6, 7))[0], first[0] + 1)


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"must be positive, got 2, 0, \(3, 5\) and \(6, 7\)"):
        AgentBias(num_heads=2, num_agents=0, key_size=(3, 5), query_size=(6, 7))


def test_the_authors_first_axis_is_left_out() -> None:
    layout = {"bias.key_rows": torch.rand(1, 2, 4, 5, 1), "a.bias.query_class": torch.rand(1, 2, 1, 4)}
    layout |= {"bias.key_grid": torch.rand(1, 4, 7, 7), "qkv.bias": torch.rand(1, 2, 3, 4, 5)}
    made = without_first_axis(layout)
    assert torch.equal(made["bias.key_rows"], layout["bias.key_rows"][0])
    assert torch.equal(made["a.bias.query_class"], layout["a.bias.query_class"][0])
    assert made["bias.key_grid"].shape == (1, 4, 7, 7)
    assert made["qkv.bias"].shape == (1, 2, 3, 4, 5)
    assert without_first_axis({"bias.key_rows": torch.rand(2, 2, 4, 5, 1)})["bias.key_rows"].shape[0] == 2
