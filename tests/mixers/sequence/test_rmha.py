"""RMHA: RCMHA without convolutions, the plain form of its equation, and labml_nn's layout."""

from __future__ import annotations

import pytest
import torch

from regard.claims._relative_networks import plain_twin
from regard.mixers.sequence.rcmha import RCMHA
from regard.mixers.sequence.rmha import RMHA


def scattered(mixer: RMHA) -> RMHA:
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer.double()


def test_it_is_the_plain_form() -> None:
    mixer = scattered(RMHA(15, num_heads=3, max_positions=17))
    x = torch.randn(2, 13, 15, dtype=torch.float64)
    plain = plain_twin(mixer).double()
    torch.testing.assert_close(mixer(x), plain(x.transpose(0, 1)).transpose(0, 1))


def test_it_is_rcmha_whose_convolutions_pass_tokens_through() -> None:
    mixer = scattered(RMHA(15, num_heads=3, max_positions=17))
    convolved = RCMHA(15, num_heads=3, max_positions=17).double()
    with torch.no_grad():
        for name in ("q_conv", "k_conv", "v_conv"):
            convolved.get_parameter(f"{name}.weight").copy_(torch.tensor([0.0, 0, 1]).expand(5, 1, 3))
            convolved.get_parameter(f"{name}.bias").zero_()
    convolved.load_state_dict(mixer.state_dict(), strict=False)
    x = torch.randn(2, 13, 15, dtype=torch.float64)
    torch.testing.assert_close(convolved(x), mixer(x))


def test_parameters_are_those_counted() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in RMHA(128, num_heads=8).parameters()) == 1_180_032


def test_loads_labml_nns_layout() -> None:
    mixer = RMHA(12, num_heads=3, max_positions=7)
    names = {"query.linear.weight": "q_proj.weight", "key.linear.weight": "k_proj.weight"}
    names |= {f"value.linear.{part}": f"v_proj.{part}" for part in ("weight", "bias")}
    names |= {f"output.{part}": f"o_proj.{part}" for part in ("weight", "bias")}
    names |= {"key_pos_embeddings": "embeddings", "key_pos_bias": "offset_bias", "query_pos_bias": "content_bias"}
    own = mixer.state_dict()
    layout = {theirs: torch.rand_like(own[ours]) for theirs, ours in names.items()}
    mixer.load_reference(layout)
    for theirs, ours in names.items():
        assert torch.equal(mixer.get_parameter(ours), layout[theirs])
    with pytest.raises(KeyError, match="unknown keys: extra; missing keys: none"):
        mixer.load_reference({**layout, "extra": torch.zeros(1)})


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="max_positions must be positive, got 0"):
        RMHA(12, num_heads=3, max_positions=0)
