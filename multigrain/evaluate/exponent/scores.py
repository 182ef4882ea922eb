"""How each exponent did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multigrain.evaluate.inference import Predictions
from multigrain.evaluate.search import normalised


@dataclass(frozen=True)
class ExponentScore:
    """Figures of one exponent.

    Args:
        p: the exponent.
        top1: share of the images whose class was recognised.
        loss: mean cross-entropy.
        retrieval: mean average precision of finding the other copies of an image; None where
            only classification was looked at.
    """

    p: float
    top1: float
    loss: float
    retrieval: float | None = None

    @property
    def score(self) -> float:
        """Good for both: the mean of top1 and retrieval, both of 0 to 1."""
        return self.top1 if self.retrieval is None else (self.top1 + self.retrieval) / 2


def best(scores: list[ExponentScore]) -> ExponentScore:
    """The highest score; of equal ones, the smallest exponent."""
    return max(scores, key=lambda score: (score.score, -score.p))


class Table:
    """What this worker computed of N images at P exponents; zero for those of others.

    Args:
        labels: (N,) true classes.
        exponents: P.
        size: C of the embeddings.
        embeddings: whether they are kept: N * P * C float32.
    """

    def __init__(
        self, labels: NDArray[np.int32], exponents: int, size: int, *, embeddings: bool
    ) -> None:
        self._labels = labels
        #: (N, P, 2): recognised, loss.
        self.figures: NDArray[np.float32] = np.zeros((len(labels), exponents, 2), np.float32)
        #: (N,): 1 where the image was readable.
        self.present: NDArray[np.float32] = np.zeros(len(labels), np.float32)
        shape = (exponents, len(labels), size) if embeddings else (exponents, 0, size)
        #: (P, N, C), normalised.
        self.embeddings: NDArray[np.float32] = np.zeros(shape, np.float32)

    def add(self, predictions: Predictions) -> None:
        """Takes embeddings (n, P, C) and logits (n, P, K)."""
        rows = predictions.indices
        labels = self._labels[rows]
        logits = predictions.logits.astype(np.float64)
        logits -= logits.max(axis=2, keepdims=True)
        own = np.take_along_axis(logits, labels[:, None, None].astype(np.int64), axis=2)[:, :, 0]
        self.figures[rows, :, 0] = logits.argmax(axis=2) == labels[:, None]
        self.figures[rows, :, 1] = np.log(np.exp(logits).sum(axis=2)) - own
        self.present[rows] = 1.0
        if self.embeddings.shape[1]:
            for number in range(len(self.embeddings)):
                self.embeddings[number, rows] = normalised(predictions.embedding[:, number])
