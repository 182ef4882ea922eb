"""What a training step reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepResult:
    """What a step did; the same on every worker.

    Attributes:
        step: steps done, this one included (from 1).
        loss, classification_loss, instance_loss: means over the workers, unscaled.
        learning_rate, damping: in use in this step; damping is 0 without THOR.
        skipped: nothing was updated, because a loss, a gradient or a factor was not finite.
        refreshed_layers: layers whose curvature this step renewed.
        curvature_layers: layers with curvature; 0 without THOR.
        beta: the margin loss's boundary, 0 without one.
        gem_p: the pooling exponent.
        stop_agreed: a worker asked to stop, and every worker sees it in this same step.
        kept_layers: layers that this step checked and left with the curvature they have.
        stopped_layers: layers whose curvature will not be renewed again, by now.
        skipped_because: what was not finite in a skipped step, and where.
        skipped_total: steps skipped so far.
        loss_scale: factor on the loss in this step.
    """

    step: int
    loss: float
    classification_loss: float
    instance_loss: float
    learning_rate: float
    damping: float
    skipped: bool
    refreshed_layers: int
    curvature_layers: int
    beta: float
    gem_p: float
    stop_agreed: bool
    kept_layers: int = 0
    stopped_layers: int = 0
    skipped_because: str = ""
    skipped_total: int = 0
    loss_scale: float = 1.0
