"""PALM's parts: what each leaves out, the layer over the whole sequence, counted parameters, the compared layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.models.language.ed_seq2seq import EDSeq2Seq
from regard.models.language.lm_seq2seq import LMSeq2Seq, LMSeq2SeqConfig
from regard.models.language.palm_seq2seq import PALMSeq2Seq, PALMSeq2SeqConfig, palm_layer
from regard.models.language.red_seq2seq import REDSeq2Seq
from regard.models.language.seq2seq import Layout
from regard.models.language.seq2seq_blocks import Seq2SeqBlock, reference_name
from regard.ops.prefix_visibility import prefix_visible

FULL = PALMSeq2SeqConfig(vocab_size=19, dim=20, num_heads=2, mlp_dim=34, num_layers=2, max_positions=30, dropout=0.0)
MODELS = {"palm": PALMSeq2Seq, "ed": EDSeq2Seq, "lm": LMSeq2Seq, "red": REDSeq2Seq}


def layer_whole(block: Seq2SeqBlock, x: Tensor, layout: Layout, *, causal_source: bool) -> Tensor:
    """The same layer with one map for all tokens and every sub-block on the whole sequence."""
    source = layout.source_positions.shape[1]
    rows = layout.target_positions
    places = torch.cat((layout.source_positions.expand(len(rows), -1), rows), dim=1)
    visible = prefix_visible(
        source,
        x.shape[1] - source,
        source_mask=layout.source_mask,
        causal_source=causal_source,
        device=x.device,
    )
    q, k, v = block.project(x, places)
    x = x + block.attention.attend(q, k, v, visible=visible)
    assert block.reader is not None
    assert block.reader_norm is not None
    kept = block.reader.keys_values(x[:, :source], layout.source_positions)
    mask = None if layout.source_mask is None else layout.source_mask[:, None, None, :]
    x = x + block.reader.attend(block.reader.queries(block.reader_norm(x), places), *kept, visible=mask)
    return x + block.feed_forward(block.feed_forward_norm(x))


@pytest.mark.parametrize("causal_source", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_layer_in_two_calls_is_the_layer_with_one_map(causal_source: bool, padded: bool) -> None:
    block = Seq2SeqBlock(replace(FULL, positions="rotary", norm="rms"), reader="partial").double()
    mask = torch.arange(7) < torch.tensor([[7], [4]]) if padded else None
    layout = Layout(mask, torch.arange(7)[None], torch.arange(6)[None].expand(2, -1))
    x = torch.randn(2, 13, 20).double().requires_grad_()
    made, expected = (
        palm_layer(block, x, layout, causal_source),
        layer_whole(block, x, layout, causal_source=causal_source),
    )
    real = torch.ones(2, 13).bool()
    if mask is not None:
        real[:, :7] = mask
    torch.testing.assert_close(made[real], expected[real])
    weight = torch.randn(2, 13, 20).double() * real[..., None]
    gradients = [torch.autograd.grad((y * weight).sum(), x, retain_graph=True)[0] for y in (made, expected)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_layer_refuses_a_source_that_is_empty_or_too_long() -> None:
    block = Seq2SeqBlock(FULL, reader="partial")
    for length in (0, 6):
        layout = Layout(None, torch.arange(length)[None], torch.arange(2)[None])
        with pytest.raises(ValueError, match=f"from 1 to the sequence's 5, got {length}"):
            palm_layer(block, torch.randn(1, 5, 20), layout)


@pytest.mark.parametrize("dim", [20, 28])
def test_partial_attention_adds_six_squares_per_layer(dim: int) -> None:
    config = replace(FULL, dim=dim, bias=False)
    counts = [
        sum(p.numel() for p in PALMSeq2Seq(replace(config, partial_attention=on)).parameters()) for on in (True, False)
    ]
    own_norm = 2 * dim
    assert counts[0] - counts[1] == config.num_layers * (4 * dim**2 + 2 * dim**2 + 2 * dim + own_norm)


def test_everything_left_out_is_the_language_model() -> None:
    bare = replace(
        FULL, partial_attention=False, separate_positions=False, language_embedding=False, causal_source=True
    )
    lm = LMSeq2Seq(
        LMSeq2SeqConfig(vocab_size=19, dim=20, num_heads=2, mlp_dim=34, num_layers=2, max_positions=30, dropout=0.0)
    ).eval()
    palm = PALMSeq2Seq(bare).eval()
    palm.load_state_dict(lm.state_dict())
    source, target = torch.randint(0, 19, (2, 7)), torch.randint(0, 19, (2, 5))
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    made, expected = palm(source, target, source_mask=mask), lm(source, target, source_mask=mask)
    torch.testing.assert_close(made.target, expected.target)
    torch.testing.assert_close(made.source, expected.source)
    assert made.source_shift == expected.source_shift == 1


@torch.no_grad()
def test_each_part_does_something() -> None:
    source, target = torch.randint(0, 19, (2, 7)), torch.randint(0, 19, (2, 5))
    full = PALMSeq2Seq(FULL).eval()
    expected = full(source, target).target
    for change in ({"separate_positions": False}, {"causal_source": True}):
        other = PALMSeq2Seq(replace(FULL, **change)).eval()  # type: ignore[arg-type]
        other.load_state_dict(full.state_dict())
        assert float((other(source, target).target - expected).abs().max()) > 1e-3, change
    for part in ("partial_attention", "language_embedding"):
        other = PALMSeq2Seq(replace(FULL, **{part: False})).eval()
        other.load_state_dict(
            {name: tensor for name, tensor in full.state_dict().items() if name in other.state_dict()}
        )
        assert float((other(source, target).target - expected).abs().max()) > 1e-3, part
    silent = PALMSeq2Seq(replace(FULL, source_auto_encoding=False)).eval()
    assert silent(source, target).source is None
    assert full(source, target).source_shift == 0


def test_compared_layout_of_a_layer_loads_strictly() -> None:
    config = replace(FULL, norm="rms", feed_forward="swiglu", bias=False, positions="rotary")
    block = Seq2SeqBlock(config, reader="partial")
    names = [
        *(f"attention.{part}.weight" for part in ("query", "key", "value", "dense")),
        *(f"partial_attention.{part}.weight" for part in ("query", "key", "value", "dense")),
        *(f"partial_attention.Fp_linear{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")),
        *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
        *(f"{part}.weight" for part in ("attn_norm", "partial_attn_norm", "mlp_norm")),
    ]
    own = block.state_dict()
    theirs = {name: torch.rand_like(own[reference_name(name)]) for name in names}
    assert len(theirs) == len(own)
    block.load_reference(theirs)
    assert torch.equal(block.reader.k_proj.weight, theirs["partial_attention.key.weight"])  # type: ignore[union-attr]
    with pytest.raises(KeyError, match=r"unknown keys: attention.q.weight"):
        block.load_reference({name.replace("attention.query", "attention.q"): t for name, t in theirs.items()})


@pytest.mark.parametrize("name", MODELS)
def test_published_and_small_configs_build(name: str) -> None:
    cls: Any = MODELS[name]
    assert cls.task == "translation"
    with torch.device("meta"):
        small = cls(cls.SMALL)
        counts = {
            variant: sum(p.numel() for p in cls(made.config).parameters()) for variant, made in cls.VARIANTS.items()
        }
    assert sum(p.numel() for p in small.parameters()) < 3_000_000
    assert all(count > 20_000_000 for count in counts.values())


def test_palm_has_fewer_parameters_than_the_encoder_decoder_and_the_language_model_about_as_many() -> None:
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in cls(next(iter(cls.VARIANTS.values())).config).parameters())  # type: ignore[attr-defined]
            for name, cls in MODELS.items()
        }
    assert counts["palm"] < counts["ed"]
    assert abs(counts["lm"] / counts["ed"] - 1) < 0.01
