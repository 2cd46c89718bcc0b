"""From soft dependency masks of images to their trees, a saliency map and parts.

Paper: "Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention", Ding et al., CVPR 2023,
https://arxiv.org/abs/2304.03282, section 3.3 (parsing) and 4 (parts and saliency). How trees are cut there is not
published; `regard.ops.dependency_tree` says what is done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from regard.ops.dependency_tree import DependencyTree, Numbers, dependency_tree

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class DependencyParse:
    """The dependency trees of a batch of images.

    Args:
        trees: of every image.
        masks: `(batch, receivers, senders)`: what every patch received of every other over all layers.
        grid: rows and columns of patches; patches are numbered row by row.
        saliency: `(batch, y, x)`: 1 on the root and its subtrees, 0 on leaves that hang on it alone, blended between
            patches.
    """

    trees: tuple[DependencyTree, ...]
    masks: Float[Tensor, "batch receivers senders"]
    grid: Size
    saliency: Float[Tensor, "batch y x"]

    @property
    def parents(self) -> Int[Tensor, "batch patches"]:
        """Of every patch the number of its parent; a root's is its own."""
        return torch.from_numpy(np.stack([tree.parents for tree in self.trees]))

    @property
    def roots(self) -> Int[Tensor, " batch"]:
        """The number of the root of every image."""
        return torch.tensor([tree.root for tree in self.trees])

    def parts(self, depth: int = 1) -> Int[Tensor, "batch rows columns"]:
        """For every patch the number of the patch of this depth that it hangs below; the root's above that depth.

        Raises:
            ValueError: a depth below 1.
        """
        return self._as_maps([tree.subtrees(depth) for tree in self.trees])

    def depths(self) -> Int[Tensor, "batch rows columns"]:
        """For every patch the edges from it to the root."""
        return self._as_maps([tree.depths for tree in self.trees])

    def _as_maps(self, rows: Sequence[Numbers]) -> Tensor:
        return torch.from_numpy(np.stack(rows)).unflatten(1, self.grid)


def parse_masks(
    masks: Float[Tensor, "batch receivers senders"],
    *,
    grid: Size,
    patch_size: int,
    image_size: Size,
    roots: Sequence[int] | None = None,
) -> DependencyParse:
    """The trees of a batch of masks.

    Args:
        masks: what every patch received of every other.
        grid: rows and columns of patches.
        patch_size: pixels per side of a patch.
        image_size: rows and columns of pixels that the saliency map shall have.
        roots: the root of every image; None = the patches that receive most.

    Raises:
        ValueError: masks that are not square, negative or not finite.
    """
    arrays = masks.detach().double().cpu().numpy()
    trees, salient = [], []
    for index, mask in enumerate(arrays):
        tree = dependency_tree(mask, root=None if roots is None else int(roots[index]))
        trees.append(tree)
        salient.append(torch.from_numpy(tree.root_subtree()).float())
    patches = torch.stack(salient).unflatten(1, grid)[:, None]
    whole = (grid[0] * patch_size, grid[1] * patch_size)
    saliency = interpolate(patches, whole, mode="bilinear", align_corners=False)[:, 0, : image_size[0], : image_size[1]]
    return DependencyParse(trees=tuple(trees), masks=masks.detach(), grid=grid, saliency=saliency)
