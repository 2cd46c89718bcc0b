"""What is kept for a size: computed once, and anew where size, parameters or mode change."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from regard.layers.derived_by_size import ModuleWithDerived


class Counting(ModuleWithDerived):
    """Counts how often it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.computed = 0

    def forward(self, size: int) -> Tensor:
        def compute() -> tuple[Tensor, ...]:
            self.computed += 1
            return (self.weight.repeat(size),)

        return self.derive(size, compute)[0]


def test_the_last_size_is_kept() -> None:
    module = Counting().eval()
    with torch.no_grad():
        for size in (2, 2, 3, 3, 2):
            assert module(size).shape == (3 * size,)
    assert module.computed == 3


def test_changed_parameters_are_seen() -> None:
    module = Counting().eval()
    with torch.no_grad():
        module(2)
        module.weight.mul_(5)
        assert module(2).tolist() == [5.0] * 6
        module.load_state_dict({"weight": torch.full((3,), 7.0)})
        assert module(2).tolist() == [7.0] * 6
        assert module.double()(2).dtype == torch.float64
        module.weight.data.fill_(2.0)
        assert module.eval()(2).tolist() == [2.0] * 6
        twin = copy.deepcopy(module)
        twin.weight.zero_()
        assert twin(2).tolist() == [0.0] * 6


def test_nothing_is_kept_with_gradients() -> None:
    module = Counting()
    for _ in range(3):
        module(2).sum().backward()
    assert module.computed == 3
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [6.0] * 3
