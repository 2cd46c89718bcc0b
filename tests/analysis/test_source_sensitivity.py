"""Bounds hold, norms by autograd are those of the closed form, mass and correlation are what they say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regard.analysis.source_sensitivity import (
    attention_jacobian_norms,
    degeneration,
    jacobian_norms,
    recorded_attention,
    sensitivity_bound,
    source_attention,
    source_mass,
    source_share_bound,
    spearman_with_step,
)
from regard.models.language.ed_seq2seq import EDSeq2Seq, EDSeq2SeqConfig
from regard.models.language.lm_seq2seq import LMSeq2Seq, LMSeq2SeqConfig
from regard.models.language.palm_seq2seq import PALMSeq2Seq, PALMSeq2SeqConfig
from regard.models.language.seq2seq import Seq2SeqModel

SIZES = {"vocab_size": 13, "dim": 12, "num_heads": 3, "mlp_dim": 14, "max_positions": 20, "dropout": 0.0}


def models() -> dict[str, Seq2SeqModel]:
    made: dict[str, Seq2SeqModel] = {
        "lm": LMSeq2Seq(LMSeq2SeqConfig(**SIZES, num_layers=2)),  # type: ignore[arg-type]
        "ed": EDSeq2Seq(EDSeq2SeqConfig(**SIZES, num_encoder_layers=1, num_decoder_layers=2)),  # type: ignore[arg-type]
        "palm": PALMSeq2Seq(PALMSeq2SeqConfig(**SIZES, num_layers=2)),  # type: ignore[arg-type]
    }
    return {name: model.double().eval() for name, model in made.items()}


def pair() -> tuple[Tensor, Tensor]:
    return torch.randint(0, 13, (1, 5)), torch.randint(0, 13, (1, 7))


def attention(kv_heads: int = 2, scale: float = 1.0) -> tuple[dict[str, Tensor], Tensor]:
    """Queries of 4 heads and 6 steps, keys and values of 5 source and 6 further tokens, and their source states."""
    states = torch.randn(11, 10).double()
    weights = {name: scale * torch.randn(kv_heads * 3, 10).double() for name in ("key_weight", "value_weight")}
    k, v = ((states @ weights[name].T).view(11, kv_heads, 3).transpose(0, 1) for name in ("key_weight", "value_weight"))
    return {"q": torch.randn(4, 6, 3).double(), "k": k, "v": v, **weights}, states


VISIBLE = torch.arange(11) <= 5 + torch.arange(6)[:, None]


def test_norms_are_those_of_the_closed_form() -> None:
    given, states = attention()
    made = attention_jacobian_norms(**given, source_len=5, visible=VISIBLE)
    for step in range(6):
        total = 0.0
        for head in range(4):
            group, q = head // 2, given["q"][head, step]
            keys, values = given["k"][group], given["v"][group]
            key_weight, value_weight = (
                given[name][group * 3 : group * 3 + 3] for name in ("key_weight", "value_weight")
            )
            seen = range(5 + step + 1)
            scores = [math.exp(float(q @ keys[j]) / math.sqrt(3)) for j in seen]
            weights = [score / sum(scores) for score in scores]
            mean = sum(weights[j] * values[j] for j in seen)
            for j in range(5):
                outer = torch.outer(values[j] - mean, q @ key_weight) / math.sqrt(3)
                total += float((weights[j] * (value_weight + outer)).square().sum())
        assert float(made[step]) == pytest.approx(math.sqrt(total), rel=1e-9)
    assert states.shape == (11, 10)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_bound_holds_and_falls_only_with_other_keys(scale: float, kv_heads: int) -> None:
    given, _ = attention(kv_heads, scale)
    norms = attention_jacobian_norms(**given, source_len=5, visible=VISIBLE)
    bound = sensitivity_bound(**given, source_len=5, others=torch.arange(1, 7))
    assert (norms <= bound).all()
    assert (bound.diff() <= 0).all()
    of_source = {**given, "k": given["k"][:, :5], "v": given["v"][:, :5]}
    alone = sensitivity_bound(**of_source, source_len=5, others=torch.zeros(6, dtype=torch.int64))
    assert (attention_jacobian_norms(**of_source, source_len=5) <= alone).all()
    assert (alone == alone[0]).all()


def test_share_is_the_formula_and_is_reached_by_the_worst_scores() -> None:
    others = torch.tensor([0, 1, 30])
    made = source_share_bound(1.5, source_len=4, others=others)
    for count, share in zip(others.tolist(), made.tolist(), strict=True):
        assert share == pytest.approx(4 * math.exp(3) / (4 * math.exp(3) + count))
        scores = torch.tensor([1.5] * 4 + [-1.5] * count)
        assert share == pytest.approx(float(scores.softmax(dim=0)[:4].sum()), rel=1e-5)
    assert source_share_bound(1000.0, source_len=1, others=torch.tensor([10**6])).tolist() == [1.0]
    with pytest.raises(ValueError, match=r"got 0 and 1.0"):
        source_share_bound(1.0, source_len=0, others=others)


@pytest.mark.parametrize("name", ["lm", "ed", "palm"])
@pytest.mark.parametrize("place", ["hidden", "logits", 0])
def test_model_norms_are_those_of_a_whole_jacobian(name: str, place: str | int) -> None:
    model, (source, target) = models()[name], pair()
    made = jacobian_norms(model, source, target, place=place, rows=7)  # type: ignore[arg-type]
    layout = model.layout(source, target, None)
    t = model.embed(target, layout.target_positions, is_source=False)

    def states(s: Tensor) -> Tensor:
        layers: list[Tensor] = []
        hidden = model.transform(s, t, layout, layers=layers)[1]
        return {"hidden": hidden, "logits": model.scores(hidden), 0: layers[0]}[place][0]

    s = model.embed(source, layout.source_positions, is_source=True).detach()
    whole = torch.autograd.functional.jacobian(states, s)
    torch.testing.assert_close(made, whole.square().sum(dim=(1, 2, 3, 4)).sqrt())


def test_random_signs_estimate_the_norm() -> None:
    model, (source, target) = models()["lm"], pair()
    exact = jacobian_norms(model, source, target, steps=[2, 6])
    estimate = jacobian_norms(model, source, target, steps=[2, 6], probes=3000, rows=1000)
    torch.testing.assert_close(estimate, exact, rtol=0.05, atol=0)


@torch.no_grad()
def test_mass_is_what_the_weights_give_to_the_source() -> None:
    source, target = torch.randint(0, 13, (3, 5)), torch.randint(0, 13, (3, 7))
    made = models()
    for name in ("ed", "palm"):
        mass = source_mass(source_attention(made[name], source, target), "reader")
        torch.testing.assert_close(mass, torch.ones(2, 7).double())
    lm: LMSeq2Seq = made["lm"]  # type: ignore[assignment]
    mass = source_mass(source_attention(lm, source, target), "attention")
    x = torch.cat(
        (
            lm.embed(source, torch.arange(5)[None], is_source=True),
            lm.embed(target, torch.arange(5, 12)[None], is_source=False),
        ),
        dim=1,
    )
    q, k, _ = lm.blocks()[0].project(x, torch.arange(12)[None])
    for step in range(7):
        scores = (q[:, :, 5 + step, None] * k[:, :, : 6 + step]).sum(-1) / 2
        weights = scores.softmax(dim=-1)
        assert float(mass[0, step]) == pytest.approx(float(weights[..., :5].sum(-1).mean()))


@torch.no_grad()
def test_recording_ends_with_its_context_and_reader_and_encoder_are_told_apart() -> None:
    model, (source, target) = models()["ed"], pair()
    with recorded_attention(model, source_len=5, target_len=7) as calls:
        model(source, target)
    assert [call.name for call in calls] == ["decoder.0.reader.core", "decoder.1.reader.core"]
    model(source, target)
    assert len(calls) == 2
    with pytest.raises(ValueError, match=r"nothing named 'attention' reads the source, only decoder.0.reader.core"):
        source_mass(source_attention(model, source, target), "attention")


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0, 2.0, 1.0, 0.0], -1.0), ([0.0, 5.0, 6.0, 7.0], 1.0), ([1.0, 3.0, 2.0, 4.0], 0.8)],
)
def test_spearman(values: list[float], expected: float) -> None:
    assert spearman_with_step(torch.tensor(values)) == pytest.approx(expected)


def test_spearman_with_ties_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = torch.randint(0, 6, (31,)).float()
    assert spearman_with_step(values) == pytest.approx(stats.spearmanr(values.numpy(), range(31)).statistic)
    assert math.isnan(spearman_with_step(torch.ones(5)))


def test_degeneration_compares_quarters() -> None:
    made = degeneration(torch.tensor([8.0, 4.0, 3.0, 3.0, 2.0, 2.0, 2.0, 1.0, 0.5]))
    assert made.last_over_first == pytest.approx(0.75 / 6.0)
    assert made.spearman < -0.95


def test_ill_calls_are_named() -> None:
    model, (source, target) = models()["lm"], pair()
    with pytest.raises(ValueError, match="2 sources and 1 targets"):
        jacobian_norms(model, source.expand(2, -1), target)
    with pytest.raises(ValueError, match="layer from 0 to 1, hidden or logits, got 2"):
        jacobian_norms(model, source, target, place=2)
    with pytest.raises(ValueError, match="got 'last'"):
        jacobian_norms(model, source, target, place="last")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"call eval\(\) first"):
        jacobian_norms(model.train(), source, target)
    with pytest.raises(ValueError, match=r"at least 4 steps, got shape \(3,\)"):
        degeneration(torch.ones(3))
