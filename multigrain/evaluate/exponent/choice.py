"""The task "gem_p" inside one worker process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import numpy as np
from mindspore import nn
from numpy.typing import NDArray

from multigrain.checkpoint.restore import Restored, restore
from multigrain.data.benchmarks.groups import of_folder
from multigrain.data.folder import ImageFolder, scan
from multigrain.data.probe import probe
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate.benchmark_result import BenchmarkResult
from multigrain.evaluate.classification import no_readable_image
from multigrain.evaluate.distortion import distort
from multigrain.evaluate.exponent.cells import AtExponents, Maps
from multigrain.evaluate.exponent.finetune import BATCH, ExponentTuner
from multigrain.evaluate.exponent.sample import draw
from multigrain.evaluate.exponent.scores import ExponentScore, Table, best
from multigrain.evaluate.gather import Gather
from multigrain.evaluate.inference import Compiled, FloatArray, Inference
from multigrain.evaluate.numbering import numbered
from multigrain.evaluate.progress import EvaluationProgress
from multigrain.evaluate.ranking import Ranker
from multigrain.events.records import EvaluationRecord, LogRecord
from multigrain.images.decode import decode_image
from multigrain.images.preprocess import preprocess, preprocess_image
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.remedy import remedy
from multigrain.spec.evaluation import EvaluationSpec

_MAX_UNREADABLE = 0.5


def run_choice(ctx: WorkerContext, spec: EvaluationSpec) -> Outcome:
    """Chooses the exponent of a resolution. Every worker ends with the same choice."""
    restored = restore(
        Path(ctx.request.weights_path),
        trunk=spec.trunk,
        gem_p=spec.gem_p,
        resolution=spec.resolution,
    )
    folder = numbered(scan(Path(spec.dataset_path)), restored)
    probe(folder, _MAX_UNREADABLE, files=256, seed=spec.seed)
    ctx.reporter.alive()
    choice = _Choice(ctx, spec, folder, restored)
    return choice.search() if spec.exponent.method == "search" else choice.finetune()


@dataclass
class _Choice:
    ctx: WorkerContext
    spec: EvaluationSpec
    folder: ImageFolder
    restored: Restored
    _unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._start = time.monotonic()
        self._gather = Gather(self.ctx.world)
        self._images = draw(self.folder, self.spec.exponent.drawn, self.spec.seed)
        self._preprocessing = self.restored.preprocessing(self.spec.resolution)

    def search(self) -> Outcome:
        """Item ``i * views + v`` is the v-th distorted copy of the i-th image drawn."""
        views, seed = self.spec.exponent.views, self.spec.seed
        items = np.repeat(self._images, views)

        def load(item: int) -> FloatArray:
            image = decode_image(self.folder.read(int(items[item])))
            return preprocess_image(distort(image, Random(seed << 64 | item)), self._preprocessing)

        exponents = self.spec.exponent.candidates
        table = self._computed(items, exponents, load, embeddings=True)
        if table is None:
            return Outcome(stopped=True, message="stopped before all images were scored")
        scores = []
        for number, score in enumerate(self._classification(table, exponents)):
            found = self._retrieval(table, number)
            if found is None:
                return Outcome(stopped=True, message="stopped before all copies were ranked")
            scores.append(ExponentScore(score.p, score.top1, score.loss, found))
        metrics = {"gem_p": best(scores).p}
        for score in scores:
            name = f"gem_p_{score.p:g}"
            metrics |= {f"{name}_score": score.score, f"{name}_top1": score.top1}
            metrics |= {f"{name}_map": score.retrieval or 0.0}
        return self._finish(metrics, scores, int(table.present.sum()), len(items))

    def finetune(self) -> Outcome:
        start = self.restored.spec.gem_p
        if not np.isfinite(start):
            raise MultigrainError.field(
                "spec.gem_p", "the checkpoint's is infinite and has no gradient: give a finite one"
            )
        order = np.random.default_rng(self.spec.seed).permutation(self._images)
        labels = self.folder.labels
        tuner = ExponentTuner(
            self.restored.network.classifier,
            start,
            rate=self.spec.exponent.learning_rate,
            steps=-(-len(order) // BATCH),
        )
        # The published fine-tuning's batch, whatever spec.batch_size is good for evaluation.
        inference = self._inference(Maps(self.restored.network), len(order), BATCH, passes=2)
        unreadable: dict[int, str] = {}
        for predictions in inference.run(order.tolist(), self._whole, unreadable):
            tuner.step(predictions.embedding, labels[predictions.indices])
        if self._gather.any(self.ctx.reporter.stop_requested):
            return Outcome(stopped=True, message="stopped before p was trained")

        def load(item: int) -> FloatArray:
            return self._whole(int(self._images[item]))

        exponents = (start, tuner.p)
        table = self._computed(self._images, exponents, load, embeddings=False)
        if table is None:
            return Outcome(stopped=True, message="stopped before p was scored")
        before, after = scores = self._classification(table, exponents)
        metrics = {
            "gem_p": tuner.p,
            "loss": after.loss,
            "top1": after.top1,
            "gem_p_start": start,
            "gem_p_start_loss": before.loss,
            "gem_p_start_top1": before.top1,
        }
        return self._finish(metrics, scores, int(table.present.sum()), len(self._images))

    def _whole(self, index: int) -> FloatArray:
        return preprocess(self.folder.read(index), self._preprocessing)

    def _computed(
        self,
        images: NDArray[np.int64],
        exponents: tuple[float, ...],
        load: Callable[[int], FloatArray],
        *,
        embeddings: bool,
    ) -> Table | None:
        """Every item at every exponent, on every worker; None if asked to stop. Collective."""
        network = self.restored.network
        size = network.embedding_size
        table = Table(self.folder.labels[images], len(exponents), size, embeddings=embeddings)
        inference = self._inference(
            AtExponents(network, exponents), len(images), self.spec.batch_size
        )
        unreadable: dict[int, str] = {}
        for predictions in inference.run(inference.share(len(images)), load, unreadable):
            table.add(predictions)
        for item, reason in unreadable.items():
            self._unreadable[self.folder.paths[images[item]]] = reason
        if self._gather.any(self.ctx.reporter.stop_requested):
            return None
        self._report_unreadable()
        table.present = self._gather.sum(table.present)
        if not table.present.any():
            raise no_readable_image(self.folder)
        table.figures = self._gather.sum(table.figures)
        if not np.isfinite(table.figures).all():
            raise MultigrainError(
                ErrorKind.NOT_FINITE,
                "the network's scores are not finite: the weights are damaged, or the training "
                "diverged; use another checkpoint",
            )
        return table

    def _classification(self, table: Table, exponents: tuple[float, ...]) -> list[ExponentScore]:
        means = table.figures[table.present > 0].mean(axis=0, dtype=np.float64)
        return [
            ExponentScore(p, float(top1), float(loss))
            for p, (top1, loss) in zip(exponents, means, strict=True)
        ]

    def _retrieval(self, table: Table, number: int) -> float | None:
        """Mean average precision of finding an image's other copies. Collective."""
        views = self.spec.exponent.views
        images = len(table.present) // views
        groups = ImageFolder(
            self.folder.root,
            tuple(self.folder.paths[index] for index in self._images),
            [str(item) for item in range(len(table.present))],
            np.repeat(np.arange(images, dtype=np.int32), views),
        )
        benchmark, present = of_folder(groups), table.present > 0
        embeddings = self._gather.sum(table.embeddings[number])
        ranking = Ranker(benchmark, embeddings, present).rank(
            self._gather,
            rank=self.ctx.rank,
            world=self.ctx.world,
            alive=self.ctx.reporter.alive,
            should_stop=lambda: self.ctx.reporter.stop_requested,
        )
        if ranking is None:
            return None
        return BenchmarkResult(benchmark, ranking, present).metrics["groups_map"]

    def _inference(self, cell: nn.Cell, items: int, batch: int, passes: int = 1) -> Inference:
        progress = EvaluationProgress(
            self.ctx.reporter,
            images=items,
            share=len(range(self.ctx.rank, items, self.ctx.world)),
            passes=passes,
            rank=self.ctx.rank,
        )
        return Inference(
            Compiled(cell),
            batch,
            self.ctx.rank,
            self.ctx.world,
            threads=self.spec.devices.threads_per_worker,
            on_progress=progress.done,
            should_stop=lambda: self.ctx.reporter.stop_requested,
        )

    def _report_unreadable(self) -> None:
        for path, reason in sorted(self._unreadable.items()):
            self.ctx.reporter.emit(
                LogRecord(
                    "WARNING",
                    f"not used, {path}: {reason}",
                    rank=self.ctx.rank,
                    fields={"path": path, "reason": reason},
                )
            )

    def _finish(
        self, metrics: dict[str, float], scores: list[ExponentScore], used: int, items: int
    ) -> Outcome:
        record = EvaluationRecord(
            metrics=metrics,
            step=self.restored.weights.step,
            epoch=self.restored.weights.epoch,
            images=used,
            unreadable=items - used,
            seconds=time.monotonic() - self._start,
            resolution=self._preprocessing.size,
        )
        if self.ctx.rank == 0:
            self._write(record, scores)
            self.ctx.reporter.emit(record)
        size, p = self._preprocessing.size, metrics["gem_p"]
        return Outcome(message=f"p = {p:g} for {size} px, by {used} images")

    def _write(self, record: EvaluationRecord, scores: list[ExponentScore]) -> None:
        body = asdict(record)
        body["candidates"] = [{**asdict(score), "score": score.score} for score in scores]
        results = self.ctx.folder.results
        try:
            results.mkdir(parents=True, exist_ok=True)
            (results / "metrics.json").write_text(json.dumps(body, indent=1) + "\n")
        except OSError as error:
            raise MultigrainError(
                ErrorKind.STORAGE,
                f"the results cannot be written ({error.strerror}): "
                + remedy(error, "write in the job's folder", "free some space and try again"),
            ) from error
