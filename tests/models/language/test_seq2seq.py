"""What all sequence-to-sequence models promise: padding, decoding, the loss, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.models.language.ed_seq2seq import EDSeq2Seq, EDSeq2SeqConfig
from regard.models.language.lm_seq2seq import LMSeq2Seq, LMSeq2SeqConfig
from regard.models.language.palm_seq2seq import PALMSeq2Seq, PALMSeq2SeqConfig
from regard.models.language.red_seq2seq import REDSeq2Seq, REDSeq2SeqConfig
from regard.models.language.seq2seq import Seq2SeqModel, Seq2SeqOutput, next_token_loss, seq2seq_loss

COMMON: dict[str, Any] = {
    "vocab_size": 23,
    "dim": 24,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_dim": 38,
    "dropout": 0.2,
    "max_positions": 19,
}
MODERN: dict[str, Any] = {
    "norm": "rms",
    "feed_forward": "swiglu",
    "positions": "rotary",
    "bias": False,
    "embedding_norm": True,
}
MAKERS: dict[str, Callable[[], Seq2SeqModel]] = {
    "palm": lambda: PALMSeq2Seq(PALMSeq2SeqConfig(**COMMON, num_layers=2)),
    "palm_modern": lambda: PALMSeq2Seq(PALMSeq2SeqConfig(**COMMON, **MODERN, num_layers=2)),
    "palm_bare": lambda: PALMSeq2Seq(
        PALMSeq2SeqConfig(
            **COMMON,
            num_layers=2,
            partial_attention=False,
            separate_positions=False,
            language_embedding=False,
            source_auto_encoding=False,
            causal_source=True,
        )
    ),
    "lm": lambda: LMSeq2Seq(LMSeq2SeqConfig(**COMMON, num_layers=3)),
    "lm_modern": lambda: LMSeq2Seq(LMSeq2SeqConfig(**COMMON, **MODERN, num_layers=2)),
    "ed": lambda: EDSeq2Seq(EDSeq2SeqConfig(**COMMON, num_encoder_layers=1, num_decoder_layers=2)),
    "red": lambda: REDSeq2Seq(REDSeq2SeqConfig(**COMMON, num_layers=2)),
    "red_cross": lambda: REDSeq2Seq(
        REDSeq2SeqConfig(**COMMON, num_layers=2, unidirectional_cross_attention=False, consecutive_positions=False)
    ),
    "red_apart": lambda: REDSeq2Seq(
        REDSeq2SeqConfig(**COMMON, num_layers=2, parameter_sharing=False, layer_wise_coordination=False)
    ),
}
SCATTERED = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1, 0], [1, 1, 1, 0, 0, 0, 0]]).bool()


def tokens(rows: int = 3, source: int = 7, target: int = 11) -> tuple[Tensor, Tensor]:
    return torch.randint(1, 23, (rows, source)), torch.randint(1, 23, (rows, target))


@pytest.fixture(params=MAKERS)
def model(request: pytest.FixtureRequest) -> Seq2SeqModel:
    return MAKERS[request.param]().double().eval()


@torch.no_grad()
def test_padding_of_source_and_target_changes_nothing(model: Seq2SeqModel) -> None:
    source, target = tokens()
    real = torch.ones_like(target).bool()
    real[1, [0, 4]] = False
    real[2, 6:] = False
    output = model(source, target, source_mask=SCATTERED, target_mask=real)
    for row in range(3):
        alone = model(source[row][SCATTERED[row]][None], target[row][real[row]][None])
        torch.testing.assert_close(output.target[row][real[row]], alone.target[0])
        if output.source is not None and alone.source is not None:
            torch.testing.assert_close(output.source[row][SCATTERED[row]], alone.source[0])
    assert not output.target[~real].any()


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("max_len", [None, 11])
def test_steps_equal_forward(model: Seq2SeqModel, padded: bool, max_len: int | None) -> None:
    source, target = tokens()
    mask = SCATTERED if padded else None
    expected = model(source, target, source_mask=mask).target
    state = model.encode(source, mask, max_len=max_len)
    pieces = []
    for piece in target.split([1, 4, 1, 5], dim=1):
        scores, state = model.step(piece, state)
        pieces.append(scores)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected)
    assert state.position.tolist() == [11, 11, 11]


@torch.no_grad()
def test_reordered_states_go_on_as_their_rows(model: Seq2SeqModel) -> None:
    source, target = tokens()
    _, state = model.step(target[:, :4], model.encode(source, SCATTERED))
    index = torch.tensor([2, 0, 2, 1])
    scores, _ = model.step(target[index, 4:5], state.reorder(index))
    expected = model(source, target, source_mask=SCATTERED).target[index, 4:5]
    torch.testing.assert_close(scores, expected)


@torch.no_grad()
def test_the_future_and_other_rows_have_no_influence(model: Seq2SeqModel) -> None:
    source, target = tokens()
    changed = target.clone()
    changed[:, 6:] = (changed[:, 6:] + 5) % 23
    changed[2] = 3
    first, second = model(source, target).target, model(source, changed).target
    torch.testing.assert_close(first[:2, :6], second[:2, :6])
    assert not torch.allclose(first[:2, 6:], second[:2, 6:])


def test_every_parameter_learns(model: Seq2SeqModel) -> None:
    source, target = tokens()
    model.train()
    output = model(source, target, source_mask=SCATTERED)
    weight = 0.0 if output.source is None else 0.5
    seq2seq_loss(output, source, target, source_mask=SCATTERED, source_weight=weight).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_dropout_is_off_in_eval_and_checkpointing_changes_nothing(model: Seq2SeqModel) -> None:
    source, target = tokens()
    assert torch.equal(model(source, target).target, model(source, target).target)
    thrifty = type(model)(replace(model.config, checkpointing=True)).double().train()
    thrifty.load_state_dict(model.state_dict())
    model.train()
    gradients = []
    for each in (model, thrifty):
        torch.manual_seed(3)
        each(source, target, source_mask=SCATTERED).target.square().sum().backward()
        gradients.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_own_layout_loads_strictly(model: Seq2SeqModel) -> None:
    layout = {name: torch.rand_like(tensor) for name, tensor in model.state_dict().items()}
    model.load_reference(layout)
    assert all(torch.equal(tensor, layout[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(KeyError, match=r"missing keys: norm.weight"):
        model.load_reference({name: tensor for name, tensor in layout.items() if name != "norm.weight"})


@pytest.mark.parametrize("name", ["palm", "ed"])
def test_compiles_whole(name: str) -> None:
    model = MAKERS[name]().eval()
    source, target = tokens()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        made = compiled(source, target, source_mask=SCATTERED)
        torch.testing.assert_close(made.target, model(source, target, source_mask=SCATTERED).target)


@pytest.mark.parametrize("name", ["palm", "lm", "ed", "red"])
def test_ill_input_is_named(name: str) -> None:
    model = MAKERS[name]().eval()
    source, target = tokens()
    with pytest.raises(ValueError, match=r"source must have shape \(batch, tokens\) with at least 1 token"):
        model(source[:, :0], target)
    with pytest.raises(ValueError, match="source row 1 has length 0"):
        model.encode(source, torch.tensor([[True] * 7, [False] * 7, [True] * 7]))
    with pytest.raises(ValueError, match=r"source has 2 rows and target has 3"):
        model(source[:2], target)
    with pytest.raises(ValueError, match=r"source_mask must be bool of shape \(3, 7\), got torch.int64 of \(3, 7\)"):
        model(source, target, source_mask=torch.ones(3, 7).long())
    with pytest.raises(ValueError, match=r"int32 or int64, got torch.float32"):
        model(source.float(), target)
    with pytest.raises(ValueError, match="2 rows and the state has 3: a state belongs to the sources"):
        model.step(target[:2, :1], model.encode(source))
    with pytest.raises(ValueError, match="max_len must be positive or None, got 0"):
        model.encode(source, max_len=0)
    with pytest.raises(ValueError, match=r"\d+ positions are needed and max_positions is 19"):
        model(source, torch.ones(3, 23).long())
    state = model.encode(source)
    with pytest.raises(ValueError, match=r"\d+ positions are needed and max_positions is 19"):
        model.step(torch.ones(3, 23).long(), state)


def test_padding_without_a_mask_is_refused_where_padding_is_known() -> None:
    model = EDSeq2Seq(EDSeq2SeqConfig(**COMMON, num_encoder_layers=1, num_decoder_layers=1, pad_id=0))
    source, target = tokens()
    source[1, 5:] = 0
    with pytest.raises(ValueError, match=r"source has padding \(id 0\) and no source_mask"):
        model(source, target)
    assert model(source, target, source_mask=source != 0).target.shape == (3, 11, 23)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim must be positive, got 0"),
        ({"num_heads": 5}, "dim=24 and num_heads=5"),
        ({"num_kv_heads": 3}, "num_heads=4, got 3"),
        ({"norm": "batch"}, "norm must be one of layer, rms, got 'batch'"),
        ({"positions": "none"}, "positions must be one of learned, rotary, got 'none'"),
        ({"num_layers": 0}, "num_layers must be positive, got 0"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, Any], message: str) -> None:
    for config in (PALMSeq2SeqConfig, LMSeq2SeqConfig, REDSeq2SeqConfig):
        with pytest.raises(ValueError, match=message):
            config(**{**COMMON, **changes})


# --------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shift", [0, 1])
def test_loss_is_the_formula(smoothing: float, shift: int) -> None:
    source, target = torch.randint(0, 5, (2, 4)), torch.randint(0, 5, (2, 6))
    real_source, real_target = torch.ones(2, 4).bool(), torch.ones(2, 6).bool()
    real_source[1, 2:], real_target[0, 3:] = False, False
    output = Seq2SeqOutput(torch.randn(2, 6, 5).double(), torch.randn(2, 4, 5).double(), shift)
    made = seq2seq_loss(
        output,
        source,
        target,
        source_mask=real_source,
        target_mask=real_target,
        label_smoothing=smoothing,
        source_weight=0.7,
    )

    def mean_of(scores: Tensor, ids: Tensor, mask: Tensor, shift: int, smoothing: float) -> float:
        terms = []
        for row in range(2):
            for place in range(ids.shape[1] - shift):
                if mask[row, place] and mask[row, place + shift]:
                    exps = [math.exp(float(score)) for score in scores[row, place]]
                    logs = [-math.log(value / sum(exps)) for value in exps]
                    plain = logs[int(ids[row, place + shift])]
                    terms.append((1 - smoothing) * plain + smoothing * sum(logs) / len(logs))
        return sum(terms) / len(terms)

    expected = mean_of(output.target, target, real_target, 1, smoothing)
    assert output.source is not None
    expected += 0.7 * mean_of(output.source, source, real_source, shift, 0.0)
    assert float(made) == pytest.approx(expected, rel=1e-10)


def test_sources_of_one_token_have_no_loss() -> None:
    scores = torch.randn(2, 1, 5, requires_grad=True)
    loss = next_token_loss(scores, torch.ones(2, 1).long(), None, shift=1)
    assert loss.item() == 0.0


def test_ill_losses_are_named() -> None:
    output = Seq2SeqOutput(torch.randn(2, 6, 5))
    source, target = torch.ones(2, 4).long(), torch.ones(2, 6).long()
    with pytest.raises(ValueError, match=r"source_weight is 0.5, but the model gives no scores of its source"):
        seq2seq_loss(output, source, target, source_weight=0.5)
    with pytest.raises(ValueError, match=r"got -1 and 0.0"):
        seq2seq_loss(output, source, target, source_weight=-1)
    with pytest.raises(ValueError, match="at least 2 tokens, start and one to predict, got 1"):
        seq2seq_loss(output, source, target[:, :1])
