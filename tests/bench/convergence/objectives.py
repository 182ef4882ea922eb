"""The joint loss with repeated augmentation against classification alone.

``python -m tests.bench.convergence.objectives --out DIR`` trains every combination of dataset,
objective and seed that ``DIR`` has no result of yet, and prints the table. Both objectives have
the same network, optimiser, schedule, augmentation, batch size and number of steps, so the same
number of views goes through the network; with repeated augmentation they are of a third of the
images an epoch, three of each.

Measured on the held-out images, those of glyphs in fonts that no training image shows: top-1,
and mean average precision of the embeddings (see ``retrieval.py``).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from multigrain.spec.resolve import resolve_training
from tests.bench.convergence.command import Command
from tests.bench.convergence.journal import Record
from tests.bench.convergence.retrieval import found_by
from tests.bench.convergence.run import EVALUATION_BATCH, Run, merged
from tests.bench.datasets.dataset import DATASETS, Dataset

OBJECTIVES: dict[str, dict[str, Any]] = {
    "classification": {
        "objective": {"classification_weight": 1.0, "instance_loss": "none"},
        "augmentation": {"repeats": 1},
    },
    "joint": {
        "objective": {"classification_weight": 0.5, "instance_loss": "margin"},
        "augmentation": {"repeats": 3},
    },
}
BATCH = 96
EPOCHS = {"digits": 12, "glyphs": 10}
# The best of the rates that optimizers.py tries with momentum, for classification alone.
RATE = 0.2
FIGURES = ("top1", "copy_map", "instance_map", "class_map")


def trained(command: Command, dataset: Dataset, objective: str, seed: int) -> Record:
    """One run's figures."""
    split = command.shortened(dataset.split(command.out))
    spec = resolve_training(
        merged(
            dataset.settings,
            OBJECTIVES[objective],
            {
                "dataset": {"train_path": str(split.train.root)},
                "optimizer": {"kind": "momentum", "weight_decay": 5e-4},
                "schedule": {
                    "epochs": command.epochs(EPOCHS[dataset.name]),
                    "batch_size": BATCH,
                    "length_factor": 1,
                    "learning_rate": {"kind": "cosine", "init": RATE},
                },
                "devices": {"count": 1},
                "seed": seed,
            },
        )
    )
    run = Run(spec, split)
    last = list(run.epochs(evaluate_every=spec.schedule.epochs))[-1]
    groups = [dataset.group(path) for path in split.held_out.paths]
    found = found_by(run.model, split.held_out, run.preprocessing, groups, EVALUATION_BATCH)
    return {"dataset": dataset.name, "objective": objective, "top1": last.top1, **found}


def table(records: Iterable[Record]) -> str:
    """Mean and standard deviation over the seeds, in per cent."""
    rows = [
        "| dataset | objective | top-1 | copy mAP | instance mAP | class mAP | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    found = list(records)
    for dataset in DATASETS:
        for objective in OBJECTIVES:
            runs = [r for r in found if (r["dataset"], r["objective"]) == (dataset, objective)]
            if not runs:
                continue
            cells = [_cell([100 * r[name] for r in runs if name in r]) for name in FIGURES]
            rows.append(f"| {dataset} | {objective} | {' | '.join(cells)} | {len(runs)} |")
    return "\n".join(rows)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _job(command: Command, dataset: Dataset, objective: str, seed: int) -> Callable[[], Record]:
    return lambda: trained(command, dataset, objective, seed)


def main() -> None:
    command = Command.parsed(__doc__)
    journal = command.journal("objectives")
    command.complete(
        journal,
        [
            (f"{dataset.name} {objective} seed {seed}", _job(command, dataset, objective, seed))
            for dataset in command.datasets
            for seed in command.seeds()
            for objective in OBJECTIVES
        ],
    )
    print(table(journal.records().values()))


if __name__ == "__main__":
    main()
