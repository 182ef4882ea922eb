"""Exact pairs by bounds, against all products."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from multigrain.index import pairs as pairs_module
from multigrain.index.pairs import Pairs, PairSearch
from tests.index.data import image_vectors


def brute_force(vectors: NDArray[np.float32], threshold: float) -> set[tuple[int, int]]:
    """All pairs, by products of all vectors in double precision."""
    similarity = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    first, second = np.nonzero(np.triu(similarity >= threshold, 1))
    return set(zip(first.tolist(), second.tolist(), strict=True))


def as_set(pairs: Pairs) -> set[tuple[int, int]]:
    found = list(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert len(set(found)) == len(found)
    return set(found)


@pytest.mark.parametrize("components", [None, 0, 16, 32, 128])
@pytest.mark.parametrize("threshold", [0.999, 0.97, 0.8, 0.6])
def test_pairs_are_those_of_all_products(threshold: float, components: int | None) -> None:
    vectors = image_vectors(2500, 160)
    expected = brute_force(vectors, threshold)
    assert expected
    found = PairSearch(vectors, threshold, components=components).all()
    assert as_set(found) == expected
    exact = (
        vectors.astype(np.float64)[found.first] * vectors.astype(np.float64)[found.second]
    ).sum(1)
    np.testing.assert_allclose(found.similarity, exact, atol=1e-12)


def test_a_pair_at_the_threshold_is_found_whatever_the_rounding() -> None:
    vectors = image_vectors(1500, 64, copies=0.0)
    similarity = np.sort(np.unique(vectors.astype(np.float64) @ vectors.astype(np.float64).T))
    for threshold in similarity[[-1600, -2000, -9000]].tolist():
        search = PairSearch(vectors, threshold, components=16)
        # Borderline pairs are decided by their products in double precision.
        assert as_set(search.all()) == as_set(PairSearch(vectors, threshold, components=0).all())
        assert search.all().similarity.min() == pytest.approx(threshold, abs=1e-12)


def test_vectors_without_structure_get_plain_products() -> None:
    vectors = np.random.default_rng(0).standard_normal((1500, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    search = PairSearch(vectors, 0.3)
    assert search.components == 0
    assert as_set(search.all()) == brute_force(vectors, 0.3)


def test_images_with_few_directions_get_few_components() -> None:
    assert PairSearch(image_vectors(4000, 256), 0.97).components in (16, 32)


def test_long_vectors_are_compared_by_product_not_by_angle() -> None:
    vectors = image_vectors(800, 64) * 3.0
    assert as_set(PairSearch(vectors, 8.5, components=16).all()) == brute_force(vectors, 8.5)


def test_stripes_of_a_mapped_file_cover_each_pair_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs_module, "STRIPE", 300)
    monkeypatch.setattr(pairs_module, "_TILE", 128)
    np.save(tmp_path / "vectors.npy", image_vectors(1100, 64))
    vectors = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    search = PairSearch(vectors, 0.97, components=16, threads=3)
    assert search.stripes == 4
    parts = [search.stripe(number) for number in range(4)]
    assert all(len(part) for part in parts)
    assert as_set(Pairs.join(parts)) == brute_force(np.asarray(vectors), 0.97)
    done = [search.fraction_done(stripes) for stripes in range(5)]
    assert done[0] == 0.0
    assert done[4] == 1.0
    assert done == sorted(done)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_vectors(count: int) -> None:
    vectors = np.ones((count, 8), np.float32)
    assert len(PairSearch(vectors, 0.5).all()) == count // 2


def test_what_cannot_be_searched_is_refused() -> None:
    vectors = image_vectors(50, 32)
    with pytest.raises(ValueError, match="above 0"):
        PairSearch(vectors, 0.0)
    vectors[17, 3] = np.nan
    for components in (None, 0, 16):
        with pytest.raises(ValueError, match="vector 17 is not finite"):
            PairSearch(vectors, 0.9, components=components)
