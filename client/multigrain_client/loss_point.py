# Generated from LossEvent in protos/multigrain/v1/job.proto by `make sync-client`: edit that.
"""A loss event as a dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class LossPoint:
    """One training step.

    ``(attempt, step)`` identifies it: a job that restarts from a checkpoint repeats the steps after
    it in the next attempt. ``latest_curve`` returns a curve without duplicate steps.
    """

    attempt: int
    """Attempt of the job, from 1."""

    seq: int
    """Sequence number of the event."""

    time: datetime
    """Time of the event, UTC."""

    step: int
    """Step of the training run, counted from 1."""

    total_steps: int
    """Steps of the whole training run."""

    epoch: int
    """Epoch, counted from 1."""

    total_epochs: int
    """Epochs of the whole training run."""

    loss: float
    """Joint loss, mean over all workers."""

    classification_loss: float
    """Its unweighted classification term."""

    instance_loss: float
    """Its unweighted instance term."""

    learning_rate: float
    """Learning rate of this step."""

    damping: float
    """THOR's damping lambda; 0 with momentum."""

    images_per_second: float
    """Throughput of all workers together."""

    data_wait: float
    """Share of the step's time spent waiting for data, 0..1."""

    refreshed_layers: int
    """Layers whose curvature was refreshed in this step (THOR)."""

    curvature_layers: int
    """Layers that have curvature (THOR)."""

    eta_seconds: float
    """Estimated seconds to the end of the training run; -1 if unknown."""

    skipped: bool
    """The step was skipped because of a non-finite value; see `skipped_because`."""

    beta: float
    """Boundary beta of the margin loss."""

    gem_p: float
    """GeM's exponent p."""

    step_seconds: float
    """Wall-clock seconds of this step."""

    kept_layers: int
    """Layers that the trace rule checked in this step and whose curvature it kept, including those
    that it stopped in this step (THOR).
    """

    stopped_layers: int
    """Layers whose curvature the trace rule no longer refreshes."""

    skipped_because: str
    """The non-finite value and its layer; empty unless the step was skipped."""

    skipped_total: int
    """Steps skipped so far."""

    loss_scale: float
    """Loss scale of this step."""

    compiled: bool
    """The step compiled a graph, or loaded one from an earlier job: `step_seconds` has that time
    too. `eta_seconds` is -1 until there was a step without.
    """
