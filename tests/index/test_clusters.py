"""Clusters by complete linkage, against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from multigrain.index.clusters import Cluster, complete_link
from multigrain.index.pairs import Pairs, PairSearch
from tests.index.data import image_vectors


def pairs(*listed: tuple[int, int, float]) -> Pairs:
    first, second, similarity = zip(*listed, strict=True)
    return Pairs(np.array(first), np.array(second), np.array(similarity))


def members(clusters: list[Cluster]) -> list[tuple[int, ...]]:
    return [cluster.members for cluster in clusters]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.95])
def test_clusters_are_those_of_scipy(seed: int, threshold: float) -> None:
    vectors = image_vectors(300, 48, seed=seed, classes=20).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = complete_link(PairSearch(vectors, threshold, components=0).all())
    distance = 1.0 - vectors @ vectors.T
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform((distance + distance.T) / 2, checks=False), "complete")
    labels = fcluster(tree, 1.0 - threshold, "distance")
    expected = {
        tuple(np.flatnonzero(labels == label).tolist())
        for label in np.unique(labels)
        if (labels == label).sum() > 1
    }
    assert expected
    assert set(members(found)) == expected
    similarity = vectors @ vectors.T
    for cluster in found:
        inside = similarity[np.ix_(cluster.members, cluster.members)]
        assert cluster.similarity == pytest.approx(inside.min(), abs=1e-12)
        assert similarity[cluster.weakest] == pytest.approx(inside.min(), abs=1e-12)


def test_a_chain_is_not_one_cluster() -> None:
    assert members(complete_link(pairs((0, 1, 0.99), (1, 2, 0.98), (2, 3, 0.97)))) == [
        (0, 1),
        (2, 3),
    ]


def test_images_decided_to_be_different_stay_apart() -> None:
    triangle = pairs((0, 1, 0.99), (0, 2, 0.98), (1, 2, 0.97))
    assert members(complete_link(triangle)) == [(0, 1, 2)]
    assert members(complete_link(triangle, different=[(0, 1)])) == [(0, 2)]
    # Nor do they meet by way of a third.
    assert members(complete_link(triangle, different=[(1, 2), (0, 2)])) == [(0, 1)]


def test_images_decided_to_be_the_same_are_joined_and_count_as_one() -> None:
    listed = pairs((0, 1, 0.99), (2, 3, 0.98), (1, 4, 0.9))
    clusters = complete_link(listed, same=[(0, 3)])
    # 0 and 3 count as one image that is similar to 1 and to 2, which are not similar.
    assert members(clusters) == [(0, 1, 3)]
    assert clusters[0].weakest == (0, 1)


def test_images_joined_by_a_decision_alone_have_no_weakest_similarity() -> None:
    (cluster,) = complete_link(pairs((7, 8, 0.9)), same=[(1, 2)], different=[(7, 8)])
    assert cluster.members == (1, 2)
    assert np.isnan(cluster.similarity)


def test_contradicting_decisions_are_refused() -> None:
    with pytest.raises(
        ValueError, match="images 0 and 2 are decided to be different, and the same"
    ):
        complete_link(pairs((0, 1, 0.9)), same=[(0, 1), (1, 2)], different=[(0, 2)])
