"""Dependency trees from soft dependency masks: the maximum spanning arborescence, its subtrees and its root's side.

Papers: "Visual Dependency Transformers", Ding et al., CVPR 2023, https://arxiv.org/abs/2304.03282, section 3 (tokens
hang on the parents that they send to, the root receives most); "Optimum Branchings", Edmonds, 1967, and "On the
Shortest Arborescence of a Directed Graph", Chu and Liu, 1965 (the tree of the largest weight). How the authors make a
tree of their masks is not published; the weight of an edge here is the logarithm of what the child sends its parent,
so that the tree is the likeliest one, and how much a child sends in all does not matter for whom it hangs on.
How they cut it is not published either; here, as in the paper, entities and their parts are subtrees, and leaves may
go. All cycles are contracted at once, which halves their number at least: O(n^2 log n) in NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[np.int64]
Choices: TypeAlias = NDArray[np.bool_]

SMALLEST = 1e-30
"""Below this a mask counts as 0, whose logarithm would be infinite."""


@dataclass(frozen=True)
class DependencyTree:
    """Tokens that hang on each other.

    Args:
        parents: of every token the number of its parent; the root's is its own.
        root: the root's number.
    """

    parents: Numbers
    root: int

    @property
    def depths(self) -> Numbers:
        """Edges from every token to the root."""
        depths, above = np.zeros_like(self.parents), np.arange(len(self.parents))
        while (above != self.root).any():
            depths += above != self.root
            above = self.parents[above]
        return depths

    def ancestors(self) -> Choices:
        """`[i, j]`: whether j is on the way from i to the root, both ends included."""
        everyone = np.arange(len(self.parents))
        found, above = np.eye(len(everyone), dtype=bool), everyone
        while (above != self.root).any():
            above = self.parents[above]
            found[everyone, above] = True
        return found

    def subtrees(self, depth: int) -> Numbers:
        """The tree cut above its tokens of this depth: each token's label is the number of the token it hangs below.

        Args:
            depth: of the tokens whose subtrees become parts; what lies above them is one part, with the root's number.

        Raises:
            ValueError: a depth below 1.
        """
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        depths, labels = self.depths, np.arange(len(self.parents))
        while (deeper := depths[labels] > depth).any():
            labels = np.where(deeper, self.parents[labels], labels)
        return np.where(depths[labels] < depth, self.root, labels)

    def root_subtree(self) -> Choices:
        """The root and all of its subtrees that are more than a leaf: what the image is about.

        A token that hangs on the root directly and on which nothing hangs is a part of nothing; such leaves are the
        other side of the bipartition.
        """
        everyone = np.arange(len(self.parents))
        has_children = np.bincount(self.parents, minlength=len(everyone)) > 0
        return has_children | (self.parents != self.root)


def dependency_tree(mask: Floats, *, root: int | None = None) -> DependencyTree:
    """The likeliest tree of a soft dependency mask.

    Args:
        mask: `(receivers, senders)`: what every token receives of every other.
        root: the root's number; None = the token that receives most from others.

    Raises:
        ValueError: a mask that is not square, or has numbers that are negative or not finite; no such root.
    """
    mask = _checked(mask)
    if root is None:
        root = int(received(mask).argmax())
    parents = maximum_arborescence(np.log(np.maximum(mask.T, SMALLEST)), root)
    return DependencyTree(parents, root)


def received(mask: Floats) -> Floats:
    """What every token receives from all others, itself excepted."""
    return mask.sum(axis=1) - mask.diagonal()


# --------------------------------------------------------------------------------------------------- arborescence


def maximum_arborescence(weights: Floats, root: int) -> Numbers:
    """The parents of the spanning tree of the largest total weight.

    Args:
        weights: `(child, parent)`, finite; the diagonal is not looked at.
        root: the number of the token that all hang on.

    Raises:
        ValueError: weights that are not square or not finite, or no such root.
    """
    count = len(weights)
    if weights.ndim != 2 or weights.shape != (count, count) or count == 0:
        raise ValueError(f"weights must be a square matrix, got shape {weights.shape}")
    if not np.isfinite(weights[~np.eye(count, dtype=bool)]).all():
        raise ValueError("weights must be finite")
    if not 0 <= root < count:
        raise ValueError(f"root must be the number of one of {count} tokens, got {root}")
    levels: list[_Contraction] = []
    parents = _best_parents(weights, root)
    while (cycles := _cycles(parents, root)).max(initial=-1) >= 0:
        level = _Contraction.of(weights, parents, cycles)
        levels.append(level)
        weights, root = level.contracted, int(level.groups[root])
        parents = _best_parents(weights, root)
    for level in reversed(levels):
        parents = level.expand(parents)
    return parents


@dataclass(frozen=True)
class _Contraction:
    """A graph whose cycles have become single nodes.

    Args:
        gains: `(child, parent)`: the weight, less that of the edge of a cycle that it would replace.
        parents: the parents whose cycles are contracted.
        groups: of every node its number in the contracted graph.
        contracted: the best gain between any two nodes of the contracted graph.
    """

    gains: Floats
    parents: Numbers
    groups: Numbers
    contracted: Floats

    @classmethod
    def of(cls, weights: Floats, parents: Numbers, cycles: Numbers) -> _Contraction:
        everyone = np.arange(len(parents))
        # nodes outside cycles stay alone; those of a cycle share the number of its representative
        _, groups = np.unique(np.where(cycles < 0, everyone, cycles), return_inverse=True)
        replaced = np.where(cycles >= 0, weights[everyone, parents], 0.0)
        gains = weights - replaced[:, None]
        order = np.argsort(groups, kind="stable")
        starts = np.searchsorted(groups[order], np.arange(groups.max() + 1))
        by_parent = np.maximum.reduceat(gains[:, order], starts, axis=1)
        return cls(gains, parents, groups, np.maximum.reduceat(by_parent[order], starts, axis=0))

    def expand(self, contracted_parents: Numbers) -> Numbers:
        """Parents in this graph from those in the contracted one."""
        parents = self.parents.copy()
        for group, above in enumerate(contracted_parents):
            if above == group:
                continue
            children, choices = (np.flatnonzero(self.groups == number) for number in (group, above))
            best = self.gains[np.ix_(children, choices)].argmax()
            child, choice = np.unravel_index(best, (len(children), len(choices)))
            parents[children[child]] = choices[choice]
        return parents


def _best_parents(weights: Floats, root: int) -> Numbers:
    """Of every node the parent of the largest weight, by itself; the root's is its own."""
    others = weights.copy()
    np.fill_diagonal(others, -np.inf)
    parents = others.argmax(axis=1)
    parents[root] = root
    return parents


def _cycles(parents: Numbers, root: int) -> Numbers:
    """Of every node on a cycle the smallest number on it, -1 of all others; the root is on none."""
    above = parents.copy()
    # after n steps everyone has arrived on its cycle, or at the root
    for _ in range(max(1, int(np.ceil(np.log2(len(parents)))))):
        above = above[above]
    on_cycle = np.zeros(len(parents), dtype=bool)
    on_cycle[above] = True
    on_cycle[root] = False
    found = np.full_like(parents, -1)
    for start in np.flatnonzero(on_cycle):
        if found[start] < 0:
            node = start
            while found[node] < 0:
                found[node] = start
                node = parents[node]
    return found


def _checked(mask: Floats) -> Floats:
    mask = np.asarray(mask, dtype=np.float64)
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1] or mask.size == 0:
        raise ValueError(f"a dependency mask must be (receivers, senders), as many of both, got shape {mask.shape}")
    if not np.isfinite(mask).all() or (mask < 0).any():
        raise ValueError("a dependency mask must be finite and not negative")
    return mask
