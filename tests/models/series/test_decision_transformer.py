"""Decision Transformer: what an action may depend on, padding, streaming, bounds, ill arguments."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from regard.models.series.decision_transformer import DecisionTransformer, DecisionTransformerConfig

SMALL = DecisionTransformerConfig(
    observation_dim=4,
    action_dim=2,
    context_steps=7,
    max_episode_steps=13,
    dim=12,
    num_layers=2,
    num_heads=3,
    hidden=17,
    dropout=0.0,
)
MIXERS = ["aaren", "softmax", "lightning", "linear"]


def make(mixer: str = "aaren", **changes: Any) -> DecisionTransformer:
    return DecisionTransformer(replace(SMALL, mixer=mixer, **changes)).double().eval()


def window(batch: int, steps: int) -> list[torch.Tensor]:
    returns, observations, actions = (
        torch.randn(batch, steps, *width, dtype=torch.float64) for width in ((), (4,), (2,))
    )
    return [returns, observations, actions, torch.arange(steps).expand(batch, steps)]


@pytest.mark.parametrize("mixer", MIXERS)
def test_what_an_action_depends_on(mixer: str) -> None:
    model, given = make(mixer), window(1, 6)
    leaves = [part.requires_grad_() for part in given[:3]]
    returns, observations, actions = torch.autograd.grad(model(*given)[:, 3].sum(), leaves)
    for gradient, last in ((returns[..., None], 3), (observations, 3), (actions, 2)):
        assert (gradient[0, : last + 1].abs() > 0).any(dim=-1).all()
        assert torch.equal(gradient[0, last + 1 :], torch.zeros_like(gradient[0, last + 1 :]))


@pytest.mark.parametrize("mixer", MIXERS)
def test_left_padding_equals_the_unpadded_call(mixer: str) -> None:
    model, given = make(mixer), window(2, 6)
    mask = torch.arange(6) >= torch.tensor([[0], [2]])
    returns, observations, actions, timesteps = given
    spoiled = [
        torch.where(mask, returns, torch.nan),
        torch.where(mask[..., None], observations, torch.nan),
        torch.where(mask[..., None], actions, torch.nan),
        torch.where(mask, timesteps, 99),
    ]
    found = model(*spoiled, mask=mask)
    torch.testing.assert_close(found[:1], model(*(part[:1] for part in given)))
    torch.testing.assert_close(found[1:, 2:], model(*(part[1:, 2:] for part in given)))


@pytest.mark.parametrize("mixer", MIXERS)
def test_acting_step_by_step_equals_the_window(mixer: str) -> None:
    model = make(mixer)
    returns, observations, actions, timesteps = window(2, 7)
    with torch.no_grad():
        expected = model(returns, observations, actions, timesteps)
    state, found = model.init_state(2, max_len=7), []
    for step in range(7):
        previous = actions[:, step - 1] if step else None
        action, state = model.act(returns[:, step], observations[:, step], state, previous_actions=previous)
        found.append(action)
    torch.testing.assert_close(torch.stack(found, dim=1), expected)


def test_state_of_aaren_stays_small() -> None:
    """The Transformer's cache has room for every token, Aaren's state for none."""
    sizes = {}
    for mixer in ("aaren", "softmax"):
        model = DecisionTransformer(replace(SMALL, mixer=mixer, max_episode_steps=500))
        sizes[mixer] = [sum(layer.nbytes for layer in model.init_state(1, max_len=n)) for n in (5, 500)]
    assert sizes["aaren"][0] == sizes["aaren"][1]
    assert sizes["softmax"][1] > 50 * sizes["softmax"][0]


def test_actions_keep_to_their_bound() -> None:
    given = window(1, 3)
    for bound in (1.0, 2.5):
        model = make(max_action=bound)
        torch.nn.init.constant_(model.head.bias, 100.0)
        torch.testing.assert_close(model(*given), torch.full((1, 3, 2), bound, dtype=torch.float64))
    free = make(max_action=None)
    torch.nn.init.constant_(free.head.bias, 100.0)
    assert float(free(*given).detach().min()) > 50


def test_time_steps_matter() -> None:
    model, given = make(), window(1, 3)
    later = [*given[:3], given[3] + 5]
    assert float((model(*given) - model(*later)).detach().abs().max()) > 1e-3
    with pytest.raises(IndexError):
        model(*given[:3], given[3] + 11)


@pytest.mark.parametrize(
    ("place", "name", "shape"), [(1, "observations", (2, 3, 5)), (2, "actions", (2, 2, 2)), (3, "timesteps", (2, 4))]
)
def test_ill_windows_are_named(place: int, name: str, shape: tuple[int, ...]) -> None:
    given = window(2, 3)
    given[place] = torch.zeros(shape)
    with pytest.raises(ValueError, match=f"{name} must have shape .*, got {re.escape(str(shape))}"):
        make()(*given)


def test_ill_steps_and_configs_are_named() -> None:
    model = make()
    with pytest.raises(ValueError, match=re.escape("observations must have shape (2, 4), got (2, 3)")):
        model.act(torch.zeros(2), torch.zeros(2, 3), model.init_state(2))
    with pytest.raises(ValueError, match=re.escape("previous_actions must have shape (2, 2), got (1, 2)")):
        model.act(torch.zeros(2), torch.zeros(2, 4), model.init_state(2), previous_actions=torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"returns_to_go must have shape \(batch, steps\), got \(2,\)"):
        model(torch.zeros(2), *window(2, 3)[1:])
    with pytest.raises(ValueError, match="action_dim must be positive, got 0"):
        replace(SMALL, action_dim=0)
    with pytest.raises(ValueError, match="max_action must be positive or None, got 0"):
        replace(SMALL, max_action=0.0)
