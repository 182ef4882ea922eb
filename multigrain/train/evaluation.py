"""Evaluation while training: the figures of the present weights, on schedule."""

from __future__ import annotations

from pathlib import Path

from multigrain.data.benchmarks import RETRIEVAL_TASKS, Benchmark, list_benchmark, of_folder
from multigrain.data.image_folder import ImageFolder, scan
from multigrain.evaluate.evaluator import Evaluator, HeartbeatProgress, Measured
from multigrain.evaluate.inference import Transform
from multigrain.events.records import EvaluationRecord, LogRecord
from multigrain.images.parameters import Preprocessing
from multigrain.jobs.context import WorkerContext
from multigrain.model.multigrain import MultiGrain
from multigrain.specs.evaluation import Task
from multigrain.specs.training import TrainingSpec


class ScheduledEvaluation:
    """The images that a training looks at and never trains on, with the tasks for them.

    The figures are those of an evaluation job with the same tasks and its defaults: each image
    is prepared as in serving, at the training resolution, and copies are distorted by its seed.

    Args:
        ctx: of this worker. Every worker makes one: it is collective.
        spec: of the training.
        model: that is trained.
        train: what it is trained on, whose class numbers it has.

    Raises:
        MultigrainError: DATASET if the images are not laid out as a task needs them, or have
            other classes.
    """

    def __init__(
        self, ctx: WorkerContext, spec: TrainingSpec, model: MultiGrain, train: ImageFolder
    ) -> None:
        self._ctx = ctx
        self._model = model
        self._spec = spec
        preprocessing = Preprocessing.standard(spec.model.image_size, spec.model.center_crop)
        self._transform = Transform(preprocessing)
        self._told: set[str] = set()
        self._evaluators = self._parts(train)

    def __call__(self, step: int, epoch: int) -> EvaluationRecord | None:
        """The figures after a step; None if a worker was asked to stop. Collective."""
        parts: list[Measured] = []
        for evaluator in self._evaluators:
            measured = evaluator.run(
                self._model, self._model.embedding_size, HeartbeatProgress(self._ctx.reporter)
            )
            if measured is None:
                return None
            self._report_unreadable(evaluator.folder, measured.unreadable)
            parts.append(measured)
        images = sum(part.images for part in parts)
        return EvaluationRecord(
            metrics={name: value for part in parts for name, value in part.metrics.items()},
            step=step,
            epoch=epoch,
            images=images,
            unreadable=sum(part.total for part in parts) - images,
            seconds=sum(part.seconds for part in parts),
            resolution=self._transform.preprocessing.size,
        )

    def _parts(self, train: ImageFolder) -> list[Evaluator]:
        """One for each folder of images: the tasks on the same images share a pass."""
        schedule = self._spec.evaluation
        search = next((task for task in schedule.tasks if task in RETRIEVAL_TASKS), None)
        apart = search is not None and bool(schedule.retrieval_path)
        parts = []
        here: tuple[Task, ...] = tuple(t for t in schedule.tasks if not (apart and t == search))
        if here:
            folder = scan(Path(self._spec.dataset.val_path))
            if "classification" in here:
                # Images of some of the classes will do; names decide on the numbers.
                folder = folder.relabeled(train.classes)
            groups = of_folder(folder, schedule.group_queries) if "groups" in here else None
            parts.append(self._evaluator(folder, here, groups))
        if search is not None and apart:
            root = Path(schedule.retrieval_path)
            benchmark = list_benchmark(search, root, schedule.group_queries)
            parts.append(self._evaluator(benchmark.folder, (search,), benchmark))
        return parts

    def _evaluator(
        self, folder: ImageFolder, tasks: tuple[Task, ...], benchmark: Benchmark | None
    ) -> Evaluator:
        return Evaluator(
            folder,
            tasks,
            benchmark,
            self._transform,
            self._ctx.reporter,
            self._spec.schedule.batch_size,
            self._ctx.rank,
            self._ctx.world,
        )

    def _report_unreadable(self, folder: ImageFolder, unreadable: dict[int, str]) -> None:
        """Names each file once, not at every evaluation."""
        for index, reason in sorted(unreadable.items()):
            path = str(folder.root / folder.paths[index])
            if path in self._told:
                continue
            self._told.add(path)
            fields = {"path": folder.paths[index], "reason": reason}
            message = f"not scored, {folder.paths[index]}: {reason}"
            self._ctx.reporter.emit(LogRecord("WARNING", message, self._ctx.rank, fields))
