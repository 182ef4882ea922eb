"""Evaluation of a network on a folder of images, by all tasks that share one forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mindspore import nn

from multigrain.data.benchmarks import Benchmark
from multigrain.data.image_folder import ImageFolder
from multigrain.evaluate.all_reduce import AllReduce
from multigrain.evaluate.classification import ClassificationCounter, ClassificationResult
from multigrain.evaluate.copy_detection import CopyDetectionResult, EmbeddingTable, evaluate_copies
from multigrain.evaluate.inference import FloatArray, Inference, Transform
from multigrain.evaluate.retrieval import BenchmarkResult, Ranker
from multigrain.events.records import ProgressRecord
from multigrain.jobs.context import Reporter
from multigrain.specs.evaluation import Task

INTERVAL_SECONDS = 1.0


class Progress(Protocol):
    """Receives the progress of an evaluation."""

    def done(self, images: int) -> None:
        """``images`` of this worker's images are done in this pass."""
        ...

    def next_pass(self) -> None:
        """Another pass over the images begins."""
        ...


@dataclass
class HeartbeatProgress:
    """Reports nothing but heartbeats."""

    reporter: Reporter

    def done(self, images: int) -> None:
        self.reporter.alive()

    def next_pass(self) -> None:
        pass


class EvaluationProgress:
    """Sends heartbeats from every worker, and at most one ProgressRecord per second from rank 0.

    The other workers have the same number of images, and about the same progress.

    Args:
        reporter: receives heartbeats and records.
        images: number of images of all workers.
        shard: number of images of this worker.
        passes: number of forward passes of each image.
        rank: of this worker.
        clock: returns seconds.
    """

    def __init__(
        self,
        reporter: Reporter,
        *,
        images: int,
        shard: int,
        passes: int,
        rank: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reporter = reporter
        self._images = images
        self._shard = shard
        self._passes = passes
        self._rank = rank
        self._clock = clock
        self._start = self._last = clock()
        self._previous = 0  # images of earlier passes

    def done(self, images: int) -> None:
        self._reporter.alive()
        now = self._clock()
        if self._rank or now - self._last < INTERVAL_SECONDS:
            return
        self._last = now
        done = self._previous + images
        fraction = done / max(1, self._shard * self._passes)
        left = (now - self._start) * (1 - fraction) / fraction if fraction else -1.0
        self._reporter.emit(
            ProgressRecord(
                done=round(fraction * self._images), total=self._images, eta_seconds=left
            )
        )

    def next_pass(self) -> None:
        self._previous += self._shard


@dataclass(frozen=True)
class EvaluationResult:
    """Results of the requested tasks; None for the others.

    Args:
        total: number of images in the folder, readable or not.
        classification: result of the task "classification".
        copies: result of the task "copy_detection".
        retrieval: result of the retrieval benchmark.
        unreadable: index -> reason, of *this worker's* images.
        seconds: duration.
    """

    total: int
    classification: ClassificationResult | None = None
    copies: CopyDetectionResult | None = None
    retrieval: BenchmarkResult | None = None
    unreadable: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name; see ``multigrain.specs.evaluation.TASK_METRICS``."""
        metrics: dict[str, float] = {}
        for result in (self.classification, self.copies, self.retrieval):
            if result is not None:
                metrics |= result.metrics
        return metrics

    @property
    def images(self) -> int:
        """Number of images scored, over all workers."""
        for result in (self.classification, self.copies, self.retrieval):
            if result is not None:
                return result.images
        return 0


@dataclass
class Evaluator:
    """Evaluates a network on the images of a folder, sharded across the workers.

    Each image passes through the network once, and for copy detection a second time as a
    distorted copy. The metrics do not depend on the number of workers.

    Collective: every worker creates one with the same arguments except for ``rank``.

    Args:
        folder: the images; for "classification" with the network's class indices.
        tasks: "classification", "copy_detection", and the benchmark's.
        benchmark: a retrieval benchmark of the same folder, or None.
        transform: preprocessing of the images.
        reporter: of this worker.
        batch_size: images per forward pass.
        rank, world: this worker, and the number of workers.
        threads: threads that load images; 0 = this worker's share of the cores.
        seed: of the distortions.
        all_reduce: sums over the workers; for tests.
    """

    folder: ImageFolder
    tasks: tuple[Task, ...]
    benchmark: Benchmark | None
    transform: Transform
    reporter: Reporter
    batch_size: int
    rank: int = 0
    world: int = 1
    threads: int = 0
    seed: int = 0
    all_reduce: AllReduce | None = None

    def __post_init__(self) -> None:
        self._all_reduce = self.all_reduce or AllReduce(self.world)
        self._batches = self.transform.batches(
            self.folder,
            self.batch_size,
            rank=self.rank,
            world=self.world,
            all_reduce=self._all_reduce,
            threads=self.threads,
            alive=self.reporter.alive,
        )

    @property
    def shard(self) -> int:
        """Number of this worker's images."""
        return len(self._batches)

    @property
    def passes(self) -> int:
        """Number of forward passes of each image."""
        return 2 if "copy_detection" in self.tasks else 1

    def run(
        self,
        network: nn.Cell,
        embedding_size: int,
        progress: Progress,
        on_unreadable: Callable[[dict[int, str]], None] = lambda _unreadable: None,
    ) -> EvaluationResult | None:
        """Evaluates the network. Collective.

        Args:
            network: images (N, 3, H, W) -> embedding (N, C), logits (N, K); its training mode is
                restored afterwards.
            embedding_size: C.
            progress: receives the progress.
            on_unreadable: called with this worker's unreadable images, index -> reason.

        Returns:
            The results, or None if any worker was asked to stop.

        Raises:
            MultigrainError: DATASET, if no image, or no query, was readable; NOT_FINITE, if
                outputs are not.
        """
        start = time.monotonic()
        inference = Inference(
            network,
            self.batch_size,
            self.rank,
            self.world,
            threads=self.threads,
            on_progress=progress.done,
            should_stop=self._should_stop,
        )
        counter, originals = ClassificationCounter(self.folder), EmbeddingTable(len(self.folder))
        unreadable: dict[int, str] = {}
        for predictions in inference.run_batches(self._batches, self._load, unreadable):
            if "classification" in self.tasks:
                counter.add(predictions)
            if self.tasks != ("classification",):
                originals.add(predictions.indices, predictions.embedding)
        on_unreadable(unreadable)
        if self._stopped():
            return None
        classification: ClassificationResult | None = None
        if "classification" in self.tasks:
            classification = counter.result(self._all_reduce)
        copies: CopyDetectionResult | None = None
        if "copy_detection" in self.tasks:
            progress.next_pass()
            copies = evaluate_copies(
                inference,
                self.folder,
                self.transform,
                originals,
                seed=self.seed,
                all_reduce=self._all_reduce,
                embedding_size=embedding_size,
                batches=self._batches,
            )
            if self._stopped():
                return None
        retrieval: BenchmarkResult | None = None
        if self.benchmark is not None:
            retrieval = self._search(self.benchmark, originals, embedding_size)
            if retrieval is None:
                return None
        seconds = time.monotonic() - start
        return EvaluationResult(
            len(self.folder), classification, copies, retrieval, unreadable, seconds
        )

    def _load(self, index: int) -> FloatArray:
        return self.transform.file(self.folder, index)

    def _should_stop(self) -> bool:
        return self.reporter.stop_requested

    def _stopped(self) -> bool:
        """Returns whether any worker was asked to stop, the same on all. Collective."""
        return self._all_reduce.any(self.reporter.stop_requested)

    def _search(
        self, benchmark: Benchmark, originals: EmbeddingTable, embedding_size: int
    ) -> BenchmarkResult | None:
        """Runs the benchmark; None if a worker was asked to stop. Collective."""
        embeddings, present = originals.checked(self.folder, embedding_size, self._all_reduce)
        ranking = Ranker(benchmark, embeddings, present).rank(
            self._all_reduce,
            rank=self.rank,
            world=self.world,
            alive=self.reporter.alive,
            should_stop=self._should_stop,
        )
        if ranking is None:
            return None
        return BenchmarkResult(benchmark, ranking, present, self.transform.kind)
