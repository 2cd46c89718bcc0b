"""What segmenters are trained by: Dice losses of MONAI, alone or with a cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RegionLoss:
    """A loss and its two parts.

    Args:
        dice: the soft Dice loss.
        bce: the binary cross-entropy in nats.
        total: their weighted sum.
    """

    dice: Tensor
    bce: Tensor
    total: Tensor


def region_loss(
    logits: Float[Tensor, "batch regions *space"],
    target: Float[Tensor, "batch regions *space"],
    *,
    dice_weight: float = 1.0,
    bce_weight: float = 1.0,
    smooth: float = 1.0,
) -> RegionLoss:
    """Dice and binary cross-entropy of regions that may overlap.

    dice = mean over images and regions of 1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), p = sigmoid(logits).

    Args:
        logits: of each region.
        target: 1 where the region is.
        dice_weight: of the Dice loss in the total.
        bce_weight: of the cross-entropy in the total.
        smooth: keeps the Dice of an absent region defined.
    """
    from monai.losses.dice import DiceLoss

    dice = DiceLoss(sigmoid=True, smooth_nr=smooth, smooth_dr=smooth)(logits, target)
    bce = F.binary_cross_entropy_with_logits(logits, target)
    return RegionLoss(dice, bce, dice_weight * dice + bce_weight * bce)


def class_loss(
    outputs: Sequence[Float[Tensor, "batch classes ..."]],
    target: Int[Tensor, "batch ..."],
    *,
    cross_entropy_weight: float = 0.0,
) -> Tensor:
    """The mean over all supervised outputs of the Dice loss of exclusive classes, the background left out.

    loss = mean over classes c > 0 of 1 - (2 sum(p t) + 1) / (sum(p^2) + sum(t^2) + 1), sums over the batch and space,
    p = softmax(logits). The targets of coarser outputs are the nearest of the fine ones.

    Args:
        outputs: logits, the finest first.
        target: the class of each position of the finest output.
        cross_entropy_weight: of the cross-entropy beside it.

    Raises:
        ValueError: fewer than two classes.
    """
    from monai.losses.dice import DiceLoss

    if outputs[0].shape[1] < 2:
        raise ValueError(f"exclusive classes are at least 2, the background among them, got {outputs[0].shape[1]}")
    dice = DiceLoss(include_background=False, softmax=True, squared_pred=True, smooth_nr=1.0, smooth_dr=1.0, batch=True)
    losses = []
    for logits in outputs:
        coarse = target
        if logits.shape[2:] != target.shape[1:]:
            coarse = F.interpolate(target[:, None].float(), size=logits.shape[2:], mode="nearest")[:, 0].long()
        one_hot = F.one_hot(coarse, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        loss = dice(logits, one_hot)
        if cross_entropy_weight:
            loss = loss + cross_entropy_weight * F.cross_entropy(logits, coarse)
        losses.append(loss)
    return torch.stack(losses).mean()
