"""A moving average of a network's weights beside it, which is what is evaluated and kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from regard.tasks.recipe import Recipe

Tensors = tuple[Tensor, ...] | list[Tensor]


class Average:
    """An exponential moving average of weights and of the statistics of norms.

    Args:
        model: the network that is trained, where it will be trained.
        recipe: says how slow the average is.
        step: number of updates behind the network.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, *, step: int = 0) -> None:
        self._step = step

        def blend(averages: Tensors, values: Tensors, _: object) -> None:
            if averages[0].is_floating_point():
                torch._foreach_lerp_(averages, values, 1 - recipe.average_decay(self._step))
            else:
                # counters have no average
                torch._foreach_copy_(averages, values)

        self._averaged = AveragedModel(model, multi_avg_fn=torch.no_grad()(blend), use_buffers=True)
        # the first update is a blend like every other: an average that begins at the initial weights
        self._averaged.n_averaged.fill_(1)

    @property
    def model(self) -> nn.Module:
        """The network with the averaged weights."""
        return self._averaged.module

    def update(self, model: nn.Module) -> None:
        """Take in the weights after an update."""
        self._averaged.update_parameters(model)
        self._step += 1

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from an average that was stored."""
        self.model.load_state_dict(dict(state))
