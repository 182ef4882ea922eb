"""The task "gem_p": choosing the pooling exponent p* for a resolution (arXiv 1902.05509, 3.5).

Larger images need a larger p; nothing else of the network changes. Two methods: "search" scores
candidates on distorted copies of training images, "finetune" trains p alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops
from numpy.typing import NDArray

from multigrain.data.benchmarks import of_folder
from multigrain.data.image_folder import ImageFolder, scan
from multigrain.data.probe import probe
from multigrain.data.report import report_listing
from multigrain.errors import ErrorKind, MultigrainError
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.classification import map_class_indices, no_readable_image
from multigrain.evaluate.distortion import distort
from multigrain.evaluate.evaluator import EvaluationProgress
from multigrain.evaluate.inference import CompiledModel, FloatArray, Inference, Predictions
from multigrain.evaluate.retrieval import BenchmarkResult, Ranker
from multigrain.evaluate.search import l2_normalize
from multigrain.events.records import EvaluationRecord, LogRecord
from multigrain.images.decode import decode_image
from multigrain.images.preprocess import preprocess, preprocess_image
from multigrain.jobs.context import Outcome, WorkerContext
from multigrain.model.gem import GeM
from multigrain.model.multigrain import MultiGrain
from multigrain.specs.evaluation import EvaluationSpec
from multigrain.storage import open_text_to_write, os_error_hint
from multigrain.text import printable, stored_path
from multigrain.weights.restore import RestoredModel, restore

_MAX_UNREADABLE = 0.5
FINETUNE_BATCH = 4
MOMENTUM = 0.9
DECAY_POWER = 0.9


def sample_per_class(folder: ImageFolder, each: int, seed: int) -> NDArray[np.int64]:
    """Samples ``each`` images of every class (all of a class with fewer).

    Returns:
        Their indices, ascending; a function of the folder and the seed alone.
    """
    random = np.random.default_rng(seed)
    chosen = [
        random.permutation(of_class)[:each]
        for number in range(len(folder.classes))
        if len(of_class := np.flatnonzero(folder.labels == number))
    ]
    result: NDArray[np.int64] = np.sort(np.concatenate(chosen)).astype(np.int64)
    return result


@dataclass(frozen=True)
class ExponentScore:
    """Metrics of one exponent.

    Args:
        p: the exponent.
        top1: top-1 accuracy, 0 to 1.
        loss: mean cross-entropy.
        retrieval: mean average precision of retrieving the other copies of an image; None if only
            classification was measured.
    """

    p: float
    top1: float
    loss: float
    retrieval: float | None = None

    @property
    def score(self) -> float:
        """The mean of top1 and retrieval, or top1 alone; 0 to 1."""
        return self.top1 if self.retrieval is None else (self.top1 + self.retrieval) / 2


def best_score(scores: list[ExponentScore]) -> ExponentScore:
    """Returns the highest score; of equal ones, that of the smallest exponent."""
    return max(scores, key=lambda score: (score.score, -score.p))


class ScoreTable:
    """This worker's scores of N images at P exponents; zero for images of other workers.

    Args:
        labels: (N,) true classes.
        exponents: P.
        size: C of the embeddings.
        embeddings: whether to store the embeddings: N * P * C float32.
    """

    def __init__(
        self, labels: NDArray[np.int32], exponents: int, size: int, *, embeddings: bool
    ) -> None:
        self._labels = labels
        #: (N, P, 2): correct (0 or 1), loss.
        self.scores: NDArray[np.float32] = np.zeros((len(labels), exponents, 2), np.float32)
        #: (N,): 1 where the image was readable.
        self.present: NDArray[np.float32] = np.zeros(len(labels), np.float32)
        shape = (exponents, len(labels), size) if embeddings else (exponents, 0, size)
        #: (P, N, C), normalized.
        self.embeddings: NDArray[np.float32] = np.zeros(shape, np.float32)

    def add(self, predictions: Predictions) -> None:
        """Adds embeddings (n, P, C) and logits (n, P, K)."""
        rows = predictions.indices
        labels = self._labels[rows]
        logits = predictions.logits.astype(np.float64)
        logits -= logits.max(axis=2, keepdims=True)
        own = np.take_along_axis(logits, labels[:, None, None].astype(np.int64), axis=2)[:, :, 0]
        self.scores[rows, :, 0] = logits.argmax(axis=2) == labels[:, None]
        self.scores[rows, :, 1] = np.log(np.exp(logits).sum(axis=2)) - own
        self.present[rows] = 1.0
        if self.embeddings.shape[1]:
            for number in range(len(self.embeddings)):
                self.embeddings[number, rows] = l2_normalize(predictions.embedding[:, number])


class MultiExponentModel(nn.Cell):
    """(N, 3, S, S) -> embeddings (N, P, C) and logits (N, P, K) of P exponents.

    The trunk runs once; only pooling and classifier run for each exponent.
    """

    def __init__(self, network: MultiGrain, exponents: Sequence[float]) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.pools = nn.CellList([GeM(p) for p in exponents])

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.network.trunk(images)
        embeddings = [pool(maps) for pool in self.pools]
        logits = [self.network.classifier(embedding) for embedding in embeddings]
        return ops.stack(embeddings, 1), ops.stack(logits, 1)


class FeatureMaps(nn.Cell):
    """(N, 3, S, S) -> the trunk's feature maps (N, C, H, W), twice as inference has two outputs."""

    def __init__(self, network: MultiGrain) -> None:
        super().__init__(auto_prefix=False)
        self.trunk = network.trunk

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.trunk(images)
        return maps, maps


class ExponentLoss(nn.Cell):
    """Mean cross-entropy of feature maps (N, C, H, W) and labels (N,), differentiable by p only."""

    def __init__(self, classifier: nn.Cell, p: float) -> None:
        super().__init__(auto_prefix=False)
        self.classifier = classifier
        self.pool = GeM(p, learn=True)

    def construct(self, maps: Tensor, labels: Tensor) -> Tensor:
        return ops.cross_entropy(self.classifier(self.pool(maps)), labels)


def learning_rate(first: float, step: int, steps: int) -> float:
    """Returns ``first * (1 - step / steps)^0.9``, step from 0, as in the published fine-tuning."""
    return first * (1 - step / steps) ** DECAY_POWER


class ExponentTuner:
    """Fine-tunes p alone, by SGD: ``v = 0.9 v + dL/dp``, ``p = max(1, p - rate * v)``.

    Classifier and trunk are frozen, and BatchNorm uses its running statistics.

    Args:
        classifier: embedding -> logits.
        start: initial p, finite.
        rate: learning rate of the first step.
        steps: number of steps, over which the rate decays to 0.
    """

    def __init__(self, classifier: nn.Cell, start: float, *, rate: float, steps: int) -> None:
        self._loss = ExponentLoss(classifier, start)
        self._loss.set_train(False)
        gradient = mindspore.value_and_grad(self._loss, None, weights=self._loss.pool.p)
        # Compiled, because such a small step is mostly overhead (measured: 30 times slower).
        self._gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = mindspore.jit(gradient)
        self._rate, self._steps, self._step = rate, steps, 0
        self._velocity = 0.0
        self._p = float(start)

    @property
    def p(self) -> float:
        """The exponent in use."""
        return self._p

    def step(self, maps: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
        """Takes a step on the feature maps (n, C, H, W) of a batch; returns the loss before it.

        A non-finite gradient is skipped.
        """
        loss, gradient = self._gradient(Tensor(maps), Tensor(labels))
        slope = float(gradient.asnumpy())
        if np.isfinite(slope):
            self._velocity = MOMENTUM * self._velocity + slope
            rate = learning_rate(self._rate, self._step, self._steps)
            # float64 here; the network's p is float32.
            self._p = max(1.0, self._p - rate * self._velocity)
            self._loss.pool.set_exponent(self._p)
        self._step += 1
        return float(loss.asnumpy())


def run_gem_p(ctx: WorkerContext, spec: EvaluationSpec) -> Outcome:
    """Runs the task in one worker process. Every worker chooses the same exponent.

    Raises:
        MultigrainError: as ``multigrain.evaluate.run``.
    """
    restored = restore(
        Path(ctx.request.weights_path),
        trunk=spec.trunk,
        gem_p=spec.gem_p,
        resolution=spec.resolution,
        roots=ctx.roots,
    )
    folder = map_class_indices(scan(Path(spec.dataset_path), ctx.image_limits), restored)
    report_listing(ctx, folder)
    probe(folder, _MAX_UNREADABLE, files=256, seed=spec.seed)
    ctx.reporter.alive()
    job = _GemPJob(ctx, spec, folder, restored)
    return job.search() if spec.exponent.method == "search" else job.finetune()


@dataclass
class _GemPJob:
    ctx: WorkerContext
    spec: EvaluationSpec
    folder: ImageFolder
    restored: RestoredModel
    _unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._start = time.monotonic()
        self._all_reduce = AllReduce(self.ctx.world)
        each = self.spec.exponent.sample_size
        self._images = sample_per_class(self.folder, each, self.spec.seed)
        self._preprocessing = self.restored.preprocessing(self.spec.resolution)

    def search(self) -> Outcome:
        """Scores the candidates: item ``i * views + v`` is the v-th distorted copy of image i."""
        views, seed = self.spec.exponent.views, self.spec.seed
        items = np.repeat(self._images, views)

        def load(item: int) -> FloatArray:
            image = decode_image(self.folder.read(int(items[item])), self.folder.limits)
            return preprocess_image(distort(image, Random(seed << 64 | item)), self._preprocessing)

        exponents = self.spec.exponent.candidates
        table = self._compute_scores(items, exponents, load, embeddings=True)
        if table is None:
            return Outcome(stopped=True, message="stopped before all images were scored")
        scores = []
        for number, score in enumerate(self._classification(table, exponents)):
            found = self._retrieval(table, number)
            if found is None:
                return Outcome(stopped=True, message="stopped before all copies were ranked")
            scores.append(ExponentScore(score.p, score.top1, score.loss, found))
        metrics = {"gem_p": best_score(scores).p}
        for score in scores:
            name = f"gem_p_{score.p:g}"
            metrics |= {f"{name}_score": score.score, f"{name}_top1": score.top1}
            metrics |= {f"{name}_map": score.retrieval or 0.0}
        return self._finish(metrics, scores, int(table.present.sum()), len(items))

    def finetune(self) -> Outcome:
        """Trains p, and scores it before and after."""
        start = self.restored.spec.gem_p
        if not np.isfinite(start):
            raise MultigrainError.field(
                "spec.gem_p", "the checkpoint's is infinite and has no gradient: set a finite one"
            )
        order = np.random.default_rng(self.spec.seed).permutation(self._images)
        labels = self.folder.labels
        tuner = ExponentTuner(
            self.restored.network.classifier,
            start,
            rate=self.spec.exponent.learning_rate,
            steps=-(-len(order) // FINETUNE_BATCH),
        )
        # The batch size of the published fine-tuning; spec.batch_size is that of the evaluation.
        inference = self._inference(
            FeatureMaps(self.restored.network), len(order), FINETUNE_BATCH, passes=2
        )
        unreadable: dict[int, str] = {}
        for predictions in inference.run(order.tolist(), self._load, unreadable):
            tuner.step(predictions.embedding, labels[predictions.indices])
        if self._all_reduce.any(self.ctx.reporter.stop_requested):
            return Outcome(stopped=True, message="stopped before p was trained")

        def load(item: int) -> FloatArray:
            return self._load(int(self._images[item]))

        exponents = (start, tuner.p)
        table = self._compute_scores(self._images, exponents, load, embeddings=False)
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

    def _load(self, index: int) -> FloatArray:
        return preprocess(self.folder.read(index), self._preprocessing, self.folder.limits)

    def _compute_scores(
        self,
        images: NDArray[np.int64],
        exponents: tuple[float, ...],
        load: Callable[[int], FloatArray],
        *,
        embeddings: bool,
    ) -> ScoreTable | None:
        """Scores every item at every exponent; None if asked to stop. Collective."""
        network = self.restored.network
        size = network.embedding_size
        table = ScoreTable(self.folder.labels[images], len(exponents), size, embeddings=embeddings)
        inference = self._inference(
            MultiExponentModel(network, exponents), len(images), self.spec.batch_size
        )
        unreadable: dict[int, str] = {}
        for predictions in inference.run(inference.shard(len(images)), load, unreadable):
            table.add(predictions)
        for item, reason in unreadable.items():
            self._unreadable[self.folder.paths[images[item]]] = reason
        if self._all_reduce.any(self.ctx.reporter.stop_requested):
            return None
        self._report_unreadable()
        table.present = self._all_reduce.sum(table.present)
        if not table.present.any():
            raise no_readable_image(self.folder)
        table.scores = self._all_reduce.sum(table.scores)
        if not np.isfinite(table.scores).all():
            raise MultigrainError(
                ErrorKind.NOT_FINITE,
                "the network's outputs are not finite: its weights are damaged or have diverged; "
                "use another checkpoint",
            )
        return table

    def _classification(
        self, table: ScoreTable, exponents: tuple[float, ...]
    ) -> list[ExponentScore]:
        means = table.scores[table.present > 0].mean(axis=0, dtype=np.float64)
        return [
            ExponentScore(p, float(top1), float(loss))
            for p, (top1, loss) in zip(exponents, means, strict=True)
        ]

    def _retrieval(self, table: ScoreTable, number: int) -> float | None:
        """Mean average precision of retrieving an image's other copies. Collective."""
        views = self.spec.exponent.views
        images = len(table.present) // views
        groups = ImageFolder(
            self.folder.root,
            tuple(self.folder.paths[index] for index in self._images),
            [str(item) for item in range(len(table.present))],
            np.repeat(np.arange(images, dtype=np.int32), views),
        )
        benchmark, present = of_folder(groups), table.present > 0
        embeddings = self._all_reduce.sum(table.embeddings[number])
        ranking = Ranker(benchmark, embeddings, present).rank(
            self._all_reduce,
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
            shard=len(range(self.ctx.rank, items, self.ctx.world)),
            passes=passes,
            rank=self.ctx.rank,
        )
        return Inference(
            CompiledModel(cell),
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
                    f"not used, {printable(path)}: {reason}",
                    rank=self.ctx.rank,
                    fields={"path": stored_path(path), "reason": reason},
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
        return Outcome(message=f"p = {p:g} for {size} px, chosen on {used} images")

    def _write(self, record: EvaluationRecord, scores: list[ExponentScore]) -> None:
        body = asdict(record)
        body["candidates"] = [{**asdict(score), "score": score.score} for score in scores]
        results = self.ctx.folder.results
        try:
            results.mkdir(parents=True, exist_ok=True)
            with open_text_to_write(results / "metrics.json") as file:
                file.write(json.dumps(body, indent=1) + "\n")
        except OSError as error:
            raise MultigrainError(
                ErrorKind.STORAGE,
                f"the results cannot be written ({error.strerror}): "
                + os_error_hint(
                    error, "write in the job's folder", "free some space and try again"
                ),
            ) from error
