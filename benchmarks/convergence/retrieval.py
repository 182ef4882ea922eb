"""What a network's embeddings find, by the parts that an evaluation job is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from multigrain.data.benchmarks import of_folder
from multigrain.data.image_folder import ImageFolder
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.copy_detection import EmbeddingTable, evaluate_copies
from multigrain.evaluate.inference import Compiled, Inference, Transform
from multigrain.evaluate.retrieval import Ranker
from multigrain.images.parameters import Preprocessing
from multigrain.model.multigrain import MultiGrain


def found_by(
    model: MultiGrain,
    folder: ImageFolder,
    preprocessing: Preprocessing,
    groups: Sequence[str],
    batch_size: int,
) -> dict[str, float]:
    """Mean average precisions (trapezoidal) over a folder's images.

    Args:
        groups: of each image; those of a group are next to each other.

    Returns:
        copy_map: a distorted copy of each image looks for its original. instance_map: each image
        looks for the others of its group. class_map: for the others of its class.
    """
    all_reduce, transform = AllReduce(1), Transform(preprocessing)
    inference = Inference(Compiled(model), batch_size, threads=1)
    originals = EmbeddingTable(len(folder))
    everything = range(len(folder))
    for predictions in inference.run(everything, lambda i: transform.file(folder, i), {}):
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
            continue  # nobody has a second image
        ranking = Ranker(of_folder(grouped), embeddings, present).rank(all_reduce)
        if ranking is None:
            raise RuntimeError("nobody asked the ranking to stop")
        result[name] = float(ranking.precision[ranking.scored].mean())
    return result
