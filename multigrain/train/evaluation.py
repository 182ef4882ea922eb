"""Scheduled evaluation during training."""

from __future__ import annotations

from pathlib import Path

from multigrain.data.benchmarks import RETRIEVAL_TASKS, Benchmark, list_benchmark, of_folder
from multigrain.data.image_folder import ImageFolder, scan
from multigrain.data.report import report_listing
from multigrain.errors import MultigrainError
from multigrain.evaluate.evaluator import EvaluationResult, Evaluator, HeartbeatProgress
from multigrain.evaluate.inference import Transform
from multigrain.evaluate.results import write_results
from multigrain.events.records import EvaluationRecord, LogRecord
from multigrain.images.parameters import Preprocessing
from multigrain.jobs.context import WorkerContext
from multigrain.model.multigrain import MultiGrain
from multigrain.specs.evaluation import Task
from multigrain.specs.training import TrainingSpec
from multigrain.text import printable, stored_path


class ScheduledEvaluation:
    """Evaluates the model that is being trained, on held-out images.

    The metrics are those of an evaluation job with the same tasks and its defaults: images are
    preprocessed as in serving, at the training resolution, and the copies of copy detection
    depend on the default seed.

    Collective: every worker creates one with the same arguments, except for its context.

    Args:
        ctx: this worker's rank, folders and reporter.
        spec: the training run; ``spec.evaluation`` names the tasks.
        model: the model that is being trained.
        train: the training set, whose class indices the model has.
        held_out: the images of ``dataset.val_fraction``; None = those of ``dataset.val_path``.

    Raises:
        MultigrainError: DATASET, if a folder has not the layout that its task needs, or has
            other classes than the training set.
    """

    def __init__(
        self,
        ctx: WorkerContext,
        spec: TrainingSpec,
        model: MultiGrain,
        train: ImageFolder,
        held_out: ImageFolder | None = None,
    ) -> None:
        self._ctx = ctx
        self._model = model
        self._spec = spec
        preprocessing = Preprocessing.standard(spec.model.image_size, spec.model.center_crop)
        self._transform = Transform(preprocessing)
        self._reported_unreadable: set[str] = set()
        self._evaluators = self._create_evaluators(train, held_out)

    def __call__(self, step: int, epoch: int) -> EvaluationRecord | None:
        """Evaluates the weights after a step; None if a worker was asked to stop. Collective."""
        results: list[EvaluationResult] = []
        for evaluator in self._evaluators:
            result = evaluator.run(
                self._model, self._model.embedding_size, HeartbeatProgress(self._ctx.reporter)
            )
            if result is None:
                return None
            self._report_unreadable(evaluator.folder, result.unreadable)
            results.append(result)
        images = sum(result.images for result in results)
        record = EvaluationRecord(
            metrics={name: value for result in results for name, value in result.metrics.items()},
            step=step,
            epoch=epoch,
            images=images,
            unreadable=sum(result.total for result in results) - images,
            seconds=sum(result.seconds for result in results),
            resolution=self._transform.preprocessing.size,
        )
        if self._ctx.rank == 0:
            self._write(record, results)
        return record

    def _write(self, record: EvaluationRecord, results: list[EvaluationResult]) -> None:
        """Replaces the results of the previous evaluation. Training goes on without them."""
        written = zip(self._evaluators, results, strict=True)
        try:
            # The first one last: its metrics.json has the accuracy of each class.
            for evaluator, result in reversed(list(written)):
                folder, gem_p = self._ctx.folder.results, self._spec.model.gem_p
                write_results(folder, evaluator.folder, record, result, gem_p, plot=False)
        except MultigrainError as error:
            self._ctx.reporter.emit(LogRecord("WARNING", error.message, self._ctx.rank))

    def _create_evaluators(
        self, train: ImageFolder, held_out: ImageFolder | None
    ) -> list[Evaluator]:
        """Creates one evaluator per folder: tasks on the same images share a forward pass."""
        schedule = self._spec.evaluation
        retrieval = next((task for task in schedule.tasks if task in RETRIEVAL_TASKS), None)
        own_folder = retrieval is not None and bool(schedule.retrieval_path)
        evaluators = []
        on_val: tuple[Task, ...] = tuple(
            task for task in schedule.tasks if not (own_folder and task == retrieval)
        )
        if on_val:
            folder = held_out
            if folder is None:
                folder = scan(Path(self._spec.dataset.val_path), train.limits)
                report_listing(self._ctx, folder)
            if "classification" in on_val:
                # The folder may lack some classes; its class indices follow from their names.
                folder = folder.relabeled(train.classes)
            groups = of_folder(folder, schedule.group_queries) if "groups" in on_val else None
            evaluators.append(self._evaluator(folder, on_val, groups))
        if retrieval is not None and own_folder:
            root = Path(schedule.retrieval_path)
            benchmark = list_benchmark(retrieval, root, schedule.group_queries, train.limits)
            report_listing(self._ctx, benchmark.folder)
            evaluators.append(self._evaluator(benchmark.folder, (retrieval,), benchmark))
        return evaluators

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
        """Logs each file once, not at every evaluation."""
        for index, reason in sorted(unreadable.items()):
            path = str(folder.root / folder.paths[index])
            if path in self._reported_unreadable:
                continue
            self._reported_unreadable.add(path)
            fields = {"path": stored_path(folder.paths[index]), "reason": reason}
            message = f"not scored, {printable(folder.paths[index])}: {reason}"
            self._ctx.reporter.emit(LogRecord("WARNING", message, self._ctx.rank, fields))
