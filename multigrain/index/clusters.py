"""Clusters of similar images that do not chain: every two members are similar."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from multigrain.index.pairs import Pairs


@dataclass(frozen=True)
class Cluster:
    """Images of which every two are a pair, unless a decision joined them.

    Args:
        members: row numbers, ascending; at least two.
        weakest: the two members that are least similar, of those with a known similarity.
        similarity: of these two.
    """

    members: tuple[int, ...]
    weakest: tuple[int, int]
    similarity: float


def complete_link(
    pairs: Pairs,
    same: Iterable[tuple[int, int]] = (),
    different: Iterable[tuple[int, int]] = (),
) -> list[Cluster]:
    """Clusters the rows by complete linkage: two clusters merge if all pairs across them exist.

    Pairs are taken by falling similarity, and two clusters merge with the last of the pairs across
    them, whose similarity is the smallest: this is agglomerative clustering by complete linkage.

    Args:
        pairs: the similar pairs.
        same: pairs that are joined first, whatever their similarity. A group that they join
            counts as one image, as similar to another as its most similar member is.
        different: pairs that never are in one cluster.

    Returns:
        The clusters of two or more images, the largest first, then by first member.

    Raises:
        ValueError: if decisions contradict each other: a pair is different, and the same by way
            of others.
    """
    groups = _Groups()
    for first, second in same:
        groups.join(first, second)
    across: dict[int, dict[int, int]] = {}  # root -> other root -> pairs across, -1 if forbidden
    weight: dict[int, int] = {}  # root -> images and joined groups
    for first, second in different:
        a, b = groups.root(first), groups.root(second)
        if a == b:
            raise ValueError(
                f"images {first} and {second} are decided to be different, and the same"
            )
        across.setdefault(a, {})[b] = across.setdefault(b, {})[a] = -1
    joined = {row: groups.root(row) for row in list(groups.parent)}
    seen: set[tuple[int, int]] = set()
    for at in np.lexsort((pairs.second, pairs.first, -pairs.similarity)).tolist():
        first, second = int(pairs.first[at]), int(pairs.second[at])
        first, second = joined.get(first, first), joined.get(second, second)
        if first == second:
            continue
        if joined:
            key = (min(first, second), max(first, second))
            if key in seen:  # a less similar pair of two joined groups
                continue
            seen.add(key)
        a, b = groups.root(first), groups.root(second)
        count = across.setdefault(a, {}).get(b, 0)
        if count < 0:
            continue
        count += 1
        if count < weight.get(a, 1) * weight.get(b, 1):
            across[a][b] = across.setdefault(b, {})[a] = count
            continue
        _merge(groups, across, weight, a, b)
    return _clusters(groups, pairs)


class _Groups:
    """Disjoint sets of rows."""

    def __init__(self) -> None:
        self.parent: dict[int, int] = {}

    def root(self, row: int) -> int:
        path = []
        while (above := self.parent.get(row, row)) != row:
            path.append(row)
            row = above
        for below in path:
            self.parent[below] = row
        return row

    def join(self, first: int, second: int) -> int:
        """Joins the sets of two rows and returns the root."""
        a, b = self.root(first), self.root(second)
        self.parent.setdefault(a, a)
        self.parent[b] = a
        return a


def _merge(
    groups: _Groups,
    across: dict[int, dict[int, int]],
    weight: dict[int, int],
    a: int,
    b: int,
) -> None:
    """Merges the clusters with roots a and b; the one with more neighbors stays the root."""
    if len(across.get(a, ())) < len(across.get(b, ())):
        a, b = b, a
    groups.join(a, b)
    weight[a] = weight.get(a, 1) + weight.pop(b, 1)
    mine = across.setdefault(a, {})
    mine.pop(b, None)
    for other, count in across.pop(b, {}).items():
        if other == a:
            continue
        del across[other][b]
        both = -1 if count < 0 or mine.get(other, 0) < 0 else count + mine.get(other, 0)
        mine[other] = across[other][a] = both


def _clusters(groups: _Groups, pairs: Pairs) -> list[Cluster]:
    members: dict[int, list[int]] = {}
    for row in groups.parent:
        members.setdefault(groups.root(row), []).append(row)
    weakest: dict[int, tuple[float, int, int]] = {}
    for first, second, similarity in zip(
        pairs.first.tolist(), pairs.second.tolist(), pairs.similarity.tolist(), strict=True
    ):
        root = groups.root(first)
        if root in members and root == groups.root(second):
            found = (similarity, first, second)
            weakest[root] = min(weakest.get(root, found), found)
    clusters = []
    for root, rows in members.items():
        rows.sort()
        # A group may be joined by decisions alone.
        similarity, first, second = weakest.get(root, (float("nan"), rows[0], rows[1]))
        clusters.append(Cluster(tuple(rows), (first, second), similarity))
    return sorted(clusters, key=lambda cluster: (-len(cluster.members), cluster.members))
