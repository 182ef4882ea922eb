"""A training without MindSpore: steps that depend on all before them, and real checkpoints.

Labels of the job say how it goes: ``steps`` (in all), ``pause`` (seconds a step), ``every``
(steps between checkpoints; 0: none, not even at the end), ``holds`` (attempts that stay, alive,
behind step 10, 20, 30, ... until somebody ends them), ``gate`` (a file without which no step after
the 20th is made).
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from multigrain.checkpoint import store
from multigrain.checkpoint.manifest import CheckpointManifest
from multigrain.events.records import LossRecord
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.specs.training import ModelSpec


def next_weight(weight: float, step: int) -> float:
    """A run that continues from a wrong step, or from none, gets other numbers from there on."""
    return 0.9 * weight + step


def losses(steps: int) -> list[float]:
    """The losses of an undisturbed run."""
    weight, found = 0.0, []
    for step in range(1, steps + 1):
        weight = next_weight(weight, step)
        found.append(weight)
    return found


def train(ctx: WorkerContext) -> Outcome:
    labels = ctx.request.labels
    total, every = int(labels.get("steps", "40")), int(labels.get("every", "4"))
    hold_at = 10 * ctx.attempt if ctx.attempt <= int(labels.get("holds", "0")) else total
    gate = Path(labels.get("gate", "/"))
    step, weight = 0, 0.0
    good = store.latest_good(ctx.folder.checkpoints)
    if good is not None and ctx.rank == 0:
        checkpoint = store.load(good)
        step, weight = checkpoint.manifest.step, float(checkpoint.model["w"][0])
    while step < total:
        if ctx.reporter.stop_requested:
            if every:
                _save(ctx, step, weight)
            return Outcome(stopped=True, message=f"stopped at step {step}")
        if step >= hold_at or ctx.rank != 0 or (step >= 20 and not gate.exists()):
            # Other ranks stay until rank 0 is done: the end of the loop is theirs to see.
            ctx.reporter.alive()
            time.sleep(0.02)
            if ctx.rank != 0 and hold_at == total:
                return Outcome()
            continue
        step += 1
        weight = next_weight(weight, step)
        ctx.reporter.emit(LossRecord(step, total, 1, 1, weight, 0.0, 0.0, 0.1))
        if every and (step % every == 0 or step == total):
            _save(ctx, step, weight)
        time.sleep(float(labels.get("pause", "0")))
    return Outcome(message=f"{total} steps")


def compile_for_a_while(ctx: WorkerContext) -> Outcome:
    """As a graph's compilation: seconds (label ``compile``) without a word, then the work."""
    time.sleep(float(ctx.request.labels["compile"]))
    return train(ctx)


def _save(ctx: WorkerContext, step: int, weight: float) -> None:
    if ctx.rank != 0:
        return
    manifest = CheckpointManifest(step=step, epoch=1, model=ModelSpec(classes=2))
    model = {"w": np.array([weight])}
    record = store.save(ctx.folder.checkpoints, manifest, model, {"s": np.zeros(1)})
    ctx.reporter.emit(record)
    store.prune(ctx.folder.checkpoints, keep=3)
