"""How far probabilities and a segmentation overlap: the soft Dice coefficient of each class, with squared denominators.

Paper: "V-Net", Milletari et al., 3DV 2016, https://arxiv.org/abs/1606.04797, section 3.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from regard.ops.precision import compute_dtype, without_autocast

SMOOTH = 1.0
"""Added above and below: an absent class that is not predicted has a coefficient of 1."""
Shares = Float[Tensor, "batch classes *space"]


@without_autocast
def soft_dice(probabilities: Shares, target: Shares) -> Float[Tensor, " classes"]:
    """D_c = (2 sum(p t) + 1) / (sum(p^2) + sum(t^2) + 1), sums over the batch and all positions, in at least float32.

    Args:
        probabilities: p, of every class.
        target: t, 1 for the class of each position and 0 for the others.
    """
    dtype = compute_dtype(probabilities)
    p, t = (x.to(dtype).transpose(0, 1).flatten(1) for x in (probabilities, target))
    return (2 * (p * t).sum(dim=1) + SMOOTH) / (p.square().sum(dim=1) + t.square().sum(dim=1) + SMOOTH)
