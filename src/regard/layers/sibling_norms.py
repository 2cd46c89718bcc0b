"""Batch norms folded for good into the convolutions before them, in networks that are not built of foldable layers.

Paper: "Batch Normalization", Ioffe and Szegedy, ICML 2015, https://arxiv.org/abs/1502.03167, section 3.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

Network = TypeVar("Network", bound=nn.Module)


def folded_copy(model: Network) -> Network:
    """A copy for inference, channels last, whose batch norms are folded into the convolutions before them."""
    made = copy.deepcopy(model).eval().requires_grad_(False)
    fold_siblings(made)
    return made.to(memory_format=torch.channels_last)


def fold_siblings(module: nn.Module) -> None:
    """Fold every batch norm that directly follows a convolution among the children of any part of `module`.

    Right for modules whose children follow each other as in their forward. The norm's place is taken by its activation
    where it has one (timm's norms do), else by the identity. Statistics must be fixed: call it in evaluation.

    Args:
        module: changed in place.

    Raises:
        ValueError: a norm in training, whose statistics are those of a batch.
    """
    for part in list(module.modules()):
        children = list(part.named_children())
        for (_, conv), (name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                _fold(conv, norm)
                setattr(part, name, getattr(norm, "act", nn.Identity()))


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    if norm.training or norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm folds with fixed statistics alone, got one in training: call eval() first")
    # in float64: rounding then happens once
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(),
        None if conv.bias is None else conv.bias.double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        norm.weight.double(),
        norm.bias.double(),
    )
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
