"""Started by msrun in test_workers.py: evaluates a dataset as one of several workers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mindspore import communication, set_device

from multigrain.data.benchmarks import list_benchmark
from multigrain.data.image_folder import scan
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.copy_detection import EmbeddingTable
from multigrain.evaluate.inference import Inference, Transform
from multigrain.evaluate.retrieval import Ranker
from multigrain.images.parameters import Preprocessing
from tests.evaluate.measure import ALL_TASKS, measure
from tests.evaluate.networks import MeanColor


def search(root: Path, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Retrieval by class folders, with whole images of many shapes."""
    benchmark, all_reduce = list_benchmark("groups", root), AllReduce(world)
    folder = benchmark.folder
    rect = Transform(Preprocessing(size=16, resize_short=16), "rect")
    batches = rect.batches(folder, 4, rank=rank, world=world, all_reduce=all_reduce)
    inference, found = Inference(MeanColor(), 4, rank, world), EmbeddingTable(len(folder))
    for part in inference.run_batches(batches, lambda index: rect.file(folder, index), {}):
        found.add(part.indices, part.embedding)
    embeddings, present = found.checked(folder, 12, all_reduce)
    ranking = Ranker(benchmark, embeddings, present, block=40).rank(
        all_reduce, rank=rank, world=world
    )
    assert ranking is not None
    return {
        "embeddings": embeddings.tolist(),
        "ranks": ranking.ranks.tolist(),
        "precision": ranking.precision.tolist(),
    }


def figures(root: Path, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """All tasks that share a forward pass, with their details."""
    how = Preprocessing(size=16, resize_short=18)
    found = measure(MeanColor(), scan(root), how, tasks=ALL_TASKS, rank=rank, world=world)
    assert found is not None
    assert found.classification is not None
    assert found.copies is not None
    return {
        "metrics": found.metrics,
        "rank": found.classification.rank.tolist(),
        "copy_rank": found.copies.rank.tolist(),
    }


def main(dataset: str, out: str) -> None:
    set_device("CPU")
    communication.init("mccl")
    rank, world = communication.get_rank(), communication.get_group_size()
    body: dict[str, Any] = {
        "world": world,
        "figures": figures(Path(dataset), rank, world),
        "search": search(Path(dataset), rank, world),
    }
    Path(out, f"{rank}.json").write_text(json.dumps(body))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
