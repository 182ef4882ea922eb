"""One training run, built from the parts of a training job."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from benchmarks.convergence.restart import constants, reset
from benchmarks.convergence.statistics import statistics_of
from multigrain.data.held_out import Split
from multigrain.data.image_folder import ImageFolder
from multigrain.data.pipeline import TrainingData
from multigrain.evaluate.inference import CompiledModel, Inference
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain.losses.objective import JointObjective
from multigrain.model.multigrain import MultiGrain, build_model
from multigrain.model.state import load_model_state, model_state
from multigrain.specs.training import TrainingSpec
from multigrain.train.step import TrainStep

EVALUATION_BATCH = 128
STATISTICS_IMAGES = 288


@dataclass(frozen=True)
class Point:
    """Measurements after a step.

    Args:
        epoch: steps so far, in epochs.
        top1, held_out_loss: of the held-out images, preprocessed as in serving.
        loss: mean joint loss of the steps of this epoch.
        wall, cpu: wall and CPU seconds of the training steps so far, without data loading and
            evaluation.
        refreshes: number of layer refreshes so far.
        checks: number of layer checks so far.
        skipped: number of non-finite steps so far.
    """

    epoch: float
    top1: float
    held_out_loss: float
    loss: float
    wall: float
    cpu: float
    refreshes: int
    checks: int
    skipped: int


@dataclass
class Run:
    """Trains one model: iterate over :meth:`points`, then use ``model``.

    Args:
        recompute: evaluate with BatchNorm statistics of some training images under the current
            weights instead of the running statistics, which belong to earlier weights.
        build: creates the network.
    """

    spec: TrainingSpec
    split: Split
    recompute: bool = False
    build: Callable[..., MultiGrain] = build_model

    def __post_init__(self) -> None:
        self.model: MultiGrain = self._initial()
        self.preprocessing = Preprocessing.standard(
            self.spec.model.image_size, self.spec.model.center_crop
        )
        self._compiled = CompiledModel(self.model)
        self._data = self._training_data()
        self._step = TrainStep(
            self.model,
            JointObjective(self.spec.objective),
            self.spec,
            world=1,
            steps_per_epoch=self._data.steps_per_epoch,
        )
        self._unused = self._step.state()

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch."""
        return self._data.steps_per_epoch

    def start_from(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Sets the initial weights, as returned by ``model_state``."""
        load_model_state(self.model, state)
        self._step.remember_statistics()

    def restart(self, spec: TrainingSpec, split: Split) -> None:
        """Starts another run with the same compiled graphs; see :func:`constants`."""
        if constants(spec) != constants(self.spec):
            raise ValueError("the graphs were compiled with other constants")
        self.spec, self.split = spec, split
        self._data = self._training_data()
        load_model_state(self.model, model_state(self._initial()))
        reset(self._step, spec, self._unused, self.steps_per_epoch)

    def compile(self) -> float:
        """Compiles the graphs by a step with and a step without a refresh, then resets the run.

        Returns:
            CPU seconds.
        """
        spec = self.spec
        alternating = {"refresh": "fixed", "frequency": 2, "early_refreshes": ()}
        thor = spec.optimizer.thor.model_copy(update=alternating)
        optimizer = spec.optimizer.model_copy(update={"thor": thor})
        self.restart(spec.model_copy(update={"optimizer": optimizer}), self.split)
        batch = next(iter(self._data.epoch(0)))
        start = time.process_time()
        for _ in range(2):
            self._step(batch.images, batch.labels, batch.instances)
        seconds = time.process_time() - start
        self.restart(spec, self.split)
        return seconds

    def points(self, due: Callable[[int], bool]) -> Iterator[Point]:
        """Trains and yields a point after every step (from 1) for which ``due`` is true."""
        wall = cpu = 0.0
        step = refreshes = checks = skipped = 0
        for epoch in range(self.spec.schedule.epochs):
            losses = []
            for batch in self._data.epoch(epoch):
                start = (time.perf_counter(), time.process_time())
                result = self._step(batch.images, batch.labels, batch.instances)
                wall += time.perf_counter() - start[0]
                cpu += time.process_time() - start[1]
                step += 1
                losses.append(result.loss)
                refreshes += result.refreshed_layers
                checks += result.refreshed_layers + result.kept_layers
                skipped += int(result.skipped)
                if not due(step):
                    continue
                with self._statistics():
                    top1, held_out_loss = self._evaluated()
                yield Point(
                    step / self.steps_per_epoch, top1, held_out_loss, sum(losses) / len(losses),
                    wall, cpu, refreshes, checks, skipped,
                )  # fmt: skip

    def finish(self) -> Point:
        """Trains to the end and returns the last point."""
        steps = self.spec.schedule.epochs * self.steps_per_epoch
        (last,) = self.points(lambda step: step == steps)
        return last

    def _initial(self) -> MultiGrain:
        return self.build(self.spec.model, len(self.split.train.classes), seed=self.spec.seed)

    def _training_data(self) -> TrainingData:
        return TrainingData(self.split.train, self.spec, rank=0, world=1, threads=1)

    def _evaluated(self) -> tuple[float, float]:
        """Accuracy and mean cross-entropy on the held-out images."""
        folder = self.split.held_out
        logits = np.zeros((len(folder), len(folder.classes)))
        inference = Inference(self._compiled, EVALUATION_BATCH, threads=1)
        unreadable: dict[int, str] = {}
        for predictions in inference.run(range(len(folder)), self._load, unreadable):
            logits[predictions.indices] = predictions.logits
        if unreadable:
            raise RuntimeError(f"cannot read images of the dataset: {unreadable}")
        top1 = (logits.argmax(axis=1) == folder.labels).mean()
        correct = np.take_along_axis(logits, folder.labels[:, None].astype(np.int64), axis=1)[:, 0]
        return float(top1), float((logsumexp(logits, axis=1) - correct).mean())

    def _load(self, index: int) -> NDArray[np.float32]:
        return self._prepared(self.split.held_out, index)

    def _prepared(self, folder: ImageFolder, index: int) -> NDArray[np.float32]:
        return preprocess(folder.read(index), self.preprocessing)

    def _statistics(self) -> AbstractContextManager[None]:
        """The BatchNorm statistics for the evaluation; see ``recompute``."""
        if not self.recompute:
            return nullcontext()
        train = self.split.train
        # The folder is sorted by class: evenly spaced images cover all classes.
        chosen = np.linspace(0, len(train) - 1, STATISTICS_IMAGES).astype(int).tolist()
        return statistics_of(
            self.model, np.stack([self._prepared(train, index) for index in chosen])
        )


def merged(*overrides: dict[str, Any]) -> dict[str, Any]:
    """Merges nested settings; later ones take precedence."""
    result: dict[str, Any] = {}
    for part in overrides:
        for key, value in part.items():
            old = result.get(key)
            both = isinstance(value, dict) and isinstance(old, dict)
            result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result
