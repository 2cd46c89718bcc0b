"""Landmark attention's language model: counted parameters, the formula, hidden landmarks, windows, names."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, layer_norm

from regard.models.language.landmark import LandmarkLM
from regard.models.language.landmark_config import LandmarkConfig
from regard.tasks.generation import Sampling, generate

TINY = LandmarkConfig(vocab_size=17, dim=12, num_layers=2, num_heads=3, block_size=4, seq_len=29, window=11)


def made(**changes: Any) -> LandmarkLM:
    """A network whose every parameter differs from its start, in float64."""
    model = LandmarkLM(replace(TINY, **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def ids(*shape: int) -> Tensor:
    return torch.randint(0, TINY.vocab_size, shape)


def with_landmarks(tokens: Tensor, block_size: int, landmark: int) -> tuple[Tensor, list[int]]:
    """Tokens with landmarks between them, and where the tokens stand."""
    columns, places = [], []
    for place, column in enumerate(tokens.unbind(1)):
        places.append(len(columns))
        columns.append(column)
        if place % block_size == block_size - 1:
            columns.append(torch.full_like(column, landmark))
    return torch.stack(columns, dim=1), places


# --------------------------------------------------------------------------------------------------- sizes and names


def test_parameters_are_those_counted_on_the_authors_code() -> None:
    variant = LandmarkLM.VARIANTS["landmark_gpt2"]
    with torch.device("meta"):
        model = LandmarkLM(variant.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == variant.reported.params == 202_531_840
    layer = 12 * 1024**2 + 2 * 1024
    assert variant.reported.params == 12 * layer + 1024 + 50304 * 1024


def authors_layout(*, vocab: int, dim: int, layers: int, bias: bool) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocab, dim), "transformer.ln_f.weight": (dim,)}
    for layer in range(layers):
        prefix = f"transformer.h.{layer}"
        shapes |= {
            f"{prefix}.ln_1.weight": (dim,),
            f"{prefix}.attn.c_attn.weight": (3 * dim, dim),
            f"{prefix}.attn.c_proj.weight": (dim, dim),
            f"{prefix}.ln_2.weight": (dim,),
            f"{prefix}.mlp.c_fc.weight": (4 * dim, dim),
            f"{prefix}.mlp.c_proj.weight": (dim, 4 * dim),
        }
    if bias:
        weights = [name for name in shapes if "wte" not in name]
        shapes |= {name.replace("weight", "bias"): shapes[name][:1] for name in weights}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("bias", [False, True])
def test_loads_the_authors_layout_strictly(bias: bool) -> None:
    model = LandmarkLM(replace(TINY, landmark_id=16, bias=bias))
    layout = authors_layout(vocab=17, dim=12, layers=2, bias=bias)
    constants = {
        "transformer.wpe.freqs": torch.ones(2),
        "transformer.h.1.attn.bias": torch.ones(1, 1, 9, 9),
        "lm_head.weight": layout["transformer.wte.weight"].clone(),
    }
    for given in (layout, {**layout, **constants}):
        model.load_reference(given)
    own = model.state_dict()
    assert torch.equal(own["blocks.1.mlp.2.weight"], layout["transformer.h.1.mlp.c_proj.weight"])
    assert torch.equal(own["blocks.0.mixer.q_proj.weight"][:2], layout["transformer.h.0.attn.c_attn.weight"][0:4:2])
    if bias:
        assert torch.equal(own["blocks.0.mixer.v_proj.bias"], layout["transformer.h.0.attn.c_attn.bias"][24:])
    with pytest.raises(KeyError, match=r"missing keys: blocks\.1\.mixer\.o_proj\.weight"):
        model.load_reference({name: x for name, x in layout.items() if name != "transformer.h.1.attn.c_proj.weight"})
    with pytest.raises(KeyError, match=r"unknown keys: transformer\.extra"):
        model.load_reference({**layout, "transformer.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"lm_head\.weight differs"):
        model.load_reference({**layout, "lm_head.weight": torch.zeros(17, 12)})
    with pytest.raises(ValueError, match="give landmark_id"):
        LandmarkLM(TINY).load_reference(layout)


def test_weights_begin_as_those_of_gpt2() -> None:
    model = LandmarkLM(LandmarkConfig(dim=256, num_layers=2))
    assert float(model.embedding.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    for name, parameter in model.blocks[1].named_parameters():
        scaled = name.endswith(("o_proj.weight", "mlp.2.weight"))
        if parameter.ndim == 2:
            assert float(parameter.detach().std()) == pytest.approx(0.01 if scaled else 0.02, rel=0.02), name


# --------------------------------------------------------------------------------------------------- one pass


@pytest.mark.parametrize("landmark_id", [None, 3])
def test_network_is_the_formula(landmark_id: int | None) -> None:
    model, tokens = made(landmark_id=landmark_id), ids(2, 23)
    landmark = 17 if landmark_id is None else 3
    spaced, places = with_landmarks(tokens, 4, landmark)
    with torch.no_grad():
        x = model.embedding.weight[spaced]
        for block in model.blocks:
            x = x + block.mixer(layer_norm(x, (12,), block.mixer_norm.weight))  # type: ignore[operator, union-attr]
            first, _, second = block.mlp.children()  # type: ignore[union-attr]
            inner = gelu(layer_norm(x, (12,), block.mlp_norm.weight) @ first.weight.T)  # type: ignore[union-attr, operator]
            x = x + inner @ second.weight.T  # type: ignore[union-attr, operator]
        scores = layer_norm(x, (12,), model.norm.weight) @ model.embedding.weight[:17].T
        torch.testing.assert_close(model(tokens), scores[:, places])
        torch.testing.assert_close(model(tokens.int()), scores[:, places])
        assert model(tokens).shape == (2, 23, 17)


def test_texts_that_hold_landmarks_give_the_same_scores() -> None:
    model, tokens = made(), ids(2, 27)
    spaced, places = with_landmarks(tokens, 4, 17)
    with torch.no_grad():
        scores = model.stream_scores(spaced)
        assert scores.shape == (2, len(spaced[0]), 17)
        torch.testing.assert_close(scores[:, places], model(tokens))
        # another layout: a text that begins within a block
        later = model.stream_scores(spaced[:, 2:])
        assert not torch.allclose(later[:, 3:], scores[:, 5:])
    with pytest.raises(ValueError, match="ids has 40 places, seq_len=29 with landmarks makes 36"):
        model.stream_scores(ids(1, 40))


def test_loss_is_that_of_the_stream() -> None:
    model, tokens = made(end_id=5), ids(3, 26)
    tokens[0, 3] = tokens[1, 7] = 5
    spaced, _ = with_landmarks(tokens, 4, 17)
    targets = model.stream_targets(spaced)
    stream = cross_entropy(model.stream_scores(spaced).flatten(0, 1), targets.flatten(), ignore_index=-1)
    torch.testing.assert_close(model.loss(tokens), stream)
    kept = tokens[:, :-1] != 5
    nats = cross_entropy(model(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:], reduction="none")
    torch.testing.assert_close(model.loss(tokens), nats[kept].mean())


def test_masked_tokens_leave_no_trace() -> None:
    model, tokens = made(), ids(3, 25)
    mask = torch.rand(3, 25) < 0.6
    mask[2] = False
    with torch.no_grad():
        scores = model(tokens, mask=mask)
        assert not scores[~mask].any()
        for row in range(2):
            torch.testing.assert_close(scores[row][mask[row]], model(tokens[row][mask[row]][None])[0])


def test_checkpointing_and_dropout_are_for_training() -> None:
    tokens, gradients = ids(2, 23), []
    plain = made()
    for checkpointing in (False, True):
        model = LandmarkLM(replace(TINY, checkpointing=checkpointing)).double()
        model.load_state_dict(plain.state_dict())
        gradients.append(torch.autograd.grad(model.train().loss(tokens), [*model.parameters()]))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    dropped = LandmarkLM(replace(TINY, dropout=0.3, gate_drop=0.3)).double()
    dropped.load_state_dict(plain.state_dict())
    torch.testing.assert_close(dropped.eval()(tokens), plain(tokens))
    assert not torch.allclose(dropped.train()(tokens), dropped(tokens))


def test_what_is_not_taken_is_refused() -> None:
    model = made()
    with pytest.raises(ValueError, match="segments are not taken"):
        model(ids(1, 4), segments=torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="tokens has 30 of them, training takes at most seq_len=29"):
        model.train()(ids(1, 30))
    with pytest.raises(ValueError, match="state has 3 rows and tokens has 2"):
        model.eval().step(ids(2, 4), model.init_state(3))


# --------------------------------------------------------------------------------------------------- the memory


def test_with_all_blocks_retrieved_steps_are_the_pass() -> None:
    """As long as there are no more blocks than are retrieved, in every layer."""
    model, tokens = made(top_k=7), ids(2, 29)
    with torch.no_grad():
        whole = model(tokens)
        for chunks, max_len in (([29], 29), ([1] * 29, None), ([4, 4, 1, 3, 9, 8], 29), ([12, 17], None)):
            state, pieces = model.init_state(2, max_len=max_len), []
            for piece in tokens.split(chunks, dim=1):
                scores, state = model.step(piece, state)
                pieces.append(scores)
            torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
            assert state[0].position.tolist() == [29 + 7] * 2


def test_longer_texts_are_read_in_windows() -> None:
    model, tokens = made(), ids(2, 71)
    with torch.no_grad():
        scores = model(tokens)
        state, pieces = model.init_state(2), []
        for piece in tokens.split(11, dim=1):
            part, state = model.step(piece, state)
            pieces.append(part)
        torch.testing.assert_close(scores, torch.cat(pieces, dim=1))
        shapes = [part.shape[1] for part, _ in model.read(tokens)]
        assert shapes == [11] * 6 + [5]
        # the first two blocks are out of a window's sight, but not out of reach
        changed = tokens.clone()
        changed[:, :8] = (changed[:, :8] + 1) % 17
        everything, nothing = made_like(model, top_k=20), made_like(model, top_k=0)
        assert not torch.allclose(everything(changed)[:, 60:], everything(tokens)[:, 60:])
        torch.testing.assert_close(nothing(changed)[:, 60:], nothing(tokens)[:, 60:])


def made_like(model: LandmarkLM, **changes: Any) -> LandmarkLM:
    other = LandmarkLM(replace(model.config, **changes)).double().eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("changes", [{}, {"max_blocks": 3}, {"selection": "max_over_tokens"}, {"offload": "disk"}])
def test_rows_of_other_lengths_are_read_as_if_alone(changes: dict[str, Any]) -> None:
    model = made(**changes)
    calls = [
        (ids(3, n), torch.rand(3, n) < p) for n, p in ((9, 0.7), (1, 0.6), (11, 0.5), (1, 0.5), (10, 1.1), (1, 1.1))
    ]
    alone, state = [model.init_state(1) for _ in range(3)], model.init_state(3)
    with torch.no_grad():
        for tokens, mask in calls:
            scores, state = model.step(tokens, state, mask=mask)
            assert not scores[~mask].any()
            for row in range(3):
                if mask[row].any():
                    expected, alone[row] = model.step(tokens[row][mask[row]][None], alone[row])
                    torch.testing.assert_close(scores[row][mask[row]], expected[0])
        follow = ids(3, 1)
        scores, _ = model.step(follow, copy.copy(state))
        for row in range(3):
            torch.testing.assert_close(scores[row], model.step(follow[row : row + 1], alone[row])[0][0])


def test_generates_token_by_token() -> None:
    model, prompt = made(), ids(37)
    made_tokens = list(generate(model, prompt, count=12, sampling=Sampling(temperature=0)))
    with torch.no_grad():
        scores, state = model.step(prompt[None], model.init_state(1))
        expected = []
        for _ in range(12):
            expected.append(int(scores[0, -1].argmax()))
            scores, state = model.step(torch.tensor([expected[-1:]]), state)
    assert made_tokens == expected


def test_learns_to_repeat() -> None:
    torch.manual_seed(1)
    model = LandmarkLM(replace(TINY, dim=24, seq_len=28))
    tokens = torch.arange(7).repeat(4)[None].expand(3, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model.loss(tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
