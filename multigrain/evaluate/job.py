"""The evaluation job inside one worker process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from multigrain.checkpoint.restore import Restored, restore
from multigrain.data.benchmarks import RETRIEVAL_TASKS, Benchmark, list_benchmark
from multigrain.data.benchmarks.groups import of_folder
from multigrain.data.folder import ImageFolder, scan
from multigrain.data.probe import probe
from multigrain.evaluate.benchmark_result import BenchmarkResult
from multigrain.evaluate.classification import ClassificationCounter, ClassificationResult
from multigrain.evaluate.copy_detection import CopyDetectionResult, Originals, evaluate_copies
from multigrain.evaluate.exponent.choice import run_choice
from multigrain.evaluate.gather import Gather
from multigrain.evaluate.inference import Compiled, FloatArray, Inference
from multigrain.evaluate.numbering import numbered
from multigrain.evaluate.progress import EvaluationProgress
from multigrain.evaluate.ranking import Ranker
from multigrain.evaluate.results import write_results
from multigrain.evaluate.transform import Transform
from multigrain.evaluate.whitened import Whitened, whitened
from multigrain.events.records import EvaluationRecord, LogRecord
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.model.multigrain import MultiGrain
from multigrain.spec.evaluation import EvaluationSpec

# An evaluation of a part of the images would pass for one of all of them.
_MAX_UNREADABLE = 0.5


def run_evaluation(ctx: WorkerContext) -> Outcome:
    """See ``multigrain.evaluate.run``."""
    spec = ctx.request.evaluation
    if spec is None:
        raise ValueError("an evaluation worker was started for another kind of job")
    if "gem_p" in spec.tasks:
        return run_choice(ctx, spec)
    root = Path(spec.dataset_path)
    retrieval = [task for task in spec.tasks if task in RETRIEVAL_TASKS]
    benchmark: Benchmark | None = None
    if retrieval and retrieval != ["groups"]:
        benchmark = list_benchmark(retrieval[0], root)
    folder = benchmark.folder if benchmark is not None else scan(root)
    restored = restore(
        Path(ctx.request.weights_path),
        trunk=spec.trunk,
        gem_p=spec.gem_p,
        resolution=spec.resolution,
    )
    if "classification" in spec.tasks:
        folder = numbered(folder, restored)
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
    restored: Restored

    def __post_init__(self) -> None:
        self._gather = Gather(self.ctx.world)
        self._transform = Transform(
            self.restored.preprocessing(self.spec.resolution), self.spec.transform
        )
        threads = self.spec.devices.threads_per_worker
        self._batches = self._transform.batches(
            self.folder,
            self.spec.batch_size,
            rank=self.ctx.rank,
            world=self.ctx.world,
            gather=self._gather,
            threads=threads,
            alive=self.ctx.reporter.alive,
        )
        self._progress = EvaluationProgress(
            self.ctx.reporter,
            images=len(self.folder),
            share=len(self._batches),
            passes=2 if "copy_detection" in self.spec.tasks else 1,
            rank=self.ctx.rank,
        )
        network: MultiGrain | Whitened = self.restored.network
        if self.spec.whiten:
            bundle = Path(self.ctx.request.weights_path)
            network = whitened(self.restored, bundle, self.spec.resolution)
        self._size = network.embedding_size
        self._inference = Inference(
            # A graph is compiled for each shape, for seconds: not where there are hundreds.
            Compiled(network) if self.spec.transform == "crop" else network,
            self.spec.batch_size,
            self.ctx.rank,
            self.ctx.world,
            threads=threads,
            on_progress=self._progress.done,
            should_stop=lambda: self.ctx.reporter.stop_requested,
        )

    def run(self) -> Outcome:
        start = time.monotonic()
        self._say_what_is_there()
        counter = ClassificationCounter(self.folder)
        originals = Originals(len(self.folder))
        unreadable: dict[int, str] = {}
        for predictions in self._inference.run_batches(self._batches, self._load, unreadable):
            if "classification" in self.spec.tasks:
                counter.add(predictions)
            if self.spec.tasks != ("classification",):
                originals.add(predictions.indices, predictions.embedding)
        self._report_unreadable(unreadable)
        if self._stopped():
            return Outcome(stopped=True, message="stopped before all images were scored")
        classification: ClassificationResult | None = None
        if "classification" in self.spec.tasks:
            classification = counter.result(self._gather, unreadable, time.monotonic() - start)
        copies: CopyDetectionResult | None = None
        if "copy_detection" in self.spec.tasks:
            copies = self._copies(originals)
            if self._stopped():
                return Outcome(stopped=True, message="stopped before all queries were made")
        found: BenchmarkResult | None = None
        if self.benchmark is not None:
            found = self._search(self.benchmark, originals)
            if found is None:
                return Outcome(stopped=True, message="stopped before all queries were ranked")
        return self._finish(classification, copies, found, time.monotonic() - start)

    def _load(self, index: int) -> FloatArray:
        return self._transform.file(self.folder, index)

    def _copies(self, originals: Originals) -> CopyDetectionResult:
        self._progress.next_pass()
        return evaluate_copies(
            self._inference,
            self.folder,
            self._transform,
            originals,
            seed=self.spec.seed,
            gather=self._gather,
            embedding_size=self._size,
            batches=self._batches,
        )

    def _search(self, benchmark: Benchmark, originals: Originals) -> BenchmarkResult | None:
        """What the benchmark's queries find; None if a worker was asked to stop. Collective."""
        embeddings, present = originals.checked(self.folder, self._size, self._gather)
        ranking = Ranker(benchmark, embeddings, present).rank(
            self._gather,
            rank=self.ctx.rank,
            world=self.ctx.world,
            alive=self.ctx.reporter.alive,
            should_stop=lambda: self.ctx.reporter.stop_requested,
        )
        if ranking is None:
            return None
        p = self.restored.spec.gem_p
        return BenchmarkResult(benchmark, ranking, present, self.spec.transform, p)

    def _stopped(self) -> bool:
        """Whether any worker was asked to stop. Collective: all of them end at the same point."""
        return self._gather.any(self.ctx.reporter.stop_requested)

    def _say_what_is_there(self) -> None:
        if self.benchmark is None or self.ctx.rank:
            return
        task, ignored = self.benchmark.task, self.benchmark.ignored
        self._log("INFO", f"{task}: {self.benchmark.note}")
        if ignored:
            text = f"{task}: {ignored} images have names of another form and are left out"
            self._log("WARNING", text)

    def _report_unreadable(self, unreadable: dict[int, str]) -> None:
        for index, reason in sorted(unreadable.items()):
            path = self.folder.paths[index]
            self._log("WARNING", f"not scored, {path}: {reason}", path=path, reason=reason)

    def _log(self, level: str, message: str, **fields: str) -> None:
        self.ctx.reporter.emit(LogRecord(level, message, rank=self.ctx.rank, fields=fields))

    def _finish(
        self,
        classification: ClassificationResult | None,
        copies: CopyDetectionResult | None,
        found: BenchmarkResult | None,
        seconds: float,
    ) -> Outcome:
        metrics: dict[str, float] = {}
        images = 0
        for result in (classification, copies, found):
            if result is not None:
                metrics |= result.metrics
                images = result.images
        record = EvaluationRecord(
            metrics=metrics,
            step=self.restored.weights.step,
            epoch=self.restored.weights.epoch,
            images=images,
            unreadable=len(self.folder) - images,
            seconds=seconds,
            resolution=self._transform.preprocessing.size,
        )
        if self.ctx.rank == 0:
            results = self.ctx.folder.results
            write_results(results, self.folder, record, classification, copies, found)
            self.ctx.reporter.emit(record)
        figures = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        return Outcome(message=f"{figures} on {images} images")
