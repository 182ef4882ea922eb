"""Started by msrun in test_workers.py: evaluates a dataset as one of several workers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mindspore import communication, set_device

from multigrain.data.folder import scan
from multigrain.evaluate.classification import evaluate_classification
from multigrain.images.parameters import Preprocessing
from tests.evaluate.networks import MeanColour


def main(dataset: str, out: str) -> None:
    set_device("CPU")
    communication.init("mccl")
    rank, world = communication.get_rank(), communication.get_group_size()
    result = evaluate_classification(
        MeanColour(),
        scan(Path(dataset)),
        Preprocessing(size=16, resize_short=18),
        batch_size=4,
        rank=rank,
        world=world,
    )
    body = {"world": world, "rank": result.rank.tolist(), "loss": result.loss.tolist()}
    Path(out, f"{rank}.json").write_text(json.dumps(body))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
