"""The encoder against PyTorch's own layer, its parameters, step against forward, padding, checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from regard.layers.encoder_block import Encoder, EncoderBlock
from regard.mixers.sequence.aaren import AarenAttention
from regard.mixers.sequence.softmax import SoftmaxAttention


def make(mixer: str = "softmax", **changes: Any) -> Encoder:
    options: dict[str, Any] = {"dim": 12, "num_layers": 2, "num_heads": 3, "hidden": 17, "causal": True}
    return Encoder(mixer, **{**options, **changes})


def test_is_pytorchs_pre_norm_layer() -> None:
    theirs = nn.TransformerEncoderLayer(12, 3, 17, activation="gelu", batch_first=True, norm_first=True).eval()
    ours = EncoderBlock(SoftmaxAttention(12, num_heads=3, qkv_bias=True), dim=12, hidden=17).eval()
    attention = theirs.self_attn
    nn.init.normal_(attention.in_proj_bias)
    mixer = ours.mixer
    assert isinstance(mixer, SoftmaxAttention)
    with torch.no_grad():
        for number, projection in enumerate((mixer.q_proj, mixer.k_proj, mixer.v_proj)):
            projection.weight.copy_(attention.in_proj_weight.chunk(3)[number])
            projection.bias.copy_(attention.in_proj_bias.chunk(3)[number])
    pairs = (
        (mixer.o_proj, attention.out_proj),
        (ours.mixer_norm, theirs.norm1),
        (ours.mlp_norm, theirs.norm2),
        (ours.mlp.up_proj, theirs.linear1),
        (ours.mlp.down_proj, theirs.linear2),
    )
    for own, other in pairs:
        own.load_state_dict(other.state_dict())
    x, mask = torch.randn(2, 11, 12), torch.arange(11) < torch.tensor([[11], [6]])
    expected = theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, mask=mask)[mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_parameters_of_the_papers_layers() -> None:
    """The Transformer's layer and Aaren's, which has one query token more."""
    with torch.device("meta"):
        blocks = [
            EncoderBlock(mixer(512, num_heads=8, causal=True, qkv_bias=True), dim=512, hidden=2048)
            for mixer in (SoftmaxAttention, AarenAttention)
        ]
    assert [sum(p.numel() for p in block.parameters()) for block in blocks] == [3_152_384, 3_152_896]


@pytest.mark.parametrize("mixer", ["softmax", "aaren", "lightning", "linear"])
@pytest.mark.parametrize("positions", ["none", "sinusoidal"])
def test_steps_equal_forward(mixer: str, positions: str) -> None:
    encoder = make(mixer, positions=positions).double().eval()
    x = torch.randn(2, 11, 12, dtype=torch.float64)
    with torch.no_grad():
        state, pieces = encoder.init_state(2, max_len=11), []
        for piece in x.split((4, 1, 5, 1), dim=1):
            y, state = encoder.step(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=1), encoder(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_anywhere_equals_the_unpadded_call(causal: bool) -> None:
    encoder = make(causal=causal, positions="sinusoidal").double().eval()
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    mask = torch.tensor([[False, True, True, False, True, True, False, True, False]])
    torch.testing.assert_close(encoder(x, mask=mask)[mask], encoder(x[:, mask[0]])[0])


def test_positions_tell_tokens_apart() -> None:
    same = torch.randn(1, 1, 12).expand(1, 7, 12)
    with torch.no_grad():
        plain = make(causal=False).eval()(same)
        placed = make(causal=False, positions="sinusoidal").eval()(same)
    torch.testing.assert_close(plain[:, 0], plain[:, 5])
    assert float((placed[:, 0] - placed[:, 5]).abs().max()) > 1e-2


def test_checkpointing_changes_nothing_but_memory() -> None:
    plain, thrifty = make("aaren").double().train(), make("aaren", checkpointing=True).double().train()
    thrifty.load_state_dict(plain.state_dict())
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    for module in (plain, thrifty):
        module(x, mask=torch.arange(7) < torch.tensor([[7], [3]])).square().sum().backward()
    for (name, ours), theirs in zip(thrifty.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_dropout_acts_in_training_alone() -> None:
    encoder, x = make(dropout=0.5), torch.randn(2, 7, 12)
    with torch.no_grad():
        assert not torch.equal(encoder(x), encoder(x))
        encoder.eval()
        assert torch.equal(encoder(x), encoder(x))


def test_compiles_without_breaks() -> None:
    encoder, x = make("aaren", positions="sinusoidal").eval(), torch.randn(2, 7, 12)
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, mask=mask), encoder(x, mask=mask))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers must be positive, got 0"),
        ({"num_heads": 5}, "dim=12 and num_heads=5"),
        ({"mixer": "aaren", "causal": False}, "refuses causal=False"),
    ],
)
def test_ill_sizes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_options_reach_the_mixer() -> None:
    assert all(mixer.q_proj.bias is None for mixer in make(mixer_options={"qkv_bias": False}).mixers())
    assert all(mixer.q_proj.bias is not None for mixer in make().mixers())
