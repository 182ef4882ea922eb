"""Conversion of outputs to the bytes of a result."""

from __future__ import annotations

import numpy as np
import pytest

from multigrain.engine.protocol import EmbeddingOptions
from multigrain.engine.worker import encode_vector, probabilities, top_classes
from multigrain.errors import ErrorKind, MultigrainError

RNG = np.random.default_rng(0)


def decoded(vector: np.ndarray, **wants: object) -> np.ndarray:
    encoded = encode_vector(vector.astype(np.float32), EmbeddingOptions(**wants))
    letter = {"fp16": "<f2", "int8": "i1"}.get(str(wants.get("dtype")), "<f4")
    return np.frombuffer(encoded.data, letter).astype(np.float64) * (encoded.scale or 1)


@pytest.mark.parametrize("factor", [1e-20, 1.0, 1e20])
def test_a_normalized_vector_has_length_one_at_any_scale(factor: float) -> None:
    vector = RNG.standard_normal(2048) * factor
    got = decoded(vector)
    assert np.linalg.norm(got) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(got, vector / np.linalg.norm(vector), atol=1e-7)


def test_the_error_of_int8_is_at_most_half_a_step() -> None:
    for _ in range(20):
        vector = RNG.standard_normal(257)
        encoded = encode_vector(vector.astype(np.float32), EmbeddingOptions(dtype="int8"))
        unit = vector / np.linalg.norm(vector)
        assert encoded.scale == pytest.approx(np.abs(unit).max() / 127, rel=1e-6)
        got = np.frombuffer(encoded.data, "i1") * encoded.scale
        assert np.abs(got - unit).max() <= encoded.scale / 2 * 1.001
        assert float(got @ unit) / np.linalg.norm(got) > 0.9995


def test_fp16_is_accurate_to_three_digits() -> None:
    vector = RNG.standard_normal(512)
    unit = vector / np.linalg.norm(vector)
    np.testing.assert_allclose(decoded(vector, dtype="fp16"), unit, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_a_zero_vector_stays_zero(dtype: str) -> None:
    assert not decoded(np.zeros(8), dtype=dtype).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_outputs_are_refused(bad: float) -> None:
    row = np.array([1, bad, 2], np.float32)
    with pytest.raises(MultigrainError) as caught:
        encode_vector(row, EmbeddingOptions())
    assert caught.value.kind is ErrorKind.NOT_FINITE
    with pytest.raises(MultigrainError) as caught:
        probabilities(row)
    assert caught.value.kind is ErrorKind.NOT_FINITE


def test_an_fp16_overflow_is_refused_with_a_hint() -> None:
    row = np.array([1e6, 1], np.float32)
    with pytest.raises(MultigrainError, match="fp32"):
        encode_vector(row, EmbeddingOptions(normalize=False, dtype="fp16"))
    encode_vector(row, EmbeddingOptions(normalize=True, dtype="fp16"))


def test_probabilities_are_the_softmax_of_all_classes() -> None:
    logits = np.array([1000.0, 998.0, -1000.0, 1000.0], np.float32)
    every = probabilities(logits)
    top = top_classes(every, 3)
    ids = np.frombuffer(top.data[:12], "<i4")
    best = np.frombuffer(top.data[12:], "<f4")
    assert ids.tolist() == [0, 3, 1]  # equal ones in the order of their ids
    whole = 2 + np.exp(-2.0)
    np.testing.assert_allclose(best, [1 / whole, 1 / whole, np.exp(-2) / whole], rtol=1e-6)
    np.testing.assert_allclose(every, [1 / whole, np.exp(-2) / whole, 0, 1 / whole], rtol=1e-12)


@pytest.mark.process
def test_top_k_above_the_number_of_classes_returns_all() -> None:
    assert top_classes(np.full(3, 1 / 3), 10).count == 3
