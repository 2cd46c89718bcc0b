"""RCMHA's language model: counted parameters, the formula with a memory, training, decoding, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, relu

from regard.models.language.rcmha import ATTENTIONS, RCMHALanguageConfig, RCMHALanguageModel

SMALL = RCMHALanguageConfig(
    vocab_size=31, dim=20, num_layers=2, num_heads=4, hidden=23, mem_len=5, max_positions=29, conv_state=True
)


def made(**changes: Any) -> RCMHALanguageModel:
    """A network whose every parameter differs from its start, in float64."""
    model = RCMHALanguageModel(replace(SMALL, **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ids(*shape: int) -> Tensor:
    return torch.randint(0, SMALL.vocab_size, shape)


@pytest.mark.parametrize("name", RCMHALanguageModel.VARIANTS)
def test_parameters_are_those_counted(name: str) -> None:
    variant = RCMHALanguageModel.VARIANTS[name]
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in RCMHALanguageModel(variant.config).parameters())
    assert count == variant.reported.params
    assert count == 7_496_897 - (6 * 192 if name.startswith("rmha") else 0)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_segments_are_the_formula(attention: Any) -> None:
    model = made(attention=attention)
    segments = ids(2, 4), ids(2, 3), ids(2, 6)
    memory, found = None, None
    pasts: list[Tensor | None] = [None, None]
    with torch.no_grad():
        for tokens in segments:
            found, memory = model.read(tokens, memory)
            x = model.embedding(tokens)
            for layer, block in enumerate(model.blocks):
                norms = [(norm.weight, norm.bias) for norm in (block.mixer_norm, block.mlp_norm)]  # type: ignore[union-attr]
                past = x if pasts[layer] is None else torch.cat((pasts[layer], x), dim=1)  # type: ignore[list-item]
                everything = layer_norm(past, (20,), *norms[0])
                before = everything[:, : past.shape[1] - x.shape[1]]
                if attention == "softmax":
                    mixed = block.mixer(everything)[:, before.shape[1] :]  # type: ignore[operator]
                else:
                    mixed = block.mixer.with_memory(everything[:, before.shape[1] :], before)  # type: ignore[operator, union-attr]
                pasts[layer] = past[:, -5:]
                x = x + mixed
                up, down = (block.get_submodule(f"mlp.{part}") for part in (0, 3))
                x = x + down(relu(up(layer_norm(x, (20,), *norms[1]))))
            torch.testing.assert_close(found, model.head(layer_norm(x, (20,), model.norm.weight, model.norm.bias)))
            for kept, past in zip(memory, pasts, strict=True):
                torch.testing.assert_close(kept, past)


def test_a_memory_has_no_history_of_gradients() -> None:
    model = made().train()
    _, memory = model.read(ids(2, 4))
    scores, _ = model.read(ids(2, 3), memory)
    assert not any(kept.requires_grad for kept in memory)
    scores.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_one_segment_is_the_plain_call() -> None:
    model, tokens = made(), ids(2, 9)
    torch.testing.assert_close(model.read(tokens)[0], model(tokens))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("chunks", [[1] * 11, [7, 1, 3]])
def test_decoding_equals_forward(attention: Any, chunks: list[int]) -> None:
    model, tokens = made(attention=attention), ids(2, 11)
    with torch.no_grad():
        state, pieces = model.init_state(2, max_len=11), []
        for piece in tokens.split(chunks, dim=1):
            scores, state = model.step(piece, state)
            pieces.append(scores)
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens))


def test_padding_changes_nothing() -> None:
    model, tokens, real = made(), ids(2, 9), torch.rand(2, 9) < 0.7
    real[:, 4] = True
    with torch.no_grad():
        masked = model(tokens, mask=real)
        for row in range(2):
            torch.testing.assert_close(masked[row, real[row]], model(tokens[row : row + 1, real[row]])[0])


def test_checkpointing_and_dropout() -> None:
    plain, thrifty = made().train(), made(checkpointing=True).train()
    thrifty.load_state_dict(plain.state_dict())
    tokens = ids(2, 7)
    for model in (plain, thrifty):
        model(tokens).square().sum().backward()
    for ours, theirs in zip(thrifty.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    model = made(dropout=0.5)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model.read(tokens)[0], model.read(tokens)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be positive, got 0"),
        ({"num_layers": 0}, "num_layers must be positive, got 0"),
        ({"hidden": 0}, "hidden must be positive, got 0"),
        ({"mem_len": 0}, "mem_len must be positive, got 0"),
        ({"max_positions": 0}, "max_positions must be positive, got 0"),
        ({"dim": 30}, "dim=30 and num_heads=4"),
        ({"attention": "mha"}, "rcmha, rmha, mdha, softmax, got 'mha'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_ill_calls_are_named() -> None:
    model = made()
    with pytest.raises(ValueError, match=r"\(batch, tokens\) with at least 1 token, got \(3,\)"):
        model.read(ids(3))
    with pytest.raises(ValueError, match="there are 1 memories and 2 layers"):
        model.read(ids(2, 3), (torch.zeros(2, 4, 20),))
    with pytest.raises(ValueError, match="30 tokens, memory included, are more than max_positions=29"):
        model(ids(2, 30))
    with pytest.raises(ValueError, match="reach over the borders of packed sequences"):
        model(ids(2, 5), segments=torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(KeyError, match="unknown keys: extra"):
        model.load_reference({"extra": torch.zeros(1)})
