"""Cascaded group attention against a loop over windows and heads, its biases, its map, and the authors' layout."""

from __future__ import annotations

import itertools

import backbones
import pytest
import torch
from torch import nn

from regard.mixers.spatial.cascaded_group import CascadedGroupAttention, offset_numbers

OPTIONS = {"num_heads": 3, "window_size": 4, "head_dim": 5, "kernel_sizes": (5, 3, 1)}


def conv_norm(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A convolution without bias, then a batch norm in evaluation."""
    size, groups = layer.conv.kernel_size[0], layer.conv.groups
    y = nn.functional.conv2d(x, layer.conv.weight, padding=size // 2, groups=groups)
    scale = layer.norm.weight / (layer.norm.running_var + layer.norm.eps).sqrt()
    return (y - layer.norm.running_mean[:, None, None]) * scale[:, None, None] + layer.norm.bias[:, None, None]


def window_by_loop(mixer: CascadedGroupAttention, window: torch.Tensor) -> torch.Tensor:
    """A window `(1, channels, y, x)`: head by head, pair of positions by pair."""
    height, width = window.shape[2:]
    places = list(itertools.product(range(height), range(width)))
    depth, own = mixer.head_dim, mixer.channels // mixer.num_heads
    outputs: list[torch.Tensor] = []
    for head in range(mixer.num_heads):
        part = window[:, head * own : (head + 1) * own]
        if outputs and mixer.cascade:
            part = part + outputs[-1]
        maps = conv_norm(mixer.qkvs[head], part)
        q = conv_norm(mixer.query_convs[head], maps[:, :depth])[0].flatten(1)
        k, v = maps[0, depth : 2 * depth].flatten(1), maps[0, 2 * depth :].flatten(1)
        rows = []
        for one, (y, x) in enumerate(places):
            scores = []
            for other, (v_y, v_x) in enumerate(places):
                bias = mixer.attention_biases[head, abs(y - v_y) * mixer.window_size + abs(x - v_x)]
                scores.append((q[:, one] * k[:, other]).sum() / depth**0.5 + bias)
            rows.append(v @ torch.stack(scores).softmax(dim=0))
        outputs.append(torch.stack(rows, dim=1).unflatten(1, (height, width))[None])
    return conv_norm(mixer.o_proj, torch.cat(outputs, dim=1).clamp(min=0))


def by_loop(mixer: CascadedGroupAttention, x: torch.Tensor) -> torch.Tensor:
    """Image by image and window by window, on the map padded with zeros where it is no single window."""
    height, width = x.shape[2:]
    side = mixer.window_size
    if max(height, width) <= side:
        return torch.cat([window_by_loop(mixer, image) for image in x.split(1)])
    padded = x.new_zeros(*x.shape[:2], -(-height // side) * side, -(-width // side) * side)
    padded[:, :, :height, :width] = x
    y = torch.empty_like(padded)
    for row, top, left in itertools.product(
        range(len(x)), range(0, padded.shape[2], side), range(0, padded.shape[3], side)
    ):
        place = (slice(row, row + 1), slice(None), slice(top, top + side), slice(left, left + side))
        y[place] = window_by_loop(mixer, padded[place])
    return y[:, :, :height, :width]


def build(channels: int = 6, **options: object) -> CascadedGroupAttention:
    mixer = CascadedGroupAttention(channels, **{**OPTIONS, **options})
    backbones.randomised(mixer)
    with torch.no_grad():
        mixer.attention_biases.normal_()
    return mixer.double().eval()


@pytest.mark.parametrize("space", [(6, 9), (4, 4), (1, 1), (2, 3), (3, 5), (5, 2)])
@pytest.mark.parametrize("cascade", [True, False])
def test_is_a_loop_over_windows_and_heads(space: tuple[int, int], cascade: bool) -> None:
    mixer = build(cascade=cascade)
    x = torch.randn(2, 6, *space, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_loop(mixer, x))


@pytest.mark.parametrize(("channels", "heads", "side"), [(7, 1, 3), (10, 5, 2), (6, 2, 1)])
def test_is_a_loop_at_other_widths(channels: int, heads: int, side: int) -> None:
    mixer = build(channels, num_heads=heads, window_size=side, kernel_sizes=(3, 1, 5, 7, 3))
    x = torch.randn(2, channels, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_loop(mixer, x))


@pytest.mark.parametrize("space", [(3, 2), (5, 3)])
def test_gradients_are_those_of_the_loop(space: tuple[int, int]) -> None:
    mixer = build()
    x = torch.randn(1, 6, *space, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    leaves = (x, *mixer.parameters())
    ours = torch.autograd.grad((mixer(x) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_loop(mixer, x) * weights).sum(), leaves))


def test_training_counts_padded_positions() -> None:
    mixer = build(channels=6).train()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    padded = nn.functional.pad(x, (0, 0, 0, 3))
    torch.testing.assert_close(mixer(x), mixer(padded)[:, :, :5])
    layer = mixer.qkvs[0]
    seen = nn.functional.conv2d(padded[:, :2], layer.conv.weight)
    layer.norm.momentum = 1.0
    mixer(x)
    torch.testing.assert_close(layer.norm.running_mean, seen.mean(dim=(0, 2, 3)))


def test_heads_hand_their_output_on() -> None:
    mixer = build().requires_grad_(False)
    with torch.no_grad():
        mixer.o_proj.conv.weight.zero_()
        mixer.o_proj.conv.weight[4:, 4:] = torch.eye(2, dtype=torch.float64)[:, :, None, None]
    x = torch.randn(1, 6, 4, 4, dtype=torch.float64)
    changed = x.clone()
    changed[:, 0] += 1
    assert (mixer(x) != mixer(changed)).any()
    mixer.cascade = False
    assert torch.equal(mixer(x), mixer(changed))


def test_offsets_are_numbered_in_the_order_in_which_they_are_met() -> None:
    for side in (1, 3, 5):
        met: dict[tuple[int, int], int] = {}
        places = list(itertools.product(range(side), range(side)))
        numbers = [[met.setdefault((abs(y - v_y), abs(x - v_x)), len(met)) for v_y, v_x in places] for y, x in places]
        assert offset_numbers((side, side), side).tolist() == numbers
    assert offset_numbers((2, 1), 4).tolist() == [[0, 4], [4, 0]]


def test_the_map_ends_at_the_window_and_weighs_the_values() -> None:
    mixer = build()
    x = torch.randn(2, 6, 4, 8, dtype=torch.float64)
    shown = mixer.attention_map(x)
    assert shown.shape == (2, 3, 32, 32)
    torch.testing.assert_close(shown.sum(dim=-1), torch.ones(2, 3, 32, dtype=torch.float64))
    column = torch.arange(32) % 8
    same = (column[:, None] < 4) == (column[None, :] < 4)
    assert (shown[:, :, same] > 0).all()
    assert (shown[:, :, ~same] == 0).all()
    _, _, v = conv_norm(mixer.qkvs[0], x[:, :2]).split((5, 5, 2), dim=1)
    first = (shown[:, 0] @ v.flatten(2).mT).mT.unflatten(2, (4, 8))
    whole = [mixed for _, mixed in mixer._heads(x[:, :, :, :4], weighed=False)]
    torch.testing.assert_close(whole[0], first[:, :, :, :4])


def test_padding_takes_a_part_of_the_weight() -> None:
    sums = build().attention_map(torch.randn(1, 6, 5, 4, dtype=torch.float64)).sum(dim=-1)
    torch.testing.assert_close(sums[..., :16], torch.ones(1, 3, 16, dtype=torch.float64))
    assert (sums[..., 16:] < 0.95).all()


def authors_layout(mixer: CascadedGroupAttention) -> dict[str, torch.Tensor]:
    """The weights under the authors' names, written by a rule of the test's own."""
    made = {}
    for name, value in mixer.state_dict().items():
        parts = name.split(".")
        parts[0] = {"query_convs": "dws", "o_proj": "proj.1"}.get(parts[0], parts[0])
        parts = [{"conv": "c", "norm": "bn"}.get(part, part) for part in parts]
        made[".".join(parts)] = torch.rand_like(value.float()).to(value.dtype)
    return {**made, "attention_bias_idxs": offset_numbers((mixer.window_size,) * 2, mixer.window_size)}


def test_loads_the_authors_layout_strictly() -> None:
    mixer = CascadedGroupAttention(6, **OPTIONS)
    layout = authors_layout(mixer)
    mixer.load_reference(layout)
    assert torch.equal(mixer.query_convs[1].conv.weight, layout["dws.1.c.weight"])
    assert torch.equal(mixer.o_proj.norm.bias, layout["proj.1.bn.bias"])
    assert torch.equal(mixer.attention_biases, layout["attention_biases"])
    mixer.load_reference({f"attn.{name}": value for name, value in layout.items()})
    without = {name: value for name, value in layout.items() if name != "attention_bias_idxs"}
    mixer.load_reference(without)
    with pytest.raises(KeyError, match=r"missing keys: qkvs\.2\.conv\.weight"):
        mixer.load_reference({name: value for name, value in layout.items() if name != "qkvs.2.c.weight"})
    with pytest.raises(ValueError, match=r"must number offsets as \|dy\| \* 4 \+ \|dx\|"):
        mixer.load_reference({**layout, "attention_bias_idxs": layout["attention_bias_idxs"].flip(0)})
    with pytest.raises(ValueError, match=r"attention_biases has shape \(3, 15\), it must be \(3, 16\)"):
        mixer.load_reference({**layout, "attention_biases": torch.zeros(3, 15)})


def test_biases_of_another_window_are_resized_as_timm_does() -> None:
    timm = pytest.importorskip("timm.layers")
    mixer = CascadedGroupAttention(6, **OPTIONS)
    layout = authors_layout(CascadedGroupAttention(6, **{**OPTIONS, "window_size": 7}))
    mixer.load_reference(layout)
    expected = timm.resize_rel_pos_bias_table_levit(layout["attention_biases"].T, (16, 3)).T
    torch.testing.assert_close(mixer.attention_biases.detach(), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 4}, "num_heads must divide channels=6, got 4"),
        ({"num_heads": 0}, "num_heads must divide channels=6, got 0"),
        ({"window_size": 0}, "must be positive, got 0 and 5"),
        ({"head_dim": -1}, "must be positive, got 4 and -1"),
        ({"kernel_sizes": (3, 3)}, "a number for each of 3 heads"),
        ({"kernel_sizes": (3, 4, 3)}, "kernel_size must be odd, got 4"),
    ],
)
def test_ill_options_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CascadedGroupAttention(6, **{**OPTIONS, **changes})
