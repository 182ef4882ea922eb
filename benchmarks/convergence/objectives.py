"""The joint loss with repeated augmentation against classification alone.

``python -m benchmarks.convergence.objectives --out DIR`` trains every combination of dataset,
seed and objective that ``DIR`` has no result of yet, and prints the table.

A seed has one network, trained for classification; each objective goes on from these weights
with an optimizer of its own. All have the same network, rate, schedule, augmentation, batch
size and number of steps, so the same number of views goes through the network; with repeated
augmentation they are of a third of the images an epoch, three of each.

Measured on the held-out images, those of glyphs in fonts that no training image shows: top-1,
and mean average precision of the embeddings (see ``retrieval.py``).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.convergence.command import SEEDS, Command
from benchmarks.convergence.journal import Record
from benchmarks.convergence.narrow import narrow_model
from benchmarks.convergence.retrieval import found_by
from benchmarks.convergence.run import EVALUATION_BATCH, Run, merged
from benchmarks.datasets.dataset import Dataset
from benchmarks.datasets.subset import Split
from multigrain.model.state import model_state
from multigrain.specs.resolve import resolve_training

# The paper's list but for the flip, cut as little as the copies of the test are.
AUGMENTATION = {
    "kind": "full", "crop_scale_min": 0.5, "crop_ratio_min": 0.8, "crop_ratio_max": 1.25,
}  # fmt: skip
CLASSIFICATION: dict[str, Any] = {
    "objective": {"classification_weight": 1.0, "instance_loss": "none"},
    "augmentation": {"repeats": 1},
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "classification": CLASSIFICATION,
    # Between the two: what is due to seeing a third of the images, three times.
    "repeated": {**CLASSIFICATION, "augmentation": {"repeats": 3}},
    "joint": {
        "objective": {
            "classification_weight": 0.5,
            "instance_loss": "margin",
            # Of the trained start weights' distances; the paper's 1.2 and 0.1 are for 600,000
            # steps: here beta would fall past all distances and back in the first 20.
            "beta_init": 0.6,
            "beta_learning_rate": 0.01,
        },
        "augmentation": {"repeats": 3},
    },
}
BATCH = 96
# Epochs of the start weights, and of each objective: a short series and one thrice as long.
START_EPOCHS = {"digits": 6, "glyphs": 12}
FURTHER_EPOCHS = ({"digits": 10, "glyphs": 14}, {"digits": 30, "glyphs": 42})
START_RATE, FURTHER_RATE = 0.2, 0.1
FIGURES = ("top1", "copy_map", "instance_map", "class_map")


def prepared(
    command: Command,
    dataset: Dataset,
    split: Split,
    objective: dict[str, Any],
    *,
    epochs: int,
    rate: float,
    seed: int,
) -> Run:
    """A run by a cosine from ``rate`` to 0."""
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
    """Of the network that the objectives go on from; trained when they are not there yet."""
    file = command.out / f"start-{dataset.name}-{seed}{'-quick' if command.quick else ''}.npz"
    if not file.exists():
        run = prepared(
            command, dataset, split, CLASSIFICATION,
            epochs=START_EPOCHS[dataset.name], rate=START_RATE, seed=seed,
        )  # fmt: skip
        run.to_the_end()
        np.savez(file, **model_state(run.model))
    with np.load(file) as stored:
        return dict(stored)


def trained(
    command: Command, dataset: Dataset, split: Split, objective: str, epochs: int, seed: int
) -> Record:
    """One run's figures."""
    weights = start_weights(command, dataset, split, seed)
    # Another seed: else classification alone would see the batches of the start weights again.
    run = prepared(
        command, dataset, split, OBJECTIVES[objective],
        epochs=epochs, rate=FURTHER_RATE, seed=seed + len(SEEDS),
    )  # fmt: skip
    run.start_from(weights)
    last = run.to_the_end()
    groups = [dataset.group(path) for path in split.held_out.paths]
    found = found_by(run.model, split.held_out, run.preprocessing, groups, EVALUATION_BATCH)
    what = {"dataset": dataset.name, "objective": objective, "epochs": epochs, "seed": seed}
    return {**what, "top1": last.top1, **found}


def table(records: Iterable[Record]) -> str:
    """Mean and standard deviation over the seeds, in per cent."""
    rows = [
        "| dataset | epochs | objective | top-1 | copy mAP | instance mAP | class mAP | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    series: dict[tuple[str, int, str], list[Record]] = {}
    for r in records:
        series.setdefault((r["dataset"], r["epochs"], r["objective"]), []).append(r)
    for (dataset, epochs, objective), runs in sorted(series.items()):
        cells = [_cell([100 * r[name] for r in runs if name in r]) for name in FIGURES]
        rows.append(f"| {dataset} | {epochs} | {objective} | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(rows)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    command = Command.parsed(__doc__)
    journal = command.journal("objectives")
    splits = {d.name: command.shortened(d.split(command.out)) for d in command.datasets}
    jobs: list[tuple[str, Callable[[], Record]]] = [
        (
            f"{dataset.name} {epochs[dataset.name]} epochs {objective} seed {seed}",
            partial(
                trained, command, dataset, splits[dataset.name], objective,
                epochs[dataset.name], seed,
            ),
        )
        for epochs in FURTHER_EPOCHS
        for seed in command.seeds()
        for dataset in command.datasets
        for objective in OBJECTIVES
    ]  # fmt: skip
    command.complete(journal, jobs)
    print(table(journal.records().values()))


if __name__ == "__main__":
    main()
