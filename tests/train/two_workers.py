"""Program of the two workers in test_two_workers.py: run by msrun, writes one .npz each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
from mindspore.communication import get_rank, init

from multigrain.events.records import LossRecord
from multigrain.model.state import load_model_state, model_state
from multigrain.train.step import TrainStep
from tests.train.tiny import batch, tiny_spec, tiny_step

STEPS = 4
CUT = 2
RULE: dict[str, Any] = {
    "refresh": "trace", "frequency": 1, "w1": 0.36, "w2": 0.25,
    "pi_correction": True, "kl_clip": 0.01,
}  # fmt: skip


def share(step: int, rank: int) -> tuple[np.ndarray, ...]:
    """This rank's half of the batch."""
    return tuple(x[rank::2] for x in batch(step))


def whole_state(step: TrainStep) -> dict[str, np.ndarray]:
    return model_state(step._model) | step.state()


def decision(result: LossRecord) -> tuple[int, int, int]:
    return result.refreshed_layers, result.kept_layers, result.stopped_layers


def main(folder: Path) -> None:
    mindspore.set_device("CPU")
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    init()
    rank = get_rank()
    results: dict[str, np.ndarray] = {}

    # Classification alone, BatchNorm frozen: the halves add up to the whole batch exactly.
    step = tiny_step(tiny_spec(instance_loss="none"), world=2, batch_norm=False)
    losses = [step(*share(i, rank)).loss for i in range(STEPS)]
    results["losses"] = np.array(losses)
    results |= {f"plain/{name}": v for name, v in whole_state(step).items()}

    # The trace rule with every curvature option, and again from the state after step 2.
    spec = tiny_spec(instance_loss="none", **RULE)
    step = tiny_step(spec, world=2, batch_norm=False)
    decisions = []
    for i in range(STEPS):
        if i == CUT:
            saved_model, saved_state = model_state(step._model), step.state()
        decisions.append(decision(step(*share(i, rank))))
    results["decisions"] = np.array(decisions)
    results |= {f"rule/{name}": v for name, v in whole_state(step).items()}
    load_model_state(step._model, saved_model)
    step.load_state(saved_state)
    resumed = [decision(step(*share(i, rank))) for i in range(CUT, STEPS)]
    results["resumed_decisions"] = np.array(resumed)
    results |= {f"resumed/{name}": v for name, v in whole_state(step).items()}

    # The margin loss, whose pairs are within a worker, with BatchNorm.
    step = tiny_step(tiny_spec(), world=2)
    for i in range(2):
        x, labels, ids = batch(10 * i + rank)
        step(x, labels, ids, stop=rank == 1 and i == 1)
        results[f"stop/{i}"] = np.array(step.stop_agreed)
    results["own_mean"] = model_state(step._model)["trunk.bn1.moving_mean"]
    step.sync_statistics()
    results |= {f"margin/{name}": v for name, v in whole_state(step).items()}

    # One worker's batch is non-finite.
    x, labels, ids = batch(rank)
    if rank == 1:
        x[:] = np.nan
    results["skipped"] = np.array(step(x, labels, ids).skipped)
    results |= {f"skipped/{name}": v for name, v in model_state(step._model).items()}
    np.savez(folder / f"rank{rank}.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
