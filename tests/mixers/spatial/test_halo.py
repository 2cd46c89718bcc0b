"""The halo mixer: its map, its reach, its special cases, and the layout it loads."""

from __future__ import annotations

import pytest
import torch

from regard.mixers.spatial.halo import HaloMixer


@pytest.mark.parametrize("space", [(6, 9), (4, 4), (1, 1), (3, 17)])
def test_the_map_times_the_values_is_the_output(space: tuple[int, int]) -> None:
    mixer = HaloMixer(15, num_heads=3, head_dim=2, block_size=4, halo_size=3).double()
    x = torch.randn(2, 15, *space, dtype=torch.float64)
    pairs = torch.einsum("oc,bcyx->byxo", mixer.attention.kv_proj.weight, x).flatten(1, 2)
    values = pairs.view(2, -1, 3, 7)[..., 2:].transpose(1, 2)
    mixed = mixer.attention_map(x) @ values
    torch.testing.assert_close(mixer(x), mixed.transpose(2, 3).reshape(2, 15, *space))


def test_the_map_ends_at_the_halo_and_loses_what_is_beyond_the_borders() -> None:
    shown = HaloMixer(6, num_heads=2, block_size=3, halo_size=1).attention_map(torch.randn(2, 6, 9, 9)).detach()
    assert shown.shape == (2, 2, 81, 81)
    middle = shown[:, :, 4 * 9 + 4].unflatten(-1, (9, 9))
    torch.testing.assert_close(middle.sum(dim=(-2, -1)), torch.ones(2, 2))
    assert (middle[..., 2:7, 2:7] > 0).all()
    assert float(middle[..., 2:7, 2:7].sum()) == pytest.approx(float(middle.sum()))
    assert (shown[:, :, 0].sum(dim=-1) < 0.95).all()


def test_positions_of_a_block_share_their_neighbourhood() -> None:
    shown = HaloMixer(6, num_heads=2, block_size=2, halo_size=2).attention_map(torch.randn(1, 6, 8, 8))
    seen = (shown[0, 0] > 0).unflatten(0, (8, 8))
    assert torch.equal(seen[2, 4], seen[3, 5])
    assert not torch.equal(seen[3, 5], seen[4, 5])


def test_a_block_as_large_as_the_map_is_global() -> None:
    mixer = HaloMixer(6, num_heads=2, block_size=5, halo_size=0)
    shown = mixer.attention_map(torch.randn(1, 6, 5, 5))
    torch.testing.assert_close(shown.sum(dim=-1), torch.ones(1, 2, 25))
    assert (shown > 0).all()


def test_scaling_positions_is_scaling_the_tables() -> None:
    plain = HaloMixer(8, num_heads=2, block_size=3, halo_size=1)
    scaled = HaloMixer(8, num_heads=2, block_size=3, halo_size=1, scale_pos_embed=True)
    scaled.load_state_dict({n: 2 * v if n.endswith("_table") else v for n, v in plain.state_dict().items()})
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(scaled(x), plain(x))


def test_loads_timms_layout_strictly() -> None:
    mixer = HaloMixer(6, num_heads=2, block_size=3, halo_size=1)
    layout = {
        "q.weight": torch.rand(6, 6, 1, 1),
        "kv.weight": torch.rand(12, 6, 1, 1),
        "pos_embed.height_rel": torch.rand(9, 3),
        "pos_embed.width_rel": torch.rand(9, 3),
    }
    mixer.load_reference(layout)
    assert torch.equal(mixer.attention.q_proj.weight, layout["q.weight"][:, :, 0, 0])
    assert torch.equal(mixer.attention.column_table, layout["pos_embed.width_rel"])
    with pytest.raises(KeyError, match=r"missing keys: attention\.q_proj\.weight"):
        mixer.load_reference({name: value for name, value in layout.items() if name != "q.weight"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 4}, "num_heads must divide channels=6, got 4"),
        ({"num_heads": 0}, "num_heads must divide channels=6, got 0"),
        ({"num_heads": 2, "block_size": 0}, "block_size must be positive, got 0"),
        ({"num_heads": 2, "halo_size": -2}, "halo_size must not be negative, got -2"),
        ({"num_heads": 2, "head_dim": 0}, "head_dim must be positive, got 0"),
    ],
)
def test_ill_options_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HaloMixer(6, **options)
