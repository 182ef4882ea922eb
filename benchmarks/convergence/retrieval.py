"""Retrieval metrics of a network, computed with the parts of an evaluation job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from multigrain.data.benchmarks import of_folder
from multigrain.data.image_folder import ImageFolder
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.copy_detection import EmbeddingTable, evaluate_copies
from multigrain.evaluate.inference import CompiledModel, Inference, Transform
from multigrain.evaluate.retrieval import Ranker
from multigrain.images.parameters import Preprocessing
from multigrain.model.multigrain import MultiGrain


def retrieval_metrics(
    model: MultiGrain,
    folder: ImageFolder,
    preprocessing: Preprocessing,
    groups: Sequence[str],
    batch_size: int,
) -> dict[str, float]:
    """Mean average precisions (trapezoidal) over a folder's images.

    Args:
        groups: group of each image; images of a group are adjacent.

    Returns:
        ``copy_map``: distorted copies as queries for their originals; ``instance_map``: each image
        as query for the others of its group; ``class_map``: for the others of its class.
    """
    all_reduce, transform = AllReduce(1), Transform(preprocessing)
    inference = Inference(CompiledModel(model), batch_size, threads=1)
    originals = EmbeddingTable(len(folder))
    indices = range(len(folder))
    for predictions in inference.run(indices, lambda i: transform.file(folder, i), {}):
        originals.add(predictions.indices, predictions.embedding)
    copies = evaluate_copies(
        inference, folder, transform, originals,
        seed=0, all_reduce=all_reduce, embedding_size=model.embedding_size,
    )  # fmt: skip
    embeddings, present = originals.checked(folder, model.embedding_size, all_reduce)
    names, numbers = np.unique(np.array(groups), return_inverse=True)
    by_instance = replace(
        folder, classes=tuple(names.tolist()), labels=numbers.astype(folder.labels.dtype)
    )
    result = {"copy_map": copies.metrics["copy_map"]}
    for name, grouped in (("instance_map", by_instance), ("class_map", folder)):
        if len(grouped.classes) == len(grouped):
            continue  # every image is alone in its group
        ranking = Ranker(of_folder(grouped), embeddings, present).rank(all_reduce)
        if ranking is None:
            raise RuntimeError("ranking was stopped")
        result[name] = float(ranking.precision[ranking.scored].mean())
    return result
