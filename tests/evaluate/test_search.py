"""Search and average precision against manual computations and loops."""

from __future__ import annotations

import numpy as np
import pytest

from multigrain.evaluate.retrieval import average_precision
from multigrain.evaluate.search import Search, l2_normalize


@pytest.mark.parametrize(
    ("ranks", "positives", "expected"),
    [
        ([0], 1, 1.0),
        ([1], 1, 0.25),  # (0/1 + 1/2) / 2
        ([2], 1, 1 / 6),  # 1 / (2 * 3)
        ([9], 1, 1 / 20),
        ([0, 1], 2, 1.0),
        ([0, 2], 2, (1 + (1 / 2 + 2 / 3) / 2) / 2),
        ([1, 2], 2, ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2),
        ([0], 2, 0.5),  # one of two never found
        ([], 3, 0.0),
    ],
)
def test_average_precision_equals_a_manual_trapezoid(
    ranks: list[int], positives: int, expected: float
) -> None:
    assert average_precision(ranks, positives) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("groups", [1, 4, 40])  # of about 240, 60 and 6: sorted and counted
@pytest.mark.parametrize("block", [7, 10**6])
def test_ranks_equal_a_sort_by_similarity_and_index(groups: int, block: int) -> None:
    random = np.random.default_rng(0)
    # Whole numbers: products are exact, and there are many ties.
    database = random.integers(0, 3, (300, 4)).astype(np.float32)
    group_of = random.integers(0, groups, 300)
    present = random.random(300) < 0.8
    queries = random.permutation(300)[:25]
    search = Search(database, group_of, present, block)
    found = search.find(database[queries], group_of[queries], queries)
    for query, hits in zip(queries.tolist(), found, strict=True):
        similarity = database @ database[query]
        order = sorted(
            (i for i in range(300) if present[i] and i != query),
            key=lambda i: (-similarity[i], i),
        )
        expected = [rank for rank, i in enumerate(order) if group_of[i] == group_of[query]]
        assert hits.ranks.tolist() == expected
        assert hits.first == order[0]


def test_a_query_of_an_unknown_group_has_no_positives() -> None:
    search = Search(np.eye(2, dtype=np.float32), np.array([0, 1]), np.array([True, True]))
    (hits,) = search.find(np.array([[0.6, 0.8]], np.float32), np.array([2]))
    assert (hits.ranks.tolist(), hits.first) == ([], 1)


def test_normalization_removes_the_norm_and_zero_stays_finite() -> None:
    rows = np.array([[3.0, 4.0], [300.0, 400.0], [0.0, 0.0]], np.float32)
    unit = l2_normalize(rows)
    np.testing.assert_allclose(unit[0], [0.6, 0.8], rtol=1e-5)
    np.testing.assert_allclose(unit[1], unit[0], rtol=1e-5)
    np.testing.assert_array_equal(unit[2], 0.0)


def test_equal_images_tie_for_any_block_size() -> None:
    random = np.random.default_rng(1)
    pictures = l2_normalize(random.normal(size=(30, 515)).astype(np.float32))
    database = np.concatenate([pictures, pictures, pictures])
    queries = l2_normalize(random.normal(size=(60, 515)).astype(np.float32))
    numbers, present = np.arange(90), np.ones(90, bool)

    def ranks(rows: np.ndarray, wanted: np.ndarray, block: int = 2**23) -> list[int]:
        search = Search(database, numbers, present, block)
        return [int(hits.ranks[0]) for hits in search.find(rows, wanted)]

    whole = ranks(queries, numbers[30:])
    for block in (1, 7 * 90):
        assert ranks(queries, numbers[30:], block) == whole
    # A second or third copy ranks directly behind the copies before it.
    assert [rank - 1 for rank in whole[:30]] == ranks(queries[:30], numbers[:30])
