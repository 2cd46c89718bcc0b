"""What is computed from parameters is kept as long as it is right, and no longer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from regard.layers.derived import DerivedTensors


class Doubled(nn.Module):
    """Twice its weights, and how often they were computed."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(3))
        self.inner = nn.Linear(3, 3, bias=False)
        self.derived = DerivedTensors()
        self.calls = 0

    def compute(self) -> tuple[Tensor, ...]:
        self.calls += 1
        return 2 * self.own, 2 * self.inner.weight

    def forward(self) -> tuple[Tensor, ...]:
        return self.derived.get(self, self.compute)


def is_right(module: Doubled, found: tuple[Tensor, ...]) -> bool:
    return torch.equal(found[0], 2 * module.own) and torch.equal(found[1], 2 * module.inner.weight)


def test_computed_once_without_gradients() -> None:
    module = Doubled()
    with torch.no_grad():
        assert all(is_right(module, module()) for _ in range(3))
    assert module.calls == 1
    module.derived.forget()
    with torch.no_grad():
        module()
    assert module.calls == 2
    assert module()[0].requires_grad
    assert module.calls == 3


def optimise(module: Doubled) -> None:
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    with torch.enable_grad():
        sum(each.sum() for each in module.compute()).backward()
    optimiser.step()


CHANGES: dict[str, Callable[[Doubled], object]] = {
    "in place": lambda module: module.own.add_(1),
    "optimiser": optimise,
    "state dict": lambda module: module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()}),
    "assigned": lambda module: module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()}, assign=True),
    "new parameter": lambda module: setattr(module.inner, "weight", nn.Parameter(torch.randn(3, 3))),
    "new child": lambda module: setattr(module, "inner", nn.Linear(3, 3, bias=False)),
    "parametrized": lambda module: parametrize.register_parametrization(module.inner, "weight", nn.Tanh()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change: str) -> None:
    module = Doubled()
    with torch.no_grad():
        module()
        CHANGES[change](module)
        assert is_right(module, module())
        if change == "parametrized":
            module.inner.parametrizations.weight.original.add_(1)
            assert is_right(module, module())


def test_other_parameters_for_one_call() -> None:
    module = Doubled()
    others = {name: torch.randn_like(value) for name, value in module.named_parameters()}
    with torch.no_grad():
        module()
        assert torch.equal(functional_call(module, others, ())[0], 2 * others["own"])
        assert is_right(module, module())


def test_copies_and_inference_mode() -> None:
    module = Doubled()
    with torch.no_grad():
        module()
        other = copy.deepcopy(module)
        other.own.add_(1)
        assert is_right(other, other())
        assert is_right(module, module())
    with torch.inference_mode():
        made = Doubled()
        assert is_right(made, made())
        made.own.add_(1)
        assert is_right(made, made())
