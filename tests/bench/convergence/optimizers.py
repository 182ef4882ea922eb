"""Epochs to a target accuracy: THOR against SGD with momentum.

``python -m tests.bench.convergence.optimizers --out DIR [--dataset digits]`` first tries every
candidate of both optimisers on an inner split of the training images, then trains with the best
of each optimiser on all of them, three seeds, and prints tables of both. Results in ``DIR`` are
not computed again.

Classification alone. The same network, batches, data order, start weights and seeds for both.
The best candidate is the one that reaches the target in the fewest epochs of the inner split, at
equal epochs the one of the smaller held-out loss at the end. Each optimiser has its own
schedules, because how soon the rate falls decides how soon the target is reached. THOR's best
candidate, which follows the trace rule, is also trained at a fixed frequency.

Accuracies are those with BatchNorm's statistics of training images under the weights of that
moment, for both optimisers: the running values are those of the last ten or so steps, two epochs
here, and hide what fast weights have learned.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

from multigrain.spec.resolve import resolve_training
from tests.bench.convergence.candidates import CANDIDATES, TARGET, Candidate, at_fixed_frequency
from tests.bench.convergence.command import Command
from tests.bench.convergence.journal import Record
from tests.bench.convergence.run import Run, merged
from tests.bench.datasets.dataset import Dataset
from tests.bench.datasets.subset import Split

BATCH = 256
KINDS = ("momentum", "thor")
CLASSIFICATION = {
    "objective": {"classification_weight": 1.0, "instance_loss": "none"},
    "augmentation": {"repeats": 1},
}


def trained(
    command: Command, dataset: Dataset, split: Split, candidate: Candidate, seed: int
) -> Record:
    """The run's figures at the end of every epoch."""
    few = command.shortened(split)
    spec = resolve_training(
        merged(
            dataset.settings,
            CLASSIFICATION,
            candidate.settings,
            {
                "dataset": {"train_path": str(split.train.root)},
                "schedule": {
                    "epochs": command.epochs(candidate.epochs),
                    "batch_size": min(BATCH, len(few.train)),
                    "length_factor": 1,
                },
                "devices": {"count": 1},
                "seed": seed,
            },
        )
    )
    run = Run(spec, few, recompute=True)
    return {
        "candidate": candidate.name,
        "kind": candidate.kind,
        "seed": seed,
        "steps_per_epoch": run.steps_per_epoch,
        "epochs": [asdict(epoch) for epoch in run.epochs()],
    }


def reached(record: Record, target: float) -> int | None:
    """The first epoch at whose end the held-out images are recognised that well; None: never."""
    for epoch in record["epochs"]:
        if epoch["top1"] >= target:
            return int(epoch["epoch"])
    return None


def order(record: Record, target: float) -> tuple[float, float]:
    """Smaller is better."""
    return (
        float(reached(record, target) or float("inf")),
        float(record["epochs"][-1]["held_out_loss"]),
    )


def best(records: Iterable[Record], kind: str, target: float) -> str:
    """Name of the best candidate of an optimiser."""
    own = [record for record in records if record["kind"] == kind]
    return str(min(own, key=lambda record: order(record, target))["candidate"])


def main() -> None:
    command = Command.parsed(__doc__)
    for dataset in command.datasets:
        split = dataset.split(command.out)
        inner = dataset.inner(split.train)
        target = TARGET[dataset.name]
        # The first two are one of each optimiser.
        listed = CANDIDATES[dataset.name][: 2 if command.quick else None]
        candidates = {c.name: c for c in listed}
        tuning = command.journal(f"epochs-{dataset.name}-tuning")
        jobs: list[tuple[str, Callable[[], Record]]] = [
            (name, partial(trained, command, dataset, inner, candidate, 0))
            for name, candidate in candidates.items()
        ]
        if not command.complete(tuning, jobs):
            print("not all candidates are tried: call again")
            continue
        tried = list(tuning.records().values())
        print(f"\n{dataset.name}, inner split, target {target:.1%}\n{tuning_table(tried, target)}")
        chosen = [candidates[best(tried, kind, target)] for kind in KINDS]
        chosen += [
            at_fixed_frequency(candidate) for candidate in chosen if candidate.kind == "thor"
        ]
        final = command.journal(f"epochs-{dataset.name}")
        command.complete(
            final,
            [
                (
                    f"{candidate.name} seed {seed}",
                    partial(trained, command, dataset, split, candidate, seed),
                )
                for seed in command.seeds()
                for candidate in chosen
            ],
        )
        names = {candidate.name for candidate in chosen}
        runs = [r for r in final.records().values() if r["candidate"] in names]
        print(f"\n{dataset.name}, held-out images\n{final_table(runs, target)}")


def tuning_table(records: Iterable[Record], target: float) -> str:
    """Every candidate, the best of each optimiser first."""
    rows = ["| candidate | of epochs | target after | top-1 | loss |", "|---|---|---|---|---|"]
    for record in sorted(records, key=lambda r: (r["kind"], order(r, target))):
        last: dict[str, Any] = record["epochs"][-1]
        rows.append(
            f"| {record['candidate']} | {last['epoch']} | {reached(record, target) or 'never'} "
            f"| {100 * last['top1']:.1f} | {last['held_out_loss']:.3f} |"
        )
    return "\n".join(rows)


def final_table(records: Iterable[Record], target: float) -> str:
    """Each optimiser over the seeds."""
    rows = [
        "| optimiser | target after epochs | mean | CPU seconds to it | top-1 at the end "
        "| layers renewed | looked at |",
        "|---|---|---|---|---|---|---|",
    ]
    found = list(records)
    for name in dict.fromkeys(record["candidate"] for record in found):
        runs = [record for record in found if record["candidate"] == name]
        epochs = [reached(run, target) for run in runs]
        hits = [(run, epoch) for run, epoch in zip(runs, epochs, strict=True) if epoch]
        seconds = [run["epochs"][epoch - 1]["cpu"] for run, epoch in hits]
        ends = [run["epochs"][-1] for run in runs]
        refreshes = statistics.mean(end["refreshes"] for end in ends)
        checks = statistics.mean(end["checks"] for end in ends)
        top1 = statistics.mean(100 * end["top1"] for end in ends)
        mean = f"{statistics.mean(e for _, e in hits):.1f}" if len(hits) == len(runs) else ""
        time = f"{statistics.mean(seconds):.0f}" if seconds else ""
        listed = ", ".join(str(epoch or "never") for epoch in epochs)
        rows.append(
            f"| {name} | {listed} | {mean} | {time} | {top1:.1f} | {refreshes:.0f} | {checks:.0f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
