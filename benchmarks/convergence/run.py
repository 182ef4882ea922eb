"""One training run, made of the parts that a training job is made of."""

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
from benchmarks.datasets.subset import Split
from multigrain.data.image_folder import ImageFolder
from multigrain.data.pipeline import TrainingData
from multigrain.evaluate.inference import Compiled, Inference
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
    """What is known after a step.

    Args:
        epoch: steps so far, in epochs.
        top1, held_out_loss: of the held-out images, prepared as for serving.
        loss: mean of the joint loss over the steps since the last epoch's end.
        wall, cpu: seconds of the training steps so far (data and evaluation left out), by the
            clock and of this process's processor time.
        refreshes: layers whose curvature was renewed so far, each time counted.
        checks: layers that were looked at so far.
        skipped: steps that were not finite so far.
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
    """Trains one model; iterate over :meth:`points`, afterwards ``model`` is trained.

    Args:
        recompute: evaluate with BatchNorm's statistics of some training images under the present
            weights instead of the running ones, which are those of the last steps' weights.
        build: makes the network.
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
        self._compiled = Compiled(self.model)
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
        """Steps that an epoch has."""
        return self._data.steps_per_epoch

    def start_from(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Takes the weights of ``model_state``; call it before the first step."""
        load_model_state(self.model, state)
        self._step.remember_statistics()

    def restart(self, spec: TrainingSpec, split: Split) -> None:
        """Begins another run in the same compiled graphs; see :func:`constants`."""
        if constants(spec) != constants(self.spec):
            raise ValueError("the compiled graphs have other constants")
        self.spec, self.split = spec, split
        self._data = self._training_data()
        load_model_state(self.model, model_state(self._initial()))
        reset(self._step, spec, self._unused, self.steps_per_epoch)

    def compile(self) -> float:
        """Takes a step with and one without new curvature, to no effect but that the graphs are
        there; the processor time it took."""
        spec = self.spec
        alternating = {"refresh": "fixed", "frequency": 2, "early_refreshes": ()}
        thor = spec.optimizer.thor.model_copy(update=alternating)
        optimizer = spec.optimizer.model_copy(update={"thor": thor})
        self.restart(spec.model_copy(update={"optimizer": optimizer}), self.split)
        batch = next(iter(self._data.epoch(0)))
        began = time.process_time()
        for _ in range(2):
            self._step(batch.images, batch.labels, batch.instances)
        seconds = time.process_time() - began
        self.restart(spec, self.split)
        return seconds

    def points(self, due: Callable[[int], bool]) -> Iterator[Point]:
        """Trains, and reports after every step, counted from 1, that is ``due``."""
        wall = cpu = 0.0
        step = refreshes = checks = skipped = 0
        for epoch in range(self.spec.schedule.epochs):
            losses = []
            for batch in self._data.epoch(epoch):
                began = (time.perf_counter(), time.process_time())
                result = self._step(batch.images, batch.labels, batch.instances)
                wall += time.perf_counter() - began[0]
                cpu += time.process_time() - began[1]
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

    def to_the_end(self) -> Point:
        """Trains, and reports on the last step."""
        steps = self.spec.schedule.epochs * self.steps_per_epoch
        (last,) = self.points(lambda step: step == steps)
        return last

    def _initial(self) -> MultiGrain:
        return self.build(self.spec.model, len(self.split.train.classes), seed=self.spec.seed)

    def _training_data(self) -> TrainingData:
        return TrainingData(self.split.train, self.spec, rank=0, world=1, threads=1)

    def _evaluated(self) -> tuple[float, float]:
        """Share of the held-out images that are recognized, and their mean cross-entropy."""
        folder = self.split.held_out
        logits = np.zeros((len(folder), len(folder.classes)))
        inference = Inference(self._compiled, EVALUATION_BATCH, threads=1)
        unreadable: dict[int, str] = {}
        for found in inference.run(range(len(folder)), self._load, unreadable):
            logits[found.indices] = found.logits
        if unreadable:
            raise RuntimeError(f"of the dataset just written, these cannot be read: {unreadable}")
        top1 = (logits.argmax(axis=1) == folder.labels).mean()
        own = np.take_along_axis(logits, folder.labels[:, None].astype(np.int64), axis=1)[:, 0]
        return float(top1), float((logsumexp(logits, axis=1) - own).mean())

    def _load(self, index: int) -> NDArray[np.float32]:
        return self._prepared(self.split.held_out, index)

    def _prepared(self, folder: ImageFolder, index: int) -> NDArray[np.float32]:
        return preprocess(folder.read(index), self.preprocessing)

    def _statistics(self) -> AbstractContextManager[None]:
        """What the network is scored with; see ``recompute``."""
        if not self.recompute:
            return nullcontext()
        train = self.split.train
        # Classes lie one after the other in a folder: these are of all of them.
        chosen = np.linspace(0, len(train) - 1, STATISTICS_IMAGES).astype(int).tolist()
        return statistics_of(
            self.model, np.stack([self._prepared(train, index) for index in chosen])
        )


def merged(*overrides: dict[str, Any]) -> dict[str, Any]:
    """Nested settings put together, later ones winning."""
    result: dict[str, Any] = {}
    for part in overrides:
        for key, value in part.items():
            old = result.get(key)
            both = isinstance(value, dict) and isinstance(old, dict)
            result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result
