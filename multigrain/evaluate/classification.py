"""Classification: top-1, top-5 and loss over all images, the same for any number of workers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multigrain.data.image_folder import ImageFolder
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.inference import Predictions
from multigrain.text import printable
from multigrain.weights.restore import RestoredModel

UNREAD = -1
_COLUMNS = 6  # seen, predicted class, rank of the true class, loss, non-finite, probability


def map_class_indices(folder: ImageFolder, restored: RestoredModel) -> ImageFolder:
    """Maps the dataset's class indices to the model's, by class name.

    Raises:
        MultigrainError: DATASET or INVALID_FIELD, if the model does not have the classes.
    """
    if restored.weights.labels:
        return folder.relabeled(restored.weights.labels)
    if len(folder.classes) > restored.spec.classes:
        raise MultigrainError.field(
            "spec.dataset_path",
            f"has {len(folder.classes)} class folders, but the model {restored.spec.classes} "
            "outputs: use the dataset that the model was trained for",
        )
    return folder


@dataclass(frozen=True)
class ClassificationResult:
    """Predictions and their metrics. Unreadable images count in no metric.

    Args:
        labels: (N,) true classes.
        predicted: (N,) predicted class; UNREAD for unreadable images.
        rank: (N,) rank of the true class among the logits, from 0 (ties by class index); UNREAD
            for unreadable images.
        loss: (N,) cross-entropy without label smoothing; 0 for unreadable images.
        probability: (N,) softmax of the predicted class; 0 for unreadable images.
        classes: class names.
    """

    labels: NDArray[np.int32]
    predicted: NDArray[np.int64]
    rank: NDArray[np.int64]
    loss: NDArray[np.float64]
    probability: NDArray[np.float64]
    classes: tuple[str, ...]

    @property
    def read(self) -> NDArray[np.bool_]:
        """(N,) whether each image was readable."""
        return np.asarray(self.rank != UNREAD)

    @property
    def images(self) -> int:
        """Number of images scored, over all workers."""
        return int(self.read.sum())

    @property
    def metrics(self) -> dict[str, float]:
        """top1 and top5 in [0, 1], loss in nats."""
        rank = self.rank[self.read]
        return {
            "top1": float((rank < 1).mean()),
            "top5": float((rank < 5).mean()),
            "loss": float(self.loss[self.read].mean()),
        }

    def per_class(self) -> dict[str, float]:
        """Returns the top-1 accuracy of each class that has images."""
        result = {}
        for number, name in enumerate(self.classes):
            of_class = self.rank[self.read & (self.labels == number)]
            if len(of_class):
                result[name] = float((of_class < 1).mean())
        return result

    @property
    def outputs(self) -> int:
        """Number of classes, or of outputs if an image was predicted as one without a name."""
        return max(len(self.classes), int(self.predicted.max(initial=0)) + 1)

    def confusion(self) -> NDArray[np.int64]:
        """Returns the confusion matrix (classes, outputs): images of class i predicted as j."""
        counts = np.zeros((len(self.classes), self.outputs), np.int64)
        np.add.at(counts, (self.labels[self.read], self.predicted[self.read]), 1)
        return counts


class ClassificationCounter:
    """Accumulates predictions batch by batch; ``result`` reduces them over the workers."""

    def __init__(self, folder: ImageFolder) -> None:
        self._folder = folder
        # One row per image, 0 for those of other workers: the sum over the workers is the whole
        # table, and metrics do not depend on the number of workers.
        self._table = np.zeros((len(folder), _COLUMNS), np.float32)

    def add(self, predictions: Predictions) -> None:
        """Adds a batch."""
        labels = self._folder.labels[predictions.indices]
        logits = predictions.logits.astype(np.float64)
        finite = np.isfinite(logits).all(axis=1)
        logits[~finite] = 0.0
        true = np.take_along_axis(logits, labels[:, None], axis=1)
        before = np.arange(logits.shape[1]) < labels[:, None]
        rank = ((logits > true) | ((logits == true) & before)).sum(axis=1)
        top = logits.max(axis=1, keepdims=True)
        total = np.exp(logits - top).sum(axis=1)
        loss = np.log(total) + (top - true)[:, 0]
        columns = (np.ones(len(labels)), logits.argmax(axis=1), rank, loss, ~finite, 1 / total)
        self._table[predictions.indices] = np.stack(columns, axis=1)

    def result(self, all_reduce: AllReduce) -> ClassificationResult:
        """Reduces the predictions over the workers. Collective.

        Raises:
            MultigrainError: DATASET, if no image was readable; NOT_FINITE, if outputs are not.
        """
        table = all_reduce.sum(self._table).astype(np.float64)
        seen = table[:, 0] > 0
        if not seen.any():
            raise no_readable_image(self._folder)
        non_finite = int(table[:, 4].sum())
        if non_finite:
            raise non_finite_outputs(non_finite, int(seen.sum()))
        return ClassificationResult(
            labels=self._folder.labels,
            predicted=np.where(seen, table[:, 1], UNREAD).astype(np.int64),
            rank=np.where(seen, table[:, 2], UNREAD).astype(np.int64),
            loss=table[:, 3],
            probability=table[:, 5],
            classes=self._folder.classes,
        )


def no_readable_image(folder: ImageFolder) -> MultigrainError:
    """Returns the DATASET error of a folder without a readable image."""
    return MultigrainError(
        ErrorKind.DATASET,
        f"none of the {len(folder)} images of {printable(str(folder.root))} can be read: check the "
        "files",
    )


def non_finite_outputs(count: int, images: int) -> MultigrainError:
    """Returns the NOT_FINITE error of a network with non-finite outputs for ``count`` images."""
    return MultigrainError(
        ErrorKind.NOT_FINITE,
        f"the network's outputs for {count} of {images} images are not finite: its weights have "
        "diverged; use an earlier checkpoint",
    )
