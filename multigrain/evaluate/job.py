"""The evaluation job inside one worker process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from multigrain.checkpoint.restore import Restored, restore
from multigrain.data.folder import ImageFolder, scan
from multigrain.data.probe import probe
from multigrain.errors import MultigrainError
from multigrain.evaluate.classification import ClassificationCounter, ClassificationResult
from multigrain.evaluate.copy_detection import CopyDetectionResult, Originals, evaluate_copies
from multigrain.evaluate.gather import Gather
from multigrain.evaluate.inference import Compiled, FloatArray, Inference
from multigrain.evaluate.results import write_results
from multigrain.events.records import EvaluationRecord, LogRecord
from multigrain.images.parameters import Preprocessing
from multigrain.images.preprocess import preprocess
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.spec.evaluation import EvaluationSpec

# An evaluation of a part of the images would pass for one of all of them.
_MAX_UNREADABLE = 0.5


def run_evaluation(ctx: WorkerContext) -> Outcome:
    """See ``multigrain.evaluate.run``."""
    spec = ctx.request.evaluation
    if spec is None:
        raise ValueError("an evaluation worker was started for another kind of job")
    folder = scan(Path(spec.dataset_path))
    restored = restore(Path(ctx.request.weights_path), trunk=spec.trunk, gem_p=spec.gem_p)
    if "classification" in spec.tasks:
        folder = _numbered(folder, restored)
    probe(folder, _MAX_UNREADABLE, files=256, seed=spec.seed)
    ctx.reporter.alive()
    return _Evaluation(ctx, spec, folder, restored).run()


def _numbered(folder: ImageFolder, restored: Restored) -> ImageFolder:
    """The images with class numbers of the network.

    Raises:
        MultigrainError: DATASET or INVALID_FIELD if the classes are not the network's.
    """
    if restored.weights.labels:
        return folder.relabelled(restored.weights.labels)
    if len(folder.classes) > restored.spec.classes:
        raise MultigrainError.field(
            "spec.dataset_path",
            f"it has {len(folder.classes)} class folders, the network {restored.spec.classes} "
            "outputs: give the dataset that the network was trained for",
        )
    return folder


@dataclass
class _Evaluation:
    ctx: WorkerContext
    spec: EvaluationSpec
    folder: ImageFolder
    restored: Restored

    def __post_init__(self) -> None:
        self._preprocessing: Preprocessing = self.restored.preprocessing(self.spec.resolution)
        self._gather = Gather(self.ctx.world)
        model = Compiled(self.restored.network)
        self._inference = Inference(
            model,
            self.spec.batch_size,
            self.ctx.rank,
            self.ctx.world,
            threads=self.spec.devices.threads_per_worker,
            on_progress=lambda _done: self.ctx.reporter.alive(),
            should_stop=lambda: self.ctx.reporter.stop_requested,
        )

    def run(self) -> Outcome:
        start = time.monotonic()
        counter = ClassificationCounter(self.folder)
        originals = Originals(len(self.folder))
        unreadable: dict[int, str] = {}
        for predictions in self._inference.run(
            self._inference.share(len(self.folder)), self._load, unreadable
        ):
            if "classification" in self.spec.tasks:
                counter.add(predictions)
            if "copy_detection" in self.spec.tasks:
                originals.add(predictions.indices, predictions.embedding)
        self._report_unreadable(unreadable)
        if self._stopped():
            return Outcome(stopped=True, message="stopped before all images were scored")
        classification: ClassificationResult | None = None
        if "classification" in self.spec.tasks:
            classification = counter.result(self._gather, unreadable, time.monotonic() - start)
        copies: CopyDetectionResult | None = None
        if "copy_detection" in self.spec.tasks:
            copies = evaluate_copies(
                self._inference,
                self.folder,
                self._preprocessing,
                originals,
                seed=self.spec.seed,
                gather=self._gather,
                embedding_size=self.restored.network.embedding_size,
            )
            if self._stopped():
                return Outcome(stopped=True, message="stopped before all queries were made")
        return self._finish(classification, copies, time.monotonic() - start)

    def _load(self, index: int) -> FloatArray:
        return preprocess(self.folder.read(index), self._preprocessing)

    def _stopped(self) -> bool:
        """Whether any worker was asked to stop. Collective: all of them end at the same point."""
        return self._gather.any(self.ctx.reporter.stop_requested)

    def _report_unreadable(self, unreadable: dict[int, str]) -> None:
        for index, reason in sorted(unreadable.items()):
            path = self.folder.paths[index]
            self.ctx.reporter.emit(
                LogRecord(
                    level="WARNING",
                    message=f"not scored, {path}: {reason}",
                    rank=self.ctx.rank,
                    fields={"path": path, "reason": reason},
                )
            )

    def _finish(
        self,
        classification: ClassificationResult | None,
        copies: CopyDetectionResult | None,
        seconds: float,
    ) -> Outcome:
        metrics: dict[str, float] = {}
        images = 0
        for result in (classification, copies):
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
            resolution=self._preprocessing.size,
        )
        if self.ctx.rank == 0:
            write_results(self.ctx.folder.results, self.folder, record, classification, copies)
            self.ctx.reporter.emit(record)
        figures = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        return Outcome(message=f"{figures} on {images} images")
