"""Retrieval metrics against values worked out by hand and by loops."""

from __future__ import annotations

import numpy as np
import pytest

from multigrain.evaluate.retrieval import average_precision, normalised, ranks_of


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
def test_average_precision_equals_the_trapezoid_worked_out_by_hand(
    ranks: list[int], positives: int, expected: float
) -> None:
    assert average_precision(ranks, positives) == pytest.approx(expected, abs=1e-12)


def test_ranks_equal_a_sort_by_similarity_and_index() -> None:
    random = np.random.default_rng(0)
    # Whole numbers: products are exact, and there are many ties.
    database = random.integers(0, 3, (40, 4)).astype(np.float32)
    queries = database[random.permutation(40)[:25]]
    positive = random.integers(0, 40, 25)
    present = random.random(40) < 0.8
    ranks = ranks_of(queries, database, positive, present, block=7)
    for query, target, rank in zip(queries, positive, ranks, strict=True):
        similarity = database @ query
        order = sorted(
            (i for i in range(40) if present[i] or i == target),
            key=lambda i: (-similarity[i], i),
        )
        assert rank == order.index(target)


def test_the_norm_does_not_matter_and_zero_stays_finite() -> None:
    rows = np.array([[3.0, 4.0], [300.0, 400.0], [0.0, 0.0]], np.float32)
    unit = normalised(rows)
    np.testing.assert_allclose(unit[0], [0.6, 0.8], rtol=1e-5)
    np.testing.assert_allclose(unit[1], unit[0], rtol=1e-5)
    np.testing.assert_array_equal(unit[2], 0.0)


def test_equal_pictures_tie_however_many_are_queried_at_a_time() -> None:
    random = np.random.default_rng(1)
    pictures = normalised(random.normal(size=(30, 515)).astype(np.float32))
    database = np.concatenate([pictures, pictures, pictures])
    queries = normalised(random.normal(size=(60, 515)).astype(np.float32))
    positive = np.arange(30, 90)
    present = np.ones(90, bool)
    whole = ranks_of(queries, database, positive, present)
    for block in (1, 7):
        np.testing.assert_array_equal(
            ranks_of(queries, database, positive, present, block=block), whole
        )
    # A second or third copy stands behind the copies before it, at once.
    first = ranks_of(queries[:30], database, np.arange(30), present)
    np.testing.assert_array_equal(whole[:30], first + 1)
