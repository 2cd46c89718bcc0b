"""Trees against all trees tried one by one, and their cuts against counting by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from regard.ops.dependency_tree import (
    DependencyTree,
    dependency_tree,
    maximum_arborescence,
    received,
)


def is_tree(parents: tuple[int, ...] | np.ndarray, root: int) -> bool:
    """Everyone gets to the root, and stays there."""
    for node in range(len(parents)):
        for _ in parents:
            node = int(parents[node])
        if node != root:
            return False
    return int(parents[root]) == root


def weight_of(weights: np.ndarray, parents: tuple[int, ...] | np.ndarray, root: int) -> float:
    return sum(float(weights[child, parent]) for child, parent in enumerate(parents) if child != root)


def best_of_all(weights: np.ndarray, root: int) -> float:
    """The largest weight of all trees."""
    everyone = range(len(weights))
    choices = [[root] if node == root else [other for other in everyone if other != node] for node in everyone]
    return max(weight_of(weights, found, root) for found in itertools.product(*choices) if is_tree(found, root))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(6))
def test_no_tree_is_heavier(count: int, seed: int) -> None:
    random = np.random.default_rng([count, seed])
    root = int(random.integers(count))
    for weights in (random.standard_normal((count, count)), random.integers(0, 4, (count, count)).astype(float)):
        parents = maximum_arborescence(weights, root)
        assert is_tree(parents, root)
        assert weight_of(weights, parents, root) == pytest.approx(best_of_all(weights, root))


@pytest.mark.parametrize("seed", range(3))
def test_cycles_inside_cycles(seed: int) -> None:
    # pairs that want each other, in pairs of pairs that want each other: contracted twice
    random = np.random.default_rng(seed)
    weights = random.random((7, 7))
    for first, second, worth in ((1, 2, 9), (3, 4, 9), (5, 6, 9), (2, 3, 6), (4, 1, 6), (6, 1, 3)):
        weights[first, second] += worth
        weights[second, first] += worth
    parents = maximum_arborescence(weights, 0)
    assert is_tree(parents, 0)
    assert weight_of(weights, parents, 0) == pytest.approx(best_of_all(weights, 0))


def heaviest_by_recursion(edges: dict[tuple[int, int], float], nodes: set[int], root: int) -> float:
    """The textbook's algorithm, one cycle at a time: the weight of the best tree."""
    best = {node: max((edges[node, other], other) for other in nodes if other != node) for node in nodes - {root}}
    for start in best:
        path = [start]
        while path[-1] in best and best[path[-1]][1] not in path:
            path.append(best[path[-1]][1])
        if path[-1] in best:
            cycle = path[path.index(best[path[-1]][1]) :]
            break
    else:
        return sum(weight for weight, _ in best.values())
    kept, made = sum(best[node][0] for node in cycle), cycle[0]
    outside = nodes - set(cycle)
    merged = {(a, b): edges[a, b] for a in outside for b in outside if a != b}
    for other in outside:
        merged[made, other] = max(edges[node, other] - best[node][0] for node in cycle)
        merged[other, made] = max(edges[other, node] for node in cycle)
    return kept + heaviest_by_recursion(merged, outside | {made}, root)


@pytest.mark.parametrize("seed", range(3))
def test_large_graphs_agree_with_the_textbook(seed: int) -> None:
    weights = np.random.default_rng(seed).standard_normal((61, 61))
    edges = {(a, b): float(weights[a, b]) for a in range(61) for b in range(61) if a != b}
    parents = maximum_arborescence(weights, 17)
    assert is_tree(parents, 17)
    assert weight_of(weights, parents, 17) == pytest.approx(heaviest_by_recursion(edges, set(range(61)), 17))


def test_children_hang_on_whom_they_send_to() -> None:
    mask = np.full((5, 5), 0.01)
    for child, parent in ((0, 2), (1, 2), (3, 1), (4, 1)):
        mask[parent, child] = 1.0
    tree = dependency_tree(mask, root=2)
    assert tree.parents.tolist() == [2, 2, 2, 1, 1]
    assert tree.depths.tolist() == [1, 1, 0, 2, 2]
    assert tree.root == 2
    # 1 and 2 receive as much; a little more makes 1 the root
    mask[1, 0] = 0.5
    assert dependency_tree(mask).root == 1
    assert received(mask)[1] == pytest.approx(2.5 + 0.01)


def test_how_much_a_child_sends_does_not_matter() -> None:
    random = np.random.default_rng(0)
    mask = random.random((11, 11))
    scaled = mask * random.random(11)
    assert np.array_equal(dependency_tree(mask, root=3).parents, dependency_tree(scaled, root=3).parents)


@pytest.fixture
def tree() -> DependencyTree:
    # 4 is the root; 0 and 1 hang on it, 2 and 3 on 1, 5 on 3
    return DependencyTree(np.array([4, 4, 1, 1, 4, 3]), 4)


def test_depths_and_ancestors(tree: DependencyTree) -> None:
    assert tree.depths.tolist() == [1, 1, 2, 2, 0, 3]
    assert [np.flatnonzero(row).tolist() for row in tree.ancestors()] == [
        [0, 4],
        [1, 4],
        [1, 2, 4],
        [1, 3, 4],
        [4],
        [1, 3, 4, 5],
    ]


@pytest.mark.parametrize(
    ("depth", "labels"), [(1, [0, 1, 1, 1, 4, 1]), (2, [4, 4, 2, 3, 4, 3]), (3, [4, 4, 4, 4, 4, 5]), (4, [4] * 6)]
)
def test_subtrees_are_what_a_cut_leaves(tree: DependencyTree, depth: int, labels: list[int]) -> None:
    assert tree.subtrees(depth).tolist() == labels


def test_leaves_on_the_root_are_on_the_other_side(tree: DependencyTree) -> None:
    assert tree.root_subtree().tolist() == [False, True, True, True, True, True]
    star = DependencyTree(np.array([1, 1, 1, 1]), 1)
    assert star.root_subtree().tolist() == [False, True, False, False]


def test_a_single_token_is_all_there_is() -> None:
    tree = dependency_tree(np.ones((1, 1)))
    assert (tree.root, tree.parents.tolist(), tree.depths.tolist()) == (0, [0], [0])
    assert tree.root_subtree().tolist() == [True]
    assert tree.subtrees(1).tolist() == [0]


def test_nobody_sends_anything() -> None:
    mask = np.zeros((4, 4))
    tree = dependency_tree(mask)
    assert is_tree(tree.parents, tree.root)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((2, 3)), r"must be \(receivers, senders\).* got shape \(2, 3\)"),
        (np.ones(4), "got shape"),
        (np.ones((0, 0)), "got shape"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), "finite and not negative"),
        (np.array([[1.0, -1.0], [0.0, 1.0]]), "finite and not negative"),
    ],
)
def test_ill_masks_are_named(mask: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dependency_tree(mask)


def test_ill_arguments_are_named(tree: DependencyTree) -> None:
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        tree.subtrees(0)
    with pytest.raises(ValueError, match="the number of one of 3 tokens, got 3"):
        dependency_tree(np.ones((3, 3)), root=3)
    with pytest.raises(ValueError, match="square matrix"):
        maximum_arborescence(np.ones((2, 3)), 0)
    with pytest.raises(ValueError, match="weights must be finite"):
        maximum_arborescence(np.array([[0.0, np.inf], [0.0, 0.0]]), 0)
