"""Copy detection: each image is searched for with a distorted copy of itself."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from multigrain.data.image_folder import ImageFolder
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.classification import no_readable_image, non_finite_outputs
from multigrain.evaluate.distortion import distort
from multigrain.evaluate.inference import Batches, FloatArray, Inference, Transform, split_batches
from multigrain.evaluate.retrieval import average_precision
from multigrain.evaluate.search import Search, l2_normalize
from multigrain.images.decode import decode_image

UNREAD = -1


@dataclass(frozen=True)
class CopyDetectionResult:
    """Ranks and their metrics.

    Args:
        rank: (N,) rank of each original among all originals when queried with its copy, from 0
            (ties by index); UNREAD for unreadable images.
    """

    rank: NDArray[np.int64]

    @property
    def images(self) -> int:
        """Number of queries, which is also the size of the database."""
        return int((self.rank != UNREAD).sum())

    @property
    def metrics(self) -> dict[str, float]:
        """copy_map: mean trapezoidal average precision; copy_recall1: fraction ranked first."""
        ranks = self.rank[self.rank != UNREAD]
        precision = [average_precision([rank], 1) for rank in ranks.tolist()]
        return {"copy_map": float(np.mean(precision)), "copy_recall1": float((ranks == 0).mean())}


class EmbeddingTable:
    """Normalized embeddings of all images, sharded across the workers until first use.

    Args:
        images: N, number of images.
    """

    def __init__(self, images: int) -> None:
        self._images = images
        self._rows: dict[int, FloatArray] = {}
        self._checked: tuple[FloatArray, NDArray[np.bool_]] | None = None

    def add(self, indices: NDArray[np.int64], embedding: FloatArray) -> None:
        """Adds embeddings (n, C) of this worker's images, not normalized."""
        for index, row in zip(indices.tolist(), l2_normalize(embedding), strict=True):
            self._rows[index] = row

    def all(self, size: int, all_reduce: AllReduce) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Returns all workers' embeddings (N, size), and which are present (N,). Collective."""
        table = np.zeros((self._images, size + 1), np.float32)
        for index, row in self._rows.items():
            table[index, :-1] = row
            table[index, -1] = 1.0
        table = all_reduce.sum(table)
        return np.ascontiguousarray(table[:, :-1]), table[:, -1] > 0

    def checked(
        self, folder: ImageFolder, size: int, all_reduce: AllReduce
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Returns :meth:`all`, checked and cached. Collective.

        Raises:
            MultigrainError: DATASET, if no image was readable; NOT_FINITE, if embeddings are not.
        """
        if self._checked is None:
            database, present = self.all(size, all_reduce)
            if not present.any():
                raise no_readable_image(folder)
            non_finite = int((~np.isfinite(database).all(axis=1)).sum())
            if non_finite:
                raise non_finite_outputs(non_finite, int(present.sum()))
            self._checked = database, present
        return self._checked


def evaluate_copies(
    inference: Inference,
    folder: ImageFolder,
    transform: Transform,
    originals: EmbeddingTable,
    *,
    seed: int,
    all_reduce: AllReduce,
    embedding_size: int,
    batches: Batches | None = None,
) -> CopyDetectionResult:
    """Searches for each original with a distorted copy of it. Collective.

    Args:
        inference: the network; each worker queries with its share of the images.
        folder: the images.
        transform: preprocessing of originals and copies.
        originals: embeddings of the originals.
        seed: of the distortions: image i has the same copy for any number of workers.
        all_reduce: sums over the workers.
        embedding_size: C.
        batches: this worker's share of the queries; None for images of one shape. (A copy has
            the shape of its original.)

    Raises:
        MultigrainError: DATASET, if no image was readable; NOT_FINITE, if embeddings are not.
    """
    database, present = originals.checked(folder, embedding_size, all_reduce)
    if batches is None:
        batches = split_batches(inference.shard(len(folder)), inference.batch_size)

    def load(index: int) -> FloatArray:
        image = decode_image(folder.read(index), folder.limits)
        return transform.image(distort(image, Random(seed << 64 | index)))

    # Rank, seen, non-finite; zero for the images of other workers.
    table = np.zeros((len(folder), 3), np.float32)
    # Each image is a group of its own.
    search = Search(database, np.arange(len(folder)), present)
    for predictions in inference.run_batches(batches, load, {}):
        finite = np.isfinite(predictions.embedding).all(axis=1)
        table[predictions.indices[~finite], 1:] = 1.0
        indices = predictions.indices[finite]
        found = search.find(l2_normalize(predictions.embedding[finite]), indices)
        for index, hits in zip(indices.tolist(), found, strict=True):
            if len(hits.ranks):
                table[index, :2] = hits.ranks[0], 1.0
    table = all_reduce.sum(table)
    non_finite = int(table[:, 2].sum())
    if non_finite:
        raise non_finite_outputs(non_finite, int(table[:, 1].sum()))
    return CopyDetectionResult(np.where(table[:, 1] > 0, table[:, 0], UNREAD).astype(np.int64))
