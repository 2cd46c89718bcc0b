"""SEA against its formulas in loops, its forms against each other, its decoding, and its conversion from softmax."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.mixers.sequence.sea import SEAAttention
from regard.mixers.sequence.softmax import SoftmaxAttention

DOUBLE = torch.float64
SIZES: dict[str, Any] = {"num_heads": 3, "keys_per_query": 3, "estimate_width": 8, "max_positions": 311}


def scattered(dim: int = 30, **options: Any) -> SEAAttention:
    """A layer whose norms are no longer the identity, so that no two columns are tied."""
    mixer = SEAAttention(dim, **{**SIZES, **options}).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer


def layer_by_loops(mixer: SEAAttention, x: Tensor) -> Tensor:
    """From the estimate on: budget, columns, keys, softmax, gates and average, one query after the other."""
    tokens, width, heads = x.shape[1], mixer.head_dim, mixer.num_heads
    q, k, v = (y[0] for y in mixer.project(x[:1]))
    estimate = mixer.attention.estimate(*mixer.project(x[:1]))
    columns, scale = mixer.attention.sizes.estimate_width, 1.0 if mixer.causal else width**-0.5
    mixed = torch.zeros(heads, tokens, width, dtype=x.dtype)
    mean = estimate.probabilities[0].mean(dim=1)
    for i in range(tokens):
        seen = i + 1 if mixer.causal else tokens
        budget = max(1, round(heads * mixer.attention.sizes.keys_per_query * columns / seen))
        ranked = sorted(
            ((h, m) for h in range(heads) for m in range(columns)),
            key=lambda place: -float(estimate.probabilities[0, place[0], i, place[1]]),
        )
        chosen = set(ranked[:budget])
        for h in range(heads):
            column = [math.floor((j + 0.5) / seen * columns - 1e-4) for j in range(seen)]
            kept = [j for j in range(seen) if (h, column[j]) in chosen]
            powers = [math.exp(scale * float(q[h, i] @ k[h, j])) for j in kept]
            context = sum((p / sum(powers) * v[h, j] for p, j in zip(powers, kept, strict=True)), torch.zeros(width))
            first, second = mixer.attention.gates(estimate.encoded[0, h, i]).sigmoid()
            weights = [1 / seen if mixer.causal else float(mean[h, column[j]]) for j in range(seen)]
            average = sum(weight * v[h, j] for j, weight in enumerate(weights))
            mixed[h, i] = second * first * context + (1 - second) * average
    return mixer.o_proj(mixed.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("form", ["square", "gathered"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 23])
def test_layer_is_the_formula(tokens: int, causal: bool, form: str) -> None:
    mixer = scattered(causal=causal, form=form)
    x = torch.randn(1, tokens, 30, dtype=DOUBLE)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x)[0], layer_by_loops(mixer, x))


@pytest.mark.parametrize("options", [{}, {"oversample": 2.0}, {"num_kv_heads": 1, "rope_base": 50.0}], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_both_forms_have_the_same_values_and_gradients(training: bool, causal: bool, options: dict[str, Any]) -> None:
    x, results = torch.randn(2, 131, 30, dtype=DOUBLE), []
    weight = torch.randn(2, 131, 30, dtype=DOUBLE)
    state = scattered(causal=causal, **options).state_dict()
    for form in ("square", "gathered"):
        mixer = SEAAttention(30, **SIZES, causal=causal, form=form, jitter=1.0, **options).double()  # type: ignore[arg-type]
        mixer.load_state_dict(state)
        mixer.train(training)
        torch.manual_seed(5)
        leaf = x.clone().requires_grad_()
        y = mixer(leaf)
        learned = [p for p in mixer.parameters() if p.requires_grad]
        found = torch.autograd.grad((y * weight).sum(), [leaf, *learned], allow_unused=True)
        results.append([y, *(g for g in found if g is not None)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-9)


def test_jitter_acts_while_training_only() -> None:
    mixer, x = scattered(causal=True, jitter=1.0), torch.randn(1, 67, 30, dtype=DOUBLE)
    with torch.no_grad():
        assert torch.equal(mixer(x), mixer(x))
        mixer.train()
        assert not torch.equal(mixer(x), mixer(x))


@pytest.mark.parametrize("pooling", ["query", "head", "batch"])
def test_every_pooling_keeps_as_many_keys_on_average(pooling: str) -> None:
    mixer = scattered(causal=False, pooling=pooling, keys_per_query=4, estimate_width=16)
    kept = mixer.kept_map(torch.randn(2, 64, 30, dtype=DOUBLE)).double()
    assert float(kept.sum()) == 2 * 3 * 64 * 4
    assert (kept.sum(dim=-1) == 4).all() == (pooling == "query")
    assert (kept.sum(dim=(2, 3)) == 64 * 4).all() == (pooling in ("query", "head"))


def test_keys_of_a_query_are_bounded_while_the_length_grows() -> None:
    mixer = SEAAttention(30, **{**SIZES, "max_positions": 2048}, causal=True).eval()
    kept = mixer.kept_map(torch.randn(1, 2048, 30))
    assert int(kept.sum(dim=(1, 3)).max()) <= 3 * 3 + 2048 // 8
    assert not kept.triu(1).any()


@pytest.mark.parametrize("chunks", [[1] * 31, [64, 1, 1, 65], [131]])
def test_decoding_equals_forward(chunks: list[int]) -> None:
    mixer = scattered(causal=True, num_kv_heads=1, rope_base=100.0)
    x = torch.randn(2, sum(chunks), 30, dtype=DOUBLE)
    with torch.no_grad():
        state, pieces = mixer.init_state(2), []
        for piece in x.split(chunks, dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=1), mixer(x), rtol=1e-8, atol=1e-10)


def test_positions_run_out_with_a_clear_message() -> None:
    mixer = scattered(causal=True, max_positions=9)
    x = torch.randn(2, 10, 30, dtype=DOUBLE)
    with pytest.raises(ValueError, match="max_positions=9 positions, got 10 tokens"):
        mixer(x)
    with torch.no_grad():
        _, state = mixer.step(x[:, :9], mixer.init_state(2))
        with pytest.raises(ValueError, match="max_positions=9 positions, got 10 tokens"):
            mixer.step(x[:, 9:], state)
        padded = torch.tensor([[True] * 8 + [False] * 2] * 2)
        _, state = mixer.step(x, mixer.init_state(2), mask=padded)
        y, _ = mixer.step(x[:, :1], state)
    assert y.isfinite().all()


def test_the_estimated_map_repeats_columns_and_respects_masks() -> None:
    mixer, x = scattered(causal=True), torch.randn(2, 19, 30, dtype=DOUBLE)
    with torch.no_grad():
        square = mixer.estimated_map(x)
        probabilities = mixer.attention.estimate(*mixer.project(x)).probabilities
        for j in range(19):
            assert torch.equal(square[:, :, 18, j], probabilities[:, :, 18, math.floor((j + 0.5) / 19 * 8 - 1e-4)])
        assert torch.equal(square.triu(1), torch.zeros_like(square))
        mask = torch.rand(2, 19) < 0.6
        masked = mixer.estimated_map(x, mask=mask)
        for row in range(2):
            real = mask[row]
            alone = mixer.estimated_map(x[row : row + 1, real])[0]
            torch.testing.assert_close(masked[row][:, real][:, :, real], alone)
            assert not masked[row][:, ~real].any()


def test_another_number_of_keys_needs_no_training() -> None:
    mixer, x = scattered(causal=True), torch.randn(1, 67, 30, dtype=DOUBLE)
    before = mixer.kept_map(x)
    mixer.attention.keep_per_query(6)
    after = mixer.kept_map(x)
    assert not (before & ~after).any()
    assert after.sum() > 1.7 * before.sum()
    with pytest.raises(ValueError, match="keys_per_query must be at least 1, got 0"):
        mixer.attention.keep_per_query(0)


@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_and_long_inputs(causal: bool) -> None:
    mixer = (
        SEAAttention(32, num_heads=2, causal=causal, keys_per_query=8, estimate_width=16, form="gathered")
        .bfloat16()
        .eval()
    )
    x = torch.randn(1, 499, 32).bfloat16()
    with torch.no_grad():
        y, expected = mixer(x), mixer.float()(x.float())
        assert y.dtype == torch.bfloat16
        assert (y - expected).norm() / expected.norm() < 0.02
        assert mixer(1e3 * x.float()).isfinite().all()


# --------------------------------------------------------------------------------------------------- conversion


def loss_by_loops(mixer: SEAAttention, x: Tensor, teacher: SoftmaxAttention) -> float:
    """Step by step: 0.1 KL and squared error of estimate and scores, and the output's squared error."""
    tokens, heads, width = x.shape[1], mixer.num_heads, mixer.head_dim
    wanted = teacher.attention_map(x)
    context = wanted @ teacher.values(x)
    q, k, _ = mixer.project(x)
    estimate = mixer.attention.estimate(*mixer.project(x))
    columns = mixer.attention.sizes.estimate_width
    divergence = squares = 0.0
    for b in range(len(x)):
        for h in range(heads):
            for i in range(tokens):
                seen = i + 1 if mixer.causal else tokens
                scale = 1.0 if mixer.causal else width**-0.5
                column = [math.floor((j + 0.5) / seen * columns - 1e-4) for j in range(seen)]
                resized = estimate.scores[b, h, i, column].softmax(dim=0)
                scores = (scale * k[b, h, :seen] @ q[b, h, i]).softmax(dim=0)
                for found in (resized, scores):
                    p = wanted[b, h, i, :seen]
                    divergence += float((p * (p.log() - found.log())).sum())
                    squares += float((p - found).square().sum()) / tokens
    rows = len(x) * tokens
    of_output = (mixer.mix(x, context=None, mask=None, segments=None, bias=None) - context).square().mean()
    kl = divergence / (rows * heads if mixer.causal else rows)
    return 0.1 * kl + squares / (rows * heads) + float(of_output)


@pytest.mark.parametrize("causal", [False, True])
def test_distillation_loss_is_the_formula_and_reaches_every_parameter(causal: bool) -> None:
    teacher = SoftmaxAttention(30, num_heads=3, causal=causal).double()
    mixer = SEAAttention.from_softmax(teacher, keys_per_query=3, estimate_width=8, max_positions=31).eval()
    assert mixer.o_proj.weight.dtype == DOUBLE
    x = torch.randn(2, 13, 30, dtype=DOUBLE)
    q, k, v = (p(x).view(2, 13, 3, 10).transpose(1, 2) for p in (teacher.q_proj, teacher.k_proj, teacher.v_proj))
    loss = mixer.distillation_loss(x, q, k, v)
    with torch.no_grad():
        assert float(loss) == pytest.approx(loss_by_loops(mixer, x, teacher), rel=1e-6)
        torch.testing.assert_close(mixer.transfer_loss(x), loss)
    learned = list(mixer.estimate_parameters())
    gradients = torch.autograd.grad(loss, learned)
    names = {id(p): name for name, p in mixer.named_parameters()}
    for parameter, gradient in zip(learned, gradients, strict=True):
        # raising all scores of a row alike changes none of their softmaxes
        inert = names[id(parameter)].endswith("last_conv.bias")
        assert (gradient.norm() > 1e-9) != inert, names[id(parameter)]


def test_a_few_steps_of_transfer_lower_the_loss_and_leave_the_teacher_alone() -> None:
    teacher = SoftmaxAttention(30, num_heads=3, causal=True, rope_base=100.0, num_kv_heads=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    mixer = SEAAttention.from_softmax(teacher, keys_per_query=4, estimate_width=8, max_positions=31)
    x = torch.randn(4, 29, 30)
    optimizer = torch.optim.Adam(mixer.estimate_parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = mixer.transfer_loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert torch.equal(mixer.q_proj.weight, teacher.q_proj.weight)


def test_what_stands_at_padding_does_not_change_the_distillation_loss() -> None:
    for causal in (False, True):
        mixer, x = scattered(causal=causal), torch.randn(1, 13, 30, dtype=DOUBLE)
        mask = (torch.arange(13) < 9)[None]
        with torch.no_grad():
            padded = mixer.transfer_loss(x, mask=mask)
            far = torch.where(mask[..., None], x, 30.0)
            torch.testing.assert_close(mixer.transfer_loss(far, mask=mask), padded)
        with pytest.raises(ValueError, match="pad at the right"):
            mixer.transfer_loss(x, mask=mask.flip(1))


@pytest.mark.parametrize("causal", [False, True])
def test_a_lesson_also_gives_the_output(causal: bool) -> None:
    mixer, x = scattered(causal=causal), torch.randn(2, 13, 30, dtype=DOUBLE)
    mask = torch.arange(13) < torch.tensor([[13], [8]])
    with torch.no_grad():
        q, k, v = mixer.project(x)
        for given in (None, mask):
            torch.testing.assert_close(mixer.lesson(x, q, k, v, mask=given)[0], mixer(x, mask=given))


def test_low_rank_changes_start_as_none() -> None:
    teacher = SoftmaxAttention(24, num_heads=3, causal=True)
    torch.manual_seed(0)
    plain = SEAAttention.from_softmax(teacher, keys_per_query=3, estimate_width=8).eval()
    changed = SEAAttention.from_softmax(teacher, keys_per_query=3, estimate_width=8, lora_rank=2).eval()
    changed.attention.load_state_dict(plain.attention.state_dict())
    x = torch.randn(1, 11, 24)
    torch.testing.assert_close(changed(x), plain(x))
    assert len(list(changed.estimate_parameters())) == len(list(plain.estimate_parameters())) + 6
    torch.testing.assert_close(changed.transfer_loss(x), plain.transfer_loss(x))
    with torch.no_grad():
        changed.k_lora.lora_b.normal_()  # type: ignore[union-attr]
    assert (changed(x) - plain(x)).abs().max() > 1e-4
    loss = changed.transfer_loss(x)
    assert (loss - plain.transfer_loss(x)).abs() > 1e-4
    loss.backward()
    taught = {name for name, parameter in changed.named_parameters() if parameter.grad is not None}
    assert taught == {name for name, p in changed.named_parameters() if id(p) in map(id, changed.estimate_parameters())}


def test_reference_layout_is_loaded_strictly() -> None:
    mixer = scattered(causal=True, qkv_bias=True)
    inner = {
        "encoder": "attention_predictor_enc.0",
        "encoder_norm": "attention_predictor_enc.1",
        "decoder.expand": "attention_predictor_dec_row.0",
        "decoder.first_norm": "attention_predictor_cnn.0.module",
        "decoder.first_conv": "attention_predictor_cnn.1.module.net.0.module",
        "decoder.second_conv": "attention_predictor_cnn.1.module.net.2.module",
        "decoder.last_conv": "attention_predictor_cnn.1.module.net.5.module",
        "decoder.last_norm": "attention_predictor_cnn.2.module",
    }
    theirs: dict[str, Tensor] = {}
    prefix = "perlin_self_attention.attention."
    for name, value in mixer.state_dict().items():
        short = name.removeprefix("attention.estimate.").rpartition(".")
        if name.endswith("positions"):
            theirs[prefix + "v_eye_learned_causal"] = value[None, None]
        elif name.endswith("directions"):
            theirs[prefix + "performer.projection_matrix"] = value
        elif name.endswith("calls"):
            theirs[prefix + "performer_proj_updater.calls_since_last_redraw"] = value
        elif name.startswith("attention.gates"):
            theirs[prefix + name.replace("attention.gates", "attention_predictor_dec_scaler.0")] = value
        elif short[0] in inner:
            value = torch.nn.functional.pad(value, (0, 0, 0, value.shape[2] - 1)) if value.ndim == 4 else value
            theirs[f"{prefix}{inner[short[0]]}.{short[2]}"] = value
        else:
            theirs[name.replace("o_proj", "out_proj")] = value
    theirs["perlin_self_attention.query_lora.lora_a"] = torch.zeros(32, 30)
    theirs[prefix + "norm.weight"] = torch.ones(30)
    fresh, x = scattered(causal=True, qkv_bias=True), torch.randn(1, 17, 30, dtype=DOUBLE)
    fresh.load_reference(theirs)
    assert torch.equal(fresh(x), mixer(x))
    with pytest.raises(KeyError, match="another"):
        fresh.load_reference({**theirs, prefix + "another": torch.zeros(1)})
    del theirs[prefix + "attention_predictor_enc.0.bias"]
    with pytest.raises(KeyError, match=r"missing keys: estimate\.encoder\.bias"):
        fresh.load_reference(theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"causal": True, "estimate_width": 10}, "multiple of 4, got 10"),
        ({"estimate_width": 9}, "multiple of 2, got 9"),
        ({"keys_per_query": 0}, "keys_per_query must be at least 1, got 0"),
        ({"pooling": "rows"}, "causal_batch, query, head, batch, got 'rows'"),
        ({"causal": True, "pooling": "query"}, "causal=True needs pooling='causal_batch'.*got 'query'"),
        ({"pooling": "head", "form": "gathered"}, "got pooling='head'"),
        ({"form": "sparse"}, "auto, square, gathered, got 'sparse'"),
        ({"max_positions": 0}, "max_positions=0"),
        ({"jitter": 1.5}, "jitter=1.5"),
        ({"oversample": 0.5}, "oversample must be at least 1, got 0.5"),
        ({"num_heads": 30}, "got d=1"),
        ({"lora_rank": 0}, "rank=0"),
    ],
)
def test_ill_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SEAAttention(30, **{**SIZES, **options})


def test_ill_teachers_are_named() -> None:
    mixer, x = scattered(causal=True), torch.randn(1, 5, 30, dtype=DOUBLE)
    q = torch.zeros(1, 3, 4, 10, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"shape \(1, 3, 4, 10\), they must have \(1, 3, 5, 10\)"):
        mixer.distillation_loss(x, q, q, q)
    with pytest.raises(ValueError, match="needs causal=True"):
        scattered(causal=False).init_state(2)
