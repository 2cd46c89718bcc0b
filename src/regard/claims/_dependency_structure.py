"""What the trees of DependencyViT, and the same read-out of a Transformer's attention, say about synthetic scenes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from regard.claims._scenes import CLASSES, IMAGE_SIZE, PATCH, Scenes, make_scenes
from regard.claims._training import fit
from regard.layers.encoder_block import EncoderBlock
from regard.models.vision.dependencyvit import DependencyViT, DependencyViTConfig
from regard.models.vision.vit import ViT, ViTConfig
from regard.ops.dependency_tree import dependency_tree

Network = DependencyViT | ViT
Masks = Float[Tensor, "batch receivers senders"]

TRAINING_SCENES, TEST_SCENES = 4000, 200
TEST_SEED = 10_000
STEPS, BATCH, LEARNING_RATE = 600, 32, 2e-3
DIM, LAYERS, HEADS = 48, 4, 4
PART_DEPTH = 2
STRUCTURE_RECIPE = (
    f"scenes of two or three objects of two coloured parts each on an empty background, 8 x 8 patches, trained on "
    f"which classes of objects are there; {TRAINING_SCENES:,} scenes, {STEPS} steps of {BATCH}, width {DIM}, "
    f"{LAYERS} layers, {HEADS} heads, read on {TEST_SCENES} further scenes; 3 seeds"
)


def dependency_vit() -> DependencyViT:
    """The network whose trees are read."""
    return DependencyViT(
        DependencyViTConfig(
            image_size=IMAGE_SIZE,
            num_classes=len(CLASSES),
            patch_size=PATCH,
            dim=DIM,
            num_layers=LAYERS,
            num_heads=HEADS,
            mlp_ratio=2.0,
            layer_scale=None,
            init_std=None,
        )
    )


def ordinary_vit() -> ViT:
    """An ordinary Transformer of equal sizes, without a class token."""
    return ViT(
        ViTConfig(
            image_size=IMAGE_SIZE,
            num_classes=len(CLASSES),
            patch_size=PATCH,
            dim=DIM,
            num_layers=LAYERS,
            num_heads=HEADS,
            hidden=2 * DIM,
        )
    )


def rollout(model: ViT, images: Tensor) -> Masks:
    """Attention rollout: the product over layers of the mean of the heads' maps and the identity.

    Paper: "Quantifying Attention Flow in Transformers", Abnar and Zuidema, ACL 2020,
    https://arxiv.org/abs/2005.00928, section 3. Transposed, so that a token hangs on whom it attends to, as a child in
    reversed attention does.
    """
    with torch.no_grad():
        x = model.patches(images) + model.positions
        flow = torch.eye(x.shape[1])
        for block in model.encoder.blocks:
            assert isinstance(block, EncoderBlock)
            weights = block.mixer.attention_map(block.mixer_norm(x)).mean(dim=1)
            flow = (weights + torch.eye(x.shape[1])) / 2 @ flow
            x = block(x)
    return flow.transpose(1, 2)


@dataclass(frozen=True)
class Structure:
    """How well trees agree with scenes, means over images.

    Args:
        overlap: intersection over union of the root's subtree with the objects.
        agreement: adjusted Rand index of subtrees and parts, over the patches of objects.
        right: percent of the labels (class in the image or not) that the network gives rightly.
    """

    overlap: float
    agreement: float
    right: float


def read_structure(masks: Masks, scenes: Scenes, right: float) -> Structure:
    """The trees of masks against the scenes' parts."""
    from sklearn.metrics import adjusted_rand_score

    overlaps, agreements = [], []
    for mask, parts in zip(masks.double().numpy(), scenes.parts.flatten(1).numpy(), strict=True):
        tree = dependency_tree(mask)
        salient, objects = tree.root_subtree(), parts > 0
        overlaps.append((salient & objects).sum() / (salient | objects).sum())
        agreements.append(adjusted_rand_score(parts[objects], tree.subtrees(PART_DEPTH)[objects]))
    return Structure(float(np.mean(overlaps)), float(np.mean(agreements)), right)


@functools.cache
def structure(network: str, seed: int) -> Structure:
    """A network ("DependencyViT" or "ViT") trained on labels alone, read on scenes that it has not seen."""
    test = make_scenes(TEST_SCENES, seed=TEST_SEED)
    model = _trained(ordinary_vit if network == "ViT" else dependency_vit, seed)
    masks = rollout(model, test.images) if isinstance(model, ViT) else model.dependency_masks(test.images)[0]
    return read_structure(masks, test, _percent_right(model, test))


def _trained(build: Callable[[], Network], seed: int) -> Network:
    torch.manual_seed(seed)
    model, scenes = build(), make_scenes(TRAINING_SCENES, seed=seed)

    def sample(step: int) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(np.random.default_rng([seed, step]).integers(0, TRAINING_SCENES, size=BATCH))
        return scenes.images[rows], scenes.labels[rows]

    def loss(network: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
        return F.binary_cross_entropy_with_logits(network(rows[0]), rows[1])

    fit(model, sample, loss, steps=STEPS, learning_rate=LEARNING_RATE, weight_decay=0.0, seed=seed)
    return model


@torch.no_grad()
def _percent_right(model: nn.Module, scenes: Scenes) -> float:
    return 100 * float(((model(scenes.images) > 0) == (scenes.labels > 0.5)).float().mean())
