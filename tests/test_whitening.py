"""Whitening and the folded classifier against the formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.whitening import (
    MIN_VARIANCE_RATIO,
    Moments,
    Whitening,
    fit_whitening,
    fold_classifier,
    homogeneous,
    read_whitening,
    write_whitening,
)

C, K = 12, 7


def features(images: int, seed: int = 0) -> NDArray[np.float32]:
    """Features like a network's: non-negative, correlated, with different scales."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(C, C)) * np.geomspace(3, 0.03, C)
    return np.maximum(rng.normal(size=(images, C)) @ mixing + 1, 0).astype(np.float32)


def fitted(data: NDArray[np.float32], batch: int = 7) -> Whitening:
    moments = Moments(C)
    for start in range(0, len(data), batch):
        moments.add(data[start : start + batch])
    return fit_whitening(moments)


def test_the_descriptor_is_the_normalized_homogeneous_embedding() -> None:
    embedding = np.array([[3.0, 0.0], [2.0, 2.0]])
    expected = [[3 / 10**0.5, 0, 1 / 10**0.5], [2 / 3, 2 / 3, 1 / 3]]
    np.testing.assert_allclose(homogeneous(embedding), expected, rtol=1e-15)


def test_moments_of_batches_equal_numpys_of_all_rows() -> None:
    data = features(50) + np.float32(100)  # a mean that is large relative to the deviations
    moments = Moments(C)
    for part in (data[:1], data[1:1], data[1:30], data[30:]):
        moments.add(part)
    assert moments.count == 50
    np.testing.assert_allclose(moments.mean, homogeneous(data).mean(0), rtol=1e-14)
    expected = np.cov(homogeneous(data).T)
    np.testing.assert_allclose(moments.covariance(), expected, atol=1e-14 * abs(expected).max())


def test_whitened_descriptors_have_mean_zero_and_unit_covariance() -> None:
    data = features(400)
    phi = fitted(data).apply(data)
    eigenvalues = np.linalg.eigvalsh(np.cov(homogeneous(data).T))
    kept = int((eigenvalues >= MIN_VARIANCE_RATIO * eigenvalues.mean()).sum())
    assert 2 < kept < C + 1  # both clipped and unclipped ones exist
    np.testing.assert_allclose(phi.mean(0), 0, atol=1e-10)
    covariance = np.cov(phi.T)
    np.testing.assert_allclose(covariance[:kept, :kept], np.eye(kept), atol=1e-9)
    clipped = np.diag(covariance)[kept:]
    expected = eigenvalues[::-1][kept:] / (MIN_VARIANCE_RATIO * eigenvalues.mean())
    np.testing.assert_allclose(clipped, expected, atol=1e-9)
    assert (clipped < 1).all()


def test_fewer_images_than_dimensions_do_not_amplify_unseen_directions() -> None:
    few = features(5)
    whitening = fitted(few)
    variance = np.linalg.eigvalsh(np.cov(homogeneous(few).T)).mean()
    largest = np.linalg.norm(whitening.projection, 2)
    assert largest == pytest.approx((MIN_VARIANCE_RATIO * variance) ** -0.5, rel=1e-6)
    np.testing.assert_allclose(whitening.projection @ whitening.inverse, np.eye(C + 1), atol=1e-9)


@pytest.mark.parametrize("images", [5, 400])
def test_the_folded_classifier_gives_scores_scaled_by_the_length(images: int) -> None:
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(K, C)), rng.normal(size=K)
    whitening = fitted(features(images))
    classifier = fold_classifier(whitening, weight, bias)
    new = features(100, seed=2)
    scores = whitening.apply(new) @ classifier.weight.T + classifier.bias
    logits = new.astype(np.float64) @ weight.T + bias
    length = np.sqrt(1 + (new.astype(np.float64) ** 2).sum(1, keepdims=True))
    np.testing.assert_allclose(scores, logits / length, atol=1e-10)
    np.testing.assert_array_equal(np.argsort(-scores), np.argsort(-logits))


def test_the_file_has_the_whitening_in_float32(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(K, C)), rng.normal(size=K)
    whitening = fitted(features(300))
    write_whitening(tmp_path / "w.safetensors", whitening, fold_classifier(whitening, weight, bias))
    stored = read_whitening(tmp_path / "w.safetensors", C)
    new = features(50, seed=3)
    phi, expected = stored.apply(new), whitening.apply(new)
    assert (phi.dtype, phi.shape, stored.size) == (np.float32, (50, C + 1), C + 1)
    np.testing.assert_allclose(phi, expected, atol=2e-6 * abs(expected).max())
    scores = phi @ stored.weight.T + stored.bias
    logits = new @ weight.T + bias
    np.testing.assert_array_equal(np.argsort(-scores)[:, :5], np.argsort(-logits)[:, :5])


def test_embeddings_near_the_largest_float32_are_whitened(tmp_path: Path) -> None:
    whitening = fitted(features(300))
    classifier = fold_classifier(whitening, np.ones((2, C)), np.ones(2))
    stored = write_whitening(tmp_path / "w.safetensors", whitening, classifier)
    huge = np.full((1, C), 3e38, np.float32)
    np.testing.assert_allclose(stored.apply(huge), whitening.apply(huge), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("images", [0, 1])
def test_too_few_images_are_refused(images: int) -> None:
    with pytest.raises(MultigrainError, match="too few") as caught:
        fitted(features(images))
    assert caught.value.kind is ErrorKind.DATASET


def test_identical_images_are_refused() -> None:
    with pytest.raises(MultigrainError, match="same descriptor"):
        fitted(np.repeat(features(1), 20, axis=0))


def test_a_non_finite_embedding_is_refused() -> None:
    data = features(9)
    data[3, 2] = np.nan
    with pytest.raises(MultigrainError) as caught:
        fitted(data)
    assert caught.value.kind is ErrorKind.NOT_FINITE


def test_a_damaged_or_mismatched_file_is_refused(tmp_path: Path) -> None:
    whitening = fitted(features(300))
    path = tmp_path / "w.safetensors"
    write_whitening(path, whitening, fold_classifier(whitening, np.ones((2, C)), np.ones(2)))
    with pytest.raises(MultigrainError, match="an embedding of 13 dimensions needs") as caught:
        read_whitening(path, C + 1)
    assert caught.value.kind is ErrorKind.CHECKPOINT
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(MultigrainError, match="not a complete"):
        read_whitening(path, C)
