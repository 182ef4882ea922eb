"""The evaluation job inside one worker process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from multigrain.data.benchmarks import RETRIEVAL_TASKS, Benchmark, list_benchmark, of_folder
from multigrain.data.held_out import recorded_split
from multigrain.data.image_folder import ImageFolder, scan
from multigrain.data.probe import probe
from multigrain.data.report import report_listing
from multigrain.evaluate.classification import map_class_indices
from multigrain.evaluate.evaluator import EvaluationProgress, EvaluationResult, Evaluator
from multigrain.evaluate.gem_p import run_gem_p
from multigrain.evaluate.inference import CompiledModel, Transform, WhitenedModel, whitened
from multigrain.evaluate.results import write_results
from multigrain.events.records import EvaluationRecord, LogRecord
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.model.multigrain import MultiGrain
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.text import printable, stored_path
from multigrain.weights.restore import RestoredModel, restore

# Metrics of few readable images would be mistaken for metrics of all.
_MAX_UNREADABLE = 0.5


def run_evaluation(ctx: WorkerContext) -> Outcome:
    """Implements ``multigrain.evaluate.run``."""
    spec = ctx.request.evaluation
    if spec is None:
        raise ValueError("an evaluation worker was started for another kind of job")
    if "gem_p" in spec.tasks:
        return run_gem_p(ctx, spec)
    root = Path(spec.dataset_path)
    retrieval = [task for task in spec.tasks if task in RETRIEVAL_TASKS]
    benchmark: Benchmark | None = None
    if retrieval and retrieval != ["groups"]:
        benchmark = list_benchmark(retrieval[0], root, limits=ctx.image_limits)
    folder = benchmark.folder if benchmark is not None else scan(root, ctx.image_limits)
    report_listing(ctx, folder)
    if spec.held_out:
        folder = recorded_split(folder, ctx.folder.held_out).held_out
    restored = restore(
        Path(ctx.request.weights_path),
        trunk=spec.trunk,
        gem_p=spec.gem_p,
        resolution=spec.resolution,
        roots=ctx.roots,
    )
    if "classification" in spec.tasks:
        folder = map_class_indices(folder, restored)
    if "groups" in spec.tasks:
        benchmark = of_folder(folder, spec.group_queries)
    probe(folder, _MAX_UNREADABLE, files=256, seed=spec.seed)
    ctx.reporter.alive()
    return _Evaluation(ctx, spec, folder, benchmark, restored).run()


@dataclass
class _Evaluation:
    ctx: WorkerContext
    spec: EvaluationSpec
    folder: ImageFolder
    benchmark: Benchmark | None
    restored: RestoredModel

    def __post_init__(self) -> None:
        self._evaluator = Evaluator(
            self.folder,
            self.spec.tasks,
            self.benchmark,
            Transform(self.restored.preprocessing(self.spec.resolution), self.spec.transform),
            self.ctx.reporter,
            self.spec.batch_size,
            self.ctx.rank,
            self.ctx.world,
            threads=self.spec.devices.threads_per_worker,
            seed=self.spec.seed,
        )

    def run(self) -> Outcome:
        self._log_benchmark()
        network: MultiGrain | WhitenedModel = self.restored.network
        if self.spec.whiten:
            bundle = Path(self.ctx.request.weights_path)
            network = whitened(self.restored, bundle, self.spec.resolution, self.ctx.roots)
        progress = EvaluationProgress(
            self.ctx.reporter,
            images=len(self.folder),
            shard=self._evaluator.shard,
            passes=self._evaluator.passes,
            rank=self.ctx.rank,
        )
        result = self._evaluator.run(
            # Compiling takes seconds per shape; "rect" may have hundreds of shapes.
            CompiledModel(network) if self.spec.transform == "crop" else network,
            network.embedding_size,
            progress,
            self._report_unreadable,
        )
        if result is None:
            return Outcome(stopped=True, message="stopped before all images were scored")
        return self._finish(result)

    def _log_benchmark(self) -> None:
        if self.benchmark is None or self.ctx.rank:
            return
        task, ignored = self.benchmark.task, self.benchmark.ignored
        self._log("INFO", f"{task}: {self.benchmark.note}")
        if ignored:
            text = f"{task}: ignored {ignored} images whose names do not match the benchmark's"
            self._log("WARNING", text)

    def _report_unreadable(self, unreadable: dict[int, str]) -> None:
        for index, reason in sorted(unreadable.items()):
            path = self.folder.paths[index]
            message = f"not scored, {printable(path)}: {reason}"
            self._log("WARNING", message, path=stored_path(path), reason=reason)

    def _log(self, level: str, message: str, **fields: str) -> None:
        self.ctx.reporter.emit(LogRecord(level, message, rank=self.ctx.rank, fields=fields))

    def _finish(self, result: EvaluationResult) -> Outcome:
        metrics, images = result.metrics, result.images
        record = EvaluationRecord(
            metrics=metrics,
            step=self.restored.weights.step,
            epoch=self.restored.weights.epoch,
            images=images,
            unreadable=result.total - images,
            seconds=result.seconds,
            resolution=self._evaluator.transform.preprocessing.size,
        )
        if self.ctx.rank == 0:
            gem_p = self.restored.spec.gem_p
            note = write_results(self.ctx.folder.results, self.folder, record, result, gem_p)
            if note:
                self._log("INFO", note)
            self.ctx.reporter.emit(record)
        text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        return Outcome(message=f"{text} on {images} images")
