"""Class numbers of a dataset that are a network's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multigrain.data.image_folder import ImageFolder
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.inference import Predictions
from multigrain.weights.restore import RestoredModel


def map_class_indices(folder: ImageFolder, restored: RestoredModel) -> ImageFolder:
    """The images with class numbers of the network.

    Raises:
        MultigrainError: DATASET or INVALID_FIELD if the classes are not the network's.
    """
    if restored.weights.labels:
        return folder.relabeled(restored.weights.labels)
    if len(folder.classes) > restored.spec.classes:
        raise MultigrainError.field(
            "spec.dataset_path",
            f"it has {len(folder.classes)} class folders, the network {restored.spec.classes} "
            "outputs: give the dataset that the network was trained for",
        )
    return folder


# MERGED: Classification figures over every image, the same for any number of workers.


UNREAD = -1
_COLUMNS = 5  # seen, predicted class, rank of the true class, loss, not finite


@dataclass(frozen=True)
class ClassificationResult:
    """Figures and what they are made of. Unreadable images are in no figure, only counted.

    Args:
        labels: (N,) true classes.
        predicted: (N,) class of the greatest logit; UNREAD where the image was not readable.
        rank: (N,) of the true class among the logits, from 0 (ties by class number); or UNREAD.
        loss: (N,) cross-entropy, plain; 0 where unreadable.
        classes: names.
    """

    labels: NDArray[np.int32]
    predicted: NDArray[np.int64]
    rank: NDArray[np.int64]
    loss: NDArray[np.float64]
    classes: tuple[str, ...]

    @property
    def read(self) -> NDArray[np.bool_]:
        """(N,) whether the image was readable."""
        return np.asarray(self.rank != UNREAD)

    @property
    def images(self) -> int:
        """Images scored, over all workers."""
        return int(self.read.sum())

    @property
    def metrics(self) -> dict[str, float]:
        """top1 and top5 as shares, loss in nats."""
        rank = self.rank[self.read]
        return {
            "top1": float((rank < 1).mean()),
            "top5": float((rank < 5).mean()),
            "loss": float(self.loss[self.read].mean()),
        }

    def per_class(self) -> dict[str, float]:
        """Share of each class's images that were recognized; classes without images left out."""
        result = {}
        for number, name in enumerate(self.classes):
            of_class = self.rank[self.read & (self.labels == number)]
            if len(of_class):
                result[name] = float((of_class < 1).mean())
        return result

    def confusion(self) -> NDArray[np.int64]:
        """(classes, outputs): images of class i (row) taken for class j (column)."""
        columns = max(len(self.classes), int(self.predicted.max(initial=0)) + 1)
        counts = np.zeros((len(self.classes), columns), np.int64)
        np.add.at(counts, (self.labels[self.read], self.predicted[self.read]), 1)
        return counts


class ClassificationCounter:
    """Takes predictions batch by batch; ``result`` puts the workers' together."""

    def __init__(self, folder: ImageFolder) -> None:
        self._folder = folder
        # One row an image, 0 for those of other workers: a sum is then a union, and every
        # figure is computed from the same numbers in the same order, however many workers.
        self._table = np.zeros((len(folder), _COLUMNS), np.float32)

    def add(self, predictions: Predictions) -> None:
        """Counts a batch."""
        labels = self._folder.labels[predictions.indices]
        logits = predictions.logits.astype(np.float64)
        finite = np.isfinite(logits).all(axis=1)
        logits[~finite] = 0.0
        true = np.take_along_axis(logits, labels[:, None], axis=1)
        before = np.arange(logits.shape[1]) < labels[:, None]
        rank = ((logits > true) | ((logits == true) & before)).sum(axis=1)
        top = logits.max(axis=1, keepdims=True)
        loss = np.log(np.exp(logits - top).sum(axis=1)) + (top - true)[:, 0]
        columns = (np.ones(len(labels)), logits.argmax(axis=1), rank, loss, ~finite)
        self._table[predictions.indices] = np.stack(columns, axis=1)

    def result(self, all_reduce: AllReduce) -> ClassificationResult:
        """The figures. Collective.

        Raises:
            MultigrainError: DATASET if no image was readable, NOT_FINITE if outputs are not.
        """
        table = all_reduce.sum(self._table).astype(np.float64)
        seen = table[:, 0] > 0
        if not seen.any():
            raise no_readable_image(self._folder)
        broken = int(table[:, 4].sum())
        if broken:
            raise not_finite(broken, int(seen.sum()))
        return ClassificationResult(
            labels=self._folder.labels,
            predicted=np.where(seen, table[:, 1], UNREAD).astype(np.int64),
            rank=np.where(seen, table[:, 2], UNREAD).astype(np.int64),
            loss=table[:, 3],
            classes=self._folder.classes,
        )


def no_readable_image(folder: ImageFolder) -> MultigrainError:
    """DATASET."""
    return MultigrainError(
        ErrorKind.DATASET,
        f"none of the {len(folder)} images of {folder.root} can be read: check the files",
    )


def not_finite(broken: int, images: int) -> MultigrainError:
    """NOT_FINITE."""
    return MultigrainError(
        ErrorKind.NOT_FINITE,
        f"the network's outputs for {broken} of {images} images are not finite: its weights have "
        "diverged; use an earlier checkpoint",
    )
