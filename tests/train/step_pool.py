"""Compiled training steps for one test after the other."""

from __future__ import annotations

from multigrain.model.state import load_model_state
from multigrain.specs.training import TrainingSpec
from multigrain.train.step import TrainStep
from tests.train.tiny import tiny_step, weights


class StepPool:
    """Gives each test training steps with initial weights and state.

    Compiling a step takes seconds, so a step is reset and used again by later tests with the same
    spec. Tests that change more of it than weights and state take ``tiny_step`` instead.
    """

    def __init__(self) -> None:
        self._idle: dict[str, list[TrainStep]] = {}
        self._taken: list[tuple[str, TrainStep]] = []

    def __call__(self, spec: TrainingSpec, *, steps_per_epoch: int = 4) -> TrainStep:
        """Returns a step on one worker that nothing else uses until the end of the test."""
        # The schedule is not compiled; the other fields left out concern the job around it.
        left_out = {"schedule", "checkpointing", "evaluation", "dataset"}
        key = f"{steps_per_epoch} {spec.model_dump_json(exclude=left_out)}"
        new = tiny_step(spec, steps_per_epoch=steps_per_epoch)
        idle = self._idle.setdefault(key, [])
        step = idle.pop(0) if idle else new
        step._spec = spec
        load_model_state(step._model, weights(new))
        step.load_state(new.state())
        step.stop_agreed = False
        self._taken.append((key, step))
        return step

    def reset(self) -> None:
        """Makes the steps of the test that has ended available."""
        while self._taken:  # in the order in which they were taken: the last may not be compiled
            key, step = self._taken.pop()
            self._idle[key].insert(0, step)
