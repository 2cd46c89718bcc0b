"""What MaxViT's claims measure beside the networks themselves: who influences whom, and a task of far pairs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from regard.claims._training import fit
from regard.models.vision.maxvit import Kind, MaxViT
from regard.ops.windows import Layout, window_numbers

SIDE, STEPS, BATCH, RATE = 16, 300, 16, 3e-3
ONE_STAGE = replace(MaxViT.SMALL, dims=(32,), depths=(1,), strides=(1,))
TEST_IMAGES = 200


def influence(form: nn.Module, x: Tensor) -> Tensor:
    """Which positions (columns) each position (row) of the output depends on, from the Jacobian; row-major.

    Args:
        form: from maps to maps of the same shape.
        x: a single map, in float64.
    """
    x = x.detach().requires_grad_()
    weights = torch.randn(x.shape[1], dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    y = (form(x) * weights[:, None, None]).sum(dim=1).flatten()
    rows = [torch.autograd.grad(value, x, retain_graph=True)[0].abs().amax(dim=1).flatten() > 0 for value in y]
    return torch.stack(rows)


def same_window(side: int, size: int, layout: Layout) -> Tensor:
    """Which pairs of positions of a square map share a window, or a comb; row-major."""
    numbers = window_numbers((side, side), (size, size), layout=layout, device=torch.device("cpu"))
    owner = torch.empty(side * side, dtype=torch.long)
    for window, members in enumerate(numbers):
        owner[members[members >= 0]] = window
    return owner[:, None] == owner[None, :]


def far_pairs(seed: int, step: int, batch: int) -> tuple[Tensor, Tensor]:
    """Images of random signs, and where each sign is that half a map further down and to the right, cyclically."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    signs = torch.randint(2, (batch, 1, SIDE, SIDE), generator=generator).float() * 2 - 1
    return signs, (signs == signs.roll((SIDE // 2, SIDE // 2), dims=(2, 3))).float()


class PairReader(nn.Module):
    """A score at every position for "the sign half a map away is the same", read from the first stage's map.

    Args:
        kinds: the attentions of its only block.
    """

    def __init__(self, kinds: tuple[Kind, ...]) -> None:
        super().__init__()
        self.backbone = MaxViT(replace(ONE_STAGE, kinds=kinds))
        self.read = nn.Conv2d(ONE_STAGE.dims[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """One number per position."""
        return self.read(self.backbone.features(images)[0])


def pair_accuracy(kinds: tuple[Kind, ...], seed: int) -> float:
    """Percent of positions that are answered rightly on new images, after training from `seed`."""
    torch.manual_seed(seed)
    model = PairReader(kinds)

    def loss(network: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        return binary_cross_entropy_with_logits(network(rows[0]), rows[1])

    def draw(step: int) -> tuple[Tensor, Tensor]:
        return far_pairs(seed, step, BATCH)

    fit(model, draw, loss, steps=STEPS, learning_rate=RATE, weight_decay=0.0, seed=seed)
    signs, same = far_pairs(seed, STEPS, TEST_IMAGES)
    with torch.no_grad():
        return 100 * float(((model(signs) > 0) == (same > 0.5)).float().mean())
