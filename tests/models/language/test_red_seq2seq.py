"""RED is the LM with all five regularisations, the encoder-decoder with none; without any one it is neither."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from regard.models.language.ed_seq2seq import EDSeq2Seq, EDSeq2SeqConfig
from regard.models.language.lm_seq2seq import LMSeq2Seq, LMSeq2SeqConfig
from regard.models.language.red_seq2seq import REGULARISATIONS, REDSeq2Seq, REDSeq2SeqConfig
from regard.models.language.seq2seq import Seq2SeqModel, seq2seq_loss

SIZES = {"vocab_size": 19, "dim": 20, "num_heads": 2, "mlp_dim": 34, "max_positions": 30, "dropout": 0.0}
ALL_ON = REDSeq2SeqConfig(**SIZES, num_layers=3)  # type: ignore[arg-type]


def results(model: Seq2SeqModel, mask: Tensor | None) -> dict[str, Tensor]:
    """Scores and gradients of the loss of target and, where it is modelled, of source."""
    generator = torch.Generator().manual_seed(5)
    source = torch.randint(0, 19, (3, 7), generator=generator)
    target = torch.randint(0, 19, (3, 11), generator=generator)
    output = model(source, target, source_mask=mask)
    weight = 0.0 if output.source is None else 0.5
    seq2seq_loss(output, source, target, source_mask=mask, source_weight=weight).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"target": output.target.detach(), **gradients}


def with_weights_of(model: Seq2SeqModel, other: Seq2SeqModel) -> Seq2SeqModel:
    """`model` with those weights of `other` that have the same name, and the decoder's where an encoder is its own."""
    weights = other.state_dict()
    chosen = {}
    for name, tensor in model.state_dict().items():
        shared = name.replace("encoder_norm", "norm").replace("encoder.", "decoder.")
        chosen[name] = weights.get(name, weights.get(shared, tensor))
    model.load_state_dict(chosen)
    return model


MASKS = [None, torch.arange(7) < torch.tensor([[7], [3], [5]])]


@pytest.mark.parametrize("mask", MASKS, ids=["full", "padded"])
def test_all_five_are_the_language_model(mask: Tensor | None) -> None:
    lm = LMSeq2Seq(LMSeq2SeqConfig(**SIZES, num_layers=3)).double()  # type: ignore[arg-type]
    red = REDSeq2Seq(ALL_ON).double()
    red.load_reference(lm.state_dict())
    expected, made = results(lm, mask), results(red, mask)
    assert made.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(made[name], tensor, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("missing", REGULARISATIONS)
def test_without_any_one_it_is_another_model(missing: str) -> None:
    lm = LMSeq2Seq(LMSeq2SeqConfig(**SIZES, num_layers=3)).double()  # type: ignore[arg-type]
    red = with_weights_of(REDSeq2Seq(replace(ALL_ON, **{missing: False})).double(), lm)
    expected, made = results(lm, None), results(red, None)
    shared = made.keys() & expected.keys()
    assert "decoder.0.attention.k_proj.weight" in shared
    assert max(float((made[name] - expected[name]).abs().max()) for name in shared) > 1e-4


@pytest.mark.parametrize("mask", MASKS, ids=["full", "padded"])
def test_none_is_the_encoder_decoder(mask: Tensor | None) -> None:
    ed = EDSeq2Seq(EDSeq2SeqConfig(**SIZES, num_encoder_layers=3, num_decoder_layers=3)).double()  # type: ignore[arg-type]
    red = REDSeq2Seq(replace(ALL_ON, **dict.fromkeys(REGULARISATIONS, False))).double()
    red.load_reference(ed.state_dict())
    expected, made = results(ed, mask), results(red, mask)
    assert made.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(made[name], tensor, msg=lambda text, name=name: f"{name}: {text}")
