"""Compares the joint loss with repeated augmentation and classification alone.

Trains every combination of dataset, seed and objective that has no result in ``--out`` yet.

Each seed has one network, trained for classification; every objective continues from its weights
with a new optimizer. All use the same network, learning rate, schedule, augmentation, batch size
and number of steps, so the network sees the same number of views; with repeated augmentation these
are three views each of a third of the images per epoch.

Results are for the held-out images (glyphs in fonts that no training image shows): top-1 and mean
average precision of the embeddings (see ``retrieval.py``).
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.convergence.command import SEEDS, Command
from benchmarks.convergence.narrow import narrow_model
from benchmarks.convergence.results import Record
from benchmarks.convergence.retrieval import retrieval_metrics
from benchmarks.convergence.run import EVALUATION_BATCH, Run, merged
from benchmarks.datasets.dataset import Dataset
from benchmarks.results import Report
from multigrain.data.held_out import Split
from multigrain.model.state import model_state
from multigrain.specs.resolve import resolve_training

# As in the paper but without the flip; crops are as mild as those of the copies in the test.
AUGMENTATION = {
    "kind": "full", "crop_scale_min": 0.5, "crop_ratio_min": 0.8, "crop_ratio_max": 1.25,
}  # fmt: skip
CLASSIFICATION: dict[str, Any] = {
    "objective": {"classification_weight": 1.0, "instance_loss": "none"},
    "augmentation": {"repeats": 1},
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "classification": CLASSIFICATION,
    # Separates the effect of seeing a third of the images three times.
    "repeated": {**CLASSIFICATION, "augmentation": {"repeats": 3}},
    "joint": {
        "objective": {
            "classification_weight": 0.5,
            "instance_loss": "margin",
            # Fits the distances under the trained initial weights. The paper's 1.2 and 0.1 are for
            # 600,000 steps; here beta would fall below all distances within 20 steps.
            "beta_init": 0.6,
            "beta_learning_rate": 0.01,
        },
        "augmentation": {"repeats": 3},
    },
}
BATCH = 96
# Epochs of the initial training and of each objective: a short series and one three times as long.
START_EPOCHS = {"digits": 6, "glyphs": 12}
FURTHER_EPOCHS = ({"digits": 10, "glyphs": 14}, {"digits": 30, "glyphs": 42})
START_RATE, FURTHER_RATE = 0.2, 0.1
METRICS = ("top1", "copy_map", "instance_map", "class_map")
COLUMNS = ("epochs", "objective", "top-1", "copy mAP", "instance mAP", "class mAP", "seeds")


def prepare(
    command: Command,
    dataset: Dataset,
    split: Split,
    objective: dict[str, Any],
    *,
    epochs: int,
    rate: float,
    seed: int,
) -> Run:
    """A run whose learning rate follows a cosine from ``rate`` to 0."""
    spec = resolve_training(
        merged(
            dataset.settings,
            {"augmentation": AUGMENTATION},
            objective,
            {
                "dataset": {"train_path": str(split.train.root)},
                "optimizer": {"kind": "momentum", "weight_decay": 5e-4},
                "schedule": {
                    "epochs": command.epochs(epochs),
                    "batch_size": BATCH,
                    "length_factor": 1,
                    "learning_rate": {"kind": "cosine", "init": rate},
                },
                "devices": {"count": 1},
                "seed": seed,
            },
        )
    )
    return Run(spec, split, build=narrow_model)


def start_weights(
    command: Command, dataset: Dataset, split: Split, seed: int
) -> dict[str, NDArray[np.float32]]:
    """Weights from which the objectives continue; trains the network if they are missing."""
    file = command.out / f"start-{dataset.name}-{seed}{'-quick' if command.quick else ''}.npz"
    if not file.exists():
        run = prepare(
            command, dataset, split, CLASSIFICATION,
            epochs=START_EPOCHS[dataset.name], rate=START_RATE, seed=seed,
        )  # fmt: skip
        run.finish()
        np.savez(file, **model_state(run.model))
    with np.load(file) as stored:
        return dict(stored)


def train(
    command: Command, dataset: Dataset, split: Split, objective: str, epochs: int, seed: int
) -> Record:
    """Trains one run and returns its metrics."""
    weights = start_weights(command, dataset, split, seed)
    # Another seed: otherwise classification alone would repeat the batches of the first training.
    run = prepare(
        command, dataset, split, OBJECTIVES[objective],
        epochs=epochs, rate=FURTHER_RATE, seed=seed + len(SEEDS),
    )  # fmt: skip
    run.start_from(weights)
    last = run.finish()
    groups = [dataset.group(path) for path in split.held_out.paths]
    retrieval = retrieval_metrics(
        run.model, split.held_out, run.preprocessing, groups, EVALUATION_BATCH
    )
    settings = {"dataset": dataset.name, "objective": objective, "epochs": epochs, "seed": seed}
    return {**settings, "top1": last.top1, **retrieval}


def rows(records: Iterable[Record]) -> list[tuple[str, ...]]:
    """Mean and standard deviation over the seeds, in percent, as cells of a table."""
    series: dict[tuple[str, int, str], list[Record]] = {}
    for r in records:
        series.setdefault((r["dataset"], r["epochs"], r["objective"]), []).append(r)
    found = []
    for (dataset, epochs, objective), runs in sorted(series.items()):
        cells = [_cell([100 * r[name] for r in runs if name in r]) for name in METRICS]
        found.append((dataset, str(epochs), objective, *cells, str(len(runs))))
    return found


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> int:
    command = Command.parsed("convergence.objectives")
    report = Report("convergence.objectives", command.options)
    results = command.results("objectives")
    splits = {d.name: command.shortened(d.split(command.out)) for d in command.datasets}
    jobs: list[tuple[str, Callable[[], Record]]] = [
        (
            f"{dataset.name} {epochs[dataset.name]} epochs {objective} seed {seed}",
            partial(
                train, command, dataset, splits[dataset.name], objective,
                epochs[dataset.name], seed,
            ),
        )
        for epochs in FURTHER_EPOCHS
        for seed in command.seeds()
        for dataset in command.datasets
        for objective in OBJECTIVES
    ]  # fmt: skip
    if not command.complete(results, jobs):
        print("some runs are missing: run again")
        return 0
    table = report.table("Mean and standard deviation over the seeds, %", COLUMNS, first="dataset")
    for name, *cells in rows(results.records().values()):
        table.row(name, *cells)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
